"""What tasks share that put a few numbers, and no tokens, at the end of a model."""

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bigft.data.layouts.layout import choose_pad_id
from bigft.data.loading.collate import Batch
from bigft.tasks.task import Forward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def compute_head(forward: Forward, batch: Batch) -> Tensor:
    """Return what the head says of each row, `(B, size)` fp32."""
    module: Any = getattr(forward, "module", forward)
    known = inspect.signature(type(module).forward).parameters
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
    }
    # Encoders have no cache, and some no types.
    if "use_cache" in known:
        inputs["use_cache"] = False
    if "token_type_ids" in known and batch.token_type_ids is not None:
        inputs["token_type_ids"] = batch.token_type_ids
    logits: Tensor = forward(**inputs).logits
    return logits.float()


def configure_padding(config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Tell a decoder what fills up batches: its head reads the last token that is something else.

    Whatever the config said: with another token there, the head would read padding, and what it
    says of a text would depend on the texts beside it.
    """
    pad_id = choose_pad_id(tokenizer)
    config.get_text_config().pad_token_id = pad_id
    config.pad_token_id = pad_id


def get_sequence_classifier() -> Any:
    """Return `AutoModelForSequenceClassification`."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification
