"""What tokenised data look like, as plain values; how they are shown is for others to decide."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigft.data.counts import count_tokens, pick_layout
from bigft.data.layouts.layout import BuildLayout, Counts, Layout
from bigft.data.layouts.next_token import NextToken
from bigft.data.open import Opened, describe
from bigft.data.order.pack import Bins
from bigft.data.section import DataSection
from bigft.data.sources.find import Part
from bigft.data.store.chunks import NOTHING_TO_LEARN
from bigft.data.store.rows import Rows
from bigft.data.store.store import TokenStore
from bigft.data.tokens.tokenize import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_PLACES = 10
"""Rejected rows of each kind that are named."""

_MAX_BINS = 12


@dataclass(frozen=True)
class SourcePreview:
    """One part of `--data` or `--eval_data`."""

    name: str
    setting: str
    """`data` or `eval_data`."""

    weight: float | None
    """As typed; None when there was none."""

    files: tuple[str, ...]
    """Files, or the hub id."""

    rows: int
    tokens: int
    supervised_tokens: int
    epoch_tokens: int
    """Tokens that the first epoch takes of it; 0 of what is only evaluated on."""

    epoch_share: float
    """Share of all the epoch's tokens."""


@dataclass(frozen=True)
class LengthsPreview:
    """Tokens per row."""

    min: int
    median: float
    mean: float
    max: int
    histogram: tuple[tuple[int, int, int], ...]
    """A dozen bins at most, of equal width: first length, last length, rows."""


@dataclass(frozen=True)
class RejectedPreview:
    """A raw row that became no tokens."""

    origin: str
    reason: str


@dataclass(frozen=True)
class ExamplePreview:
    """A row, decoded."""

    source: str
    text: str
    """All of it, special tokens as their names."""

    spans: tuple[tuple[int, int], ...]
    """Where the tokens stand in the text that count in the loss, in characters."""

    tokens: int
    supervised_tokens: int


@dataclass(frozen=True)
class Preview:
    """What `bigft data` shows."""

    counts: dict[str, Any]
    """See `bigft.data.open.describe`."""

    sources: tuple[SourcePreview, ...]
    lengths: LengthsPreview
    rejected: tuple[RejectedPreview, ...]
    """The first ten rows that could not be read, then the first ten with nothing to learn."""

    examples: tuple[ExamplePreview, ...]


def build_preview(
    opened: Opened,
    section: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    seed: int,
    num_examples: int,
    lay_out: BuildLayout = NextToken,
) -> Preview:
    """Count and decode what a run would train on.

    Args:
        opened: Stores and selection.
        section: Settings of the data.
        tokenizer: The one that the rows were made with.
        seed: Decides what the first epoch takes of weighted parts.
        num_examples: Rows to decode: the first ones of each part in turn.
        lay_out: What the rows were made with.
    """
    bins = opened.selection.build_plan(opened.train, section, seed=seed).bins(0)
    layout = lay_out(tokenizer, section)
    counts = describe(opened, bins, section, layout)
    # Every overlong example is left out, or none.
    counts["dropped_overlong"] = counts["overlong_rows"] if section.overlong == "drop" else 0
    counts["supervised_share"] = counts["supervised_tokens"] / max(counts["tokens"], 1)
    numbers = _choose_examples(opened.train, np.unique(bins.rows), num_examples)
    rows = [opened.train.load_row(number) for number in numbers]
    lengths = [count_tokens(layout, opened.train)]
    if opened.has_own_evaluation:
        lengths.append(count_tokens(layout, opened.evaluation))
    return Preview(
        counts,
        tuple(_describe_sources(opened, bins, layout)),
        _describe_lengths(np.concatenate(lengths)),
        tuple(find_rejected(opened.stores)),
        tuple(_show_row(row, layout, tokenizer, opened.names[row.source]) for row in rows),
    )


def find_rejected(stores: Sequence[TokenStore]) -> Iterator[RejectedPreview]:
    """Find the first rejected rows of each kind, ten of a kind."""
    wanted = {
        is_bad: min(_MAX_PLACES, sum(_count_rejected(store, is_bad) for store in stores))
        for is_bad in (True, False)
    }
    found: dict[bool, list[RejectedPreview]] = {True: [], False: []}
    for row in _read_rejected(stores):
        kind = row.reason != NOTHING_TO_LEARN
        if len(found[kind]) < wanted[kind]:
            found[kind].append(row)
        # The file of a large source may be large, too.
        if all(len(found[kind]) == wanted[kind] for kind in wanted):
            break
    yield from found[True]
    yield from found[False]


