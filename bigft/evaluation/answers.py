"""Let a model write an answer to each prompt."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigft.data.layouts.layout import choose_pad_id
from bigft.data.tokens.encode import TokenIds
from bigft.data.tokens.tokenize import find_end_token_ids

Stops = Callable[[], bool]
"""Whether all ranks have agreed to end here."""

_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Decoding:
    """How answers are written."""

    batch_size: int
    max_new_tokens: int
    num_beams: int = 1
    """1 always takes the likeliest token."""

    max_seconds: float | None = None
    """No further batch is begun after so long; the first one always is."""


def write_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[TokenIds],
    decoding: Decoding,
    tell: Callable[[str], None],
) -> list[str]:
    """Write answers without sampling, so that the same model always writes the same.

    What the model's own generation config says beside that (forced first tokens, repetition
    penalties) holds.

    Args:
        model: A transformers model with `generate`, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: `(T,)` each, at least one token.
        decoding: Sizes and limits.
        tell: Shows a line every ten seconds.

    Returns:
        One text per prompt, special tokens left out; fewer where the time is over.
    """
    start = told = time.monotonic()
    answers: list[str] = []
    config = build_config(model, tokenizer, decoding)
    for first in range(0, len(prompts), decoding.batch_size):
        now = time.monotonic()
        if answers and decoding.max_seconds is not None and now - start >= decoding.max_seconds:
            break
        if now - told >= _LINE_SECONDS:
            told = now
            tell(f"answers: {len(answers):,} of {len(prompts):,}")
        batch = prompts[first : first + decoding.batch_size]
        answers += write_batch(model, tokenizer, batch, config, model.device)
    return answers


def find_longest_prompt(model: Any) -> int | None:
    """Say how many tokens a prompt may have, so that one can follow; None where nothing limits it.

    An encoder's prompt leaves the decoder its own places.
    """
    places = _count_places(model)
    if places is None or model.config.is_encoder_decoder:
        return places
    return places - 1


def _count_places(model: Any) -> int | None:
    """Count the positions that a model has been made for, where its config says so."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def build_config(model: Any, tokenizer: Any, decoding: Decoding) -> Any:
    """Build transformers' generation config: the model's own, without sampling."""
    from transformers import GenerationConfig

    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    config.do_sample = False
    # They say how to sample; transformers warns where nothing is sampled.
    config.temperature = config.top_p = config.top_k = None
    config.num_beams = decoding.num_beams
    config.max_new_tokens = decoding.max_new_tokens
    config.use_cache = True
    config.pad_token_id = choose_pad_id(tokenizer)
    config.eos_token_id = _find_ends(model, tokenizer) or None
    return config


def _find_ends(model: Any, tokenizer: Any) -> list[int]:
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    found = [int(token) for token in own if token is not None]
    if model.config.is_encoder_decoder:
        found += [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    else:
        found += find_end_token_ids(tokenizer)
    return list(dict.fromkeys(found))


@torch.no_grad()
def write_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[TokenIds],
    config: Any,
    device: torch.device,
    stops: Stops | None = None,
) -> list[str]:
    """Write the answers to some prompts at once.

    Args:
        model: A transformers model with `generate`, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: `(T,)` each, at least one token.
        config: What `build_config` returned.
        device: Where the model computes.
        stops: Given: this is one of several ranks, which write in step, as many tokens each as
            the slowest of them needs. Where it says so, answers end before they are done.

    Returns:
        One text per prompt, special tokens left out.

    Collective: with `stops`, every rank.
    """
    is_encoder_decoder = model.config.is_encoder_decoder
    input_ids, mask = _pad(prompts, config.pad_token_id, on_left=not is_encoder_decoder)
    width = 0 if is_encoder_decoder else input_ids.shape[1]
    places = _count_places(model)
    chosen = type(config).from_dict(config.to_dict())
    if places is not None:
        # The decoder of an encoder has a first token that nobody wrote.
        chosen.max_new_tokens = min(config.max_new_tokens, places - max(width, 1))
    output = model.generate(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        generation_config=chosen,
        synced_gpus=stops is not None,
        stopping_criteria=[] if stops is None else [_as_criterion(stops)],
    )
    # A decoder's output begins with its prompt; that of an encoder and decoder with a start token.
    written = output[:, width or 1 :].tolist()
    ends = set(config.eos_token_id or [])
    return [
        str(tokenizer.decode(_cut_off(tokens, ends), skip_special_tokens=True))
        for tokens in written
    ]


def _as_criterion(stops: Stops) -> Callable[[Tensor, Any], Tensor]:
    def end_all(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), stops(), device=input_ids.device)

    return end_all


def _pad(rows: Sequence[TokenIds], fill: int, *, on_left: bool) -> tuple[Tensor, Tensor]:
    """Pad to a common length.

    A decoder goes on at the right end of all rows at once, so its padding is on the left.

    Returns:
        Rows and mask, `(B, T)` int64 each.
    """
    width = max(len(row) for row in rows)
    values = np.full((len(rows), width), fill, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if on_left else slice(0, len(row))
        values[number, place], mask[number, place] = row, 1
    return torch.from_numpy(values), torch.from_numpy(mask)


def _cut_off(tokens: list[int], ends: set[int]) -> list[int]:
    """Leave out the token that ended the answer, and the padding behind it."""
    return next((tokens[:n] for n, token in enumerate(tokens) if token in ends), tokens)
