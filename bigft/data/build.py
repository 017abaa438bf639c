"""Settings in, loaders out."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigft.data.cache import default_cache_dir, write_text_atomically
from bigft.data.counts import count_terms, count_tokens
from bigft.data.layouts.layout import BuildLayout, Layout
from bigft.data.layouts.next_token import NextToken
from bigft.data.layouts.several import Several
from bigft.data.loading.batches import build_collate
from bigft.data.loading.loader import EvalLoader, Loader, Share, StoreLoader
from bigft.data.loading.stream import StreamLoader
from bigft.data.open import (
    Opened,
    describe,
    describe_stores,
    find_names,
    find_parts,
    open_all,
    open_rows,
)
from bigft.data.order.select import select_all
from bigft.data.readers.raw import RawRow
from bigft.data.section import DataSection, seed_copies
from bigft.data.sources.find import Part
from bigft.data.sources.progress import Tell, tell_nobody
from bigft.data.store.chunks import ChunkTokenizer
from bigft.data.store.prepare import describe_request, refuse_bad_rows
from bigft.data.store.rejected import Rejected
from bigft.data.store.rows import Rows
from bigft.data.store.store import TokenStore, compute_store_digest
from bigft.data.tokens.tokenize import find_chat_template
from bigft.errors import BigftError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """What training needs of the data."""

    train: Loader
    evaluation: EvalLoader | None
    """None when nothing is held out and `--eval_data` is absent."""

    sources: tuple[str, ...]
    """Names of the parts of the training data, by their numbers in batches."""

    eval_sources: tuple[str, ...]
    info: dict[str, Any]
    """Counts for people and for `bigft data --json`."""

    rejected_files: tuple[Path, ...]
    """Raw rows that became no tokens, one JSON object per line; empty files included."""

    rows: Rows | None = None
    """All rows of `--data`; None when streaming."""


def build_data(
    section: DataSection,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    share: Share,
    local_rank: int,
    eval_batch_size: int,
    seed: int,
    barrier: Callable[[], None],
    reject: Callable[[list[Rejected]], None] = refuse_bad_rows,
    tell: Tell = tell_nobody,
    lay_out: BuildLayout = NextToken,
) -> Data:
    """Build the loaders of a run; local rank 0 tokenises first, where that was not done before.

    A tokenizer without a chat template gets ChatML if there are conversations, so that the
    exported tokenizer has the template that was trained with.

    Args:
        section: Settings of the data.
        tokenizer: The same on every rank.
        share: What this rank gets of each step.
        local_rank: This rank on its host.
        eval_batch_size: Sequences per rank and evaluation batch.
        seed: Decides the order, and changed copies that have no seed of their own.
        barrier: Returns when every rank has called it.
        reject: When streaming, told of raw rows that became no tokens.
        tell: Shows a line now and then where tokenising takes long.
        lay_out: Makes rows and batches of examples.

    Raises:
        DataError: The data are missing, bad or empty; raised on every rank.

    Collective: all ranks; `barrier` is called once, and when streaming not at all.
    """
    section = seed_copies(section, seed)
    if section.loading.streaming:
        return _build_streamed(section, tokenizer, share, eval_batch_size, seed, reject, lay_out)
    opened = _open_shared(
        section,
        tokenizer,
        seed,
        tell,
        lay_out,
        local_rank=local_rank,
        barrier=barrier,
        apart=share.inner_steps > 0,
    )
    layout = lay_out(tokenizer, section)
    _set_chat_template(tokenizer, opened.stores)
    selection = opened.selection
    episode = share.inner_steps * share.global_batch_size
    plan = selection.build_plan(opened.train, section, seed=seed, episode=episode)
    train = StoreLoader(
        opened.train,
        plan,
        share,
        seed=seed,
        collate=build_collate(layout, len(opened.names)),
        num_workers=section.loading.num_workers,
        order="given" if share.inner_steps else _choose_order(layout, section),
        terms=count_terms(layout, opened.train),
        tokens=count_tokens(layout, opened.train),
    )
    evaluation = EvalLoader(
        opened.evaluation,
        selection.evaluation,
        replace_share(share, eval_batch_size),
        collate=build_collate(layout, len(opened.eval_names)),
        terms=count_terms(layout, opened.evaluation),
        is_shuffled=isinstance(layout, Several),
    )
    return Data(
        train,
        evaluation if len(selection.evaluation) else None,
        opened.names,
        opened.eval_names,
        describe(opened, plan.bins(0), section, layout),
        tuple(store.rejected_file for store in opened.stores),
        opened.train,
    )


def _build_streamed(
    section: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    share: Share,
    eval_batch_size: int,
    seed: int,
    reject: Callable[[list[Rejected]], None],
    lay_out: BuildLayout,
) -> Data:
    """Build a loader of a stream; only evaluation data are tokenised first."""
    parts = find_parts(section.train, "--data", section)
    if any(part.weight is not None for part in parts):
        raise DataError(
            f"--data={section.train}: weights need all rows at once, so not with"
            " --data.loading.streaming true; leave the weights out, or streaming"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = find_chat_template(tokenizer)
    layout = lay_out(tokenizer, section)
    train = StreamLoader(
        [partial(_read_part, part) for part in parts],
        ChunkTokenizer(section, layout),
        share,
        packing=section.packing,
        max_length=section.max_length,
        seed=seed,
        collate=build_collate(layout, len(parts)),
        reject=refuse_bad_rows if section.on_bad_row == "error" else reject,
        runs_ahead=section.loading.num_workers > 0,
    )
    evaluation: EvalLoader | None = None
    eval_names: tuple[str, ...] = ()
    if section.eval is not None:
        with_eval = section.model_copy(update={"train": section.eval})
        evaluation, _, eval_names = build_evaluation(
            with_eval, tokenizer=tokenizer, share=replace_share(share, eval_batch_size),
            flag="--eval_data", lay_out=lay_out,
        )  # fmt: skip
    found = [source.compute_fingerprint() for part in parts for source in part.sources]
    digest = compute_store_digest([*describe_request(section, tokenizer, layout), *found])
    names = find_names(parts)
    return Data(train, evaluation, names, eval_names, {"format": "streamed", "digest": digest}, ())


def _read_part(part: Part) -> Iterator[RawRow]:
    for source in part.sources:
        yield from source.read(streaming=True)


def replace_share(share: Share, eval_batch_size: int) -> Share:
    """Say how an evaluation is dealt out: without accumulation, in batches of its own size."""
    return replace(share, micro_batch_size=eval_batch_size, gradient_accumulation_steps=1)


def build_evaluation(
    section: DataSection,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    share: Share,
    flag: str = "--data",
    lay_out: BuildLayout = NextToken,
) -> tuple[EvalLoader, dict[str, Any], tuple[str, ...]]:
    """Build batches of everything in `section.train`, for scoring a model.

    Returns:
        The loader, counts, and the names of the parts.

    Raises:
        DataError: The data are missing, bad or empty.
    """
    parts, rows = open_rows(section.train, flag, section, tokenizer, lay_out=lay_out)
    _set_chat_template(tokenizer, rows.stores)
    bins = select_all(rows, section)
    layout = lay_out(tokenizer, section)
    collate = build_collate(layout, len(parts))
    loader = EvalLoader(rows, bins, share, collate=collate, terms=count_terms(layout, rows))
    return loader, describe_stores(rows.stores), find_names(parts)


# Sharing the result between the ranks of a host.


def _open_shared(
    section: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    tell: Tell,
    lay_out: BuildLayout,
    *,
    local_rank: int,
    barrier: Callable[[], None],
    apart: bool = False,
) -> Opened:
    """Let local rank 0 make what is missing; the others wait, and then find it in the cache.

    What went wrong is left in a file, so this works before any process group exists. Every run
    writes it anew before the barrier, so the note of an earlier run is never read.
    """
    layout = lay_out(tokenizer, section)
    request = [*describe_request(section, tokenizer, layout), section.model_dump_json(), str(seed)]
    folder = default_cache_dir(section.loading.cache_dir) / "handoff"
    note = folder / f"{compute_store_digest(request)}.json"
    if local_rank != 0:
        barrier()
        _raise_noted(note)
        return open_all(section, tokenizer, seed, lay_out=lay_out, apart=apart)
    error_text = None
    try:
        return open_all(section, tokenizer, seed, tell, lay_out, apart=apart)
    except Exception as error:
        error_text = (
            str(error) if isinstance(error, BigftError) else f"{type(error).__name__}: {error}"
        )
        raise
    finally:
        # If the cache cannot be written, that is the error already, and no note is left.
        with contextlib.suppress(DataError):
            write_text_atomically(note, json.dumps({"error": error_text}))
        barrier()


def _raise_noted(note: Path) -> None:
    try:
        text = json.loads(note.read_text(encoding="utf-8"))["error"]
    except (OSError, ValueError) as error:
        raise DataError(f"local rank 0 left no note about the data: {error}") from error
    if text is not None:
        raise DataError(text)


# Parts.


def _choose_order(layout: Layout, section: DataSection) -> str:
    # By length, whole steps would go to the task with the short texts.
    is_padded = section.packing == "none" and not isinstance(layout, Several)
    return "by_length" if is_padded else "shuffled"


def _set_chat_template(
    tokenizer: "PreTrainedTokenizerBase", stores: tuple[TokenStore, ...]
) -> None:
    if tokenizer.chat_template is None and any(store.info.conversations for store in stores):
        tokenizer.chat_template = find_chat_template(tokenizer)
        _logger.warning(
            "the tokenizer has no chat template; conversations are written as ChatML, and the "
            "exported tokenizer gets that template"
        )