def _show_row(
    row: Row, layout: Layout, tokenizer: "PreTrainedTokenizerBase", source: str
) -> ExamplePreview:
    """Decode what is tokens, and put the rest, which is learned, behind it."""
    tokens, rest = layout.show(row)
    shown = decode_row(tokens, tokenizer, source)
    if not rest:
        return shown
    text = f"{shown.text}\n{rest}"
    span = (len(text) - len(rest), len(text))
    learned = int(np.count_nonzero(row.supervised))
    return replace(shown, text=text, spans=(*shown.spans, span), supervised_tokens=learned)


def decode_row(row: Row, tokenizer: "PreTrainedTokenizerBase", source: str) -> ExamplePreview:
    """Decode a row and find the characters of its supervised tokens.

    Where a character's bytes are several tokens and only some of them are supervised, the
    character belongs to the side of its last token.
    """
    ids = row.input_ids.tolist()
    text = _decode(ids, tokenizer)
    spans, start, place = [], 0, 0
    for is_supervised, run in groupby(row.supervised.tolist()):
        place += len(list(run))
        # Decoding a run alone would lose the space that some tokenizers put before its first word.
        end = len(os.path.commonprefix([_decode(ids[:place], tokenizer), text]))
        end = len(text) if place == len(ids) else max(end, start)
        if is_supervised and end > start:
            spans.append((start, end))
        start = end
    learned = int(np.count_nonzero(row.supervised))
    return ExamplePreview(source, text, tuple(spans), len(ids), learned)


def _decode(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def _count_rejected(store: TokenStore, is_bad: bool) -> int:
    return store.info.bad_rows if is_bad else store.info.unsupervised_rows


def _read_rejected(stores: Sequence[TokenStore]) -> Iterator[RejectedPreview]:
    for store in stores:
        with store.rejected_file.open(encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                yield RejectedPreview(entry["origin"], entry["reason"])


def _choose_examples(rows: Rows, numbers: npt.NDArray[np.int64], num_examples: int) -> list[int]:
    """Choose the first rows of each part in turn."""
    part = rows.find_part(numbers)
    per_part = [numbers[part == n][:num_examples].tolist() for n in range(len(rows.stores))]
    in_turn = [number for turn in zip_longest(*per_part) for number in turn if number is not None]
    return in_turn[:num_examples]


def _describe_sources(opened: Opened, bins: Bins, layout: Layout) -> Iterator[SourcePreview]:
    part = opened.train.find_part(bins.rows)
    lengths = count_tokens(layout, opened.train)[bins.rows]
    taken = np.bincount(part, weights=lengths, minlength=len(opened.parts)).astype(np.int64)
    stores = opened.train.stores
    for n, (found, store, tokens) in enumerate(zip(opened.parts, stores, taken, strict=True)):
        own = pick_layout(layout, n)
        yield _describe_source(found, store, own, "data", int(tokens), int(taken.sum()))
    if opened.has_own_evaluation:
        stores = opened.evaluation.stores
        for n, (found, store) in enumerate(zip(opened.eval_parts, stores, strict=True)):
            yield _describe_source(found, store, pick_layout(layout, n), "eval_data", 0, 1)


def _describe_source(
    part: Part, store: TokenStore, layout: Layout, setting: str, epoch_tokens: int, all_tokens: int
) -> SourcePreview:
    return SourcePreview(
        part.name,
        setting,
        part.weight,
        tuple(source.name for source in part.sources),
        len(store),
        int(layout.count_tokens(store.lengths).sum()),
        store.info.supervised_tokens,
        epoch_tokens,
        epoch_tokens / max(all_tokens, 1),
    )


def _describe_lengths(lengths: Counts) -> LengthsPreview:
    shortest, longest = int(lengths.min()), int(lengths.max())
    width = 1
    while (longest - 1) // width - (shortest - 1) // width >= _MAX_BINS:
        width *= 2
    start = (shortest - 1) // width * width + 1
    counts = np.bincount((lengths - start) // width).tolist()
    firsts = range(start, longest + 1, width)
    bins = tuple((n, n + width - 1, count) for n, count in zip(firsts, counts, strict=True))
    median, mean = float(np.median(lengths)), float(lengths.mean())
    return LengthsPreview(shortest, median, mean, longest, bins)
