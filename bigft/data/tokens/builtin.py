"""The built-in tokenizer: byte-level BPE of 4,096 entries, trained once on the built-in corpus."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bigft.data.cache import default_cache_dir, write_once
from bigft.data.sources.corpus import compute_corpus_digest, read_corpus
from bigft.data.tokens.templates import CHATML_TEMPLATE, IM_END, IM_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["VOCABULARY_SIZE", "default_cache_dir", "load_builtin_tokenizer"]

VOCABULARY_SIZE = 4096
EOS = "<|endoftext|>"
PAD = "<|pad|>"

_VERSION = "2"
"""Part of the folder's name; to be raised whenever the same corpus gives other files."""

_logger = logging.getLogger(__name__)


def load_builtin_tokenizer(cache_dir: Path) -> "PreTrainedTokenizerFast":
    """Load the tokenizer from the cache; train it first if it is not there.

    Several processes may call this at once: each trains, one result stays. Let one go first to
    save the others the seconds.

    Raises:
        DataError: The corpus cannot be read or the cache cannot be written.
    """
    from transformers import PreTrainedTokenizerFast

    name = f"builtin-{VOCABULARY_SIZE}-v{_VERSION}-{compute_corpus_digest()}"
    folder = cache_dir / "tokenizers" / name
    if not folder.is_dir():
        write_once(folder, _train_into)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def _train_into(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    start = time.monotonic()
    backend = Tokenizer(models.BPE())
    # No normalizer, no added space, all 256 bytes in the alphabet: any text comes back unchanged.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[EOS, PAD, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_read_texts(), trainer=trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[IM_START, IM_END],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML_TEMPLATE
    tokenizer.save_pretrained(folder)
    seconds = time.monotonic() - start
    _logger.info("trained the built-in tokenizer: %d entries, %.1f s", len(tokenizer), seconds)


def _read_texts() -> Iterator[str]:
    for _, record in read_corpus():
        if "text" in record:
            yield record["text"]
        for message in record.get("messages", ()):
            yield message["content"]
