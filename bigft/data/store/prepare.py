"""Tokenise once per host into stores in the cache; every rank of the host maps them."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bigft.data.cache import default_cache_dir, write_once
from bigft.data.formats.hints import explain_formats, is_about_columns
from bigft.data.layouts.layout import BuildLayout, Layout
from bigft.data.layouts.next_token import NextToken
from bigft.data.section import DataSection
from bigft.data.sources.find import Part, Source
from bigft.data.sources.progress import Progress, Tell, tell_nobody
from bigft.data.store.chunks import (
    NOTHING_TO_LEARN,
    ChunkTokenizer,
    cut_into_chunks,
    tokenize_chunks,
)
from bigft.data.store.rejected import Rejected
from bigft.data.store.store import StoreInfo, StoreWriter, TokenStore, compute_store_digest
from bigft.data.tokens.tokenize import find_chat_template
from bigft.distributed.place import HERE
from bigft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VERSION = "5"
"""Part of every digest; to be raised whenever the same data give other rows."""

_MAX_EXAMPLES = 10
"""Further bad rows that an error names."""

_SECONDS_FOR_MORE = 20.0
"""How long to go on looking for them."""

_MAX_UNSUPERVISED_SHARE = 0.2
"""More rows than this without anything to learn are a mistake in the settings, not in the rows."""

# Below this, starting processes takes longer than the work.
_PARALLEL_BYTES = 16 << 20

_logger = logging.getLogger(__name__)


def open_store(
    part: Part,
    section: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    tell: Tell = tell_nobody,
    lay_out: BuildLayout = NextToken,
) -> TokenStore:
    """Open the tokenised rows of a part; tokenise first if they are not in the cache.

    A second process that wants the same rows waits for the first.

    Args:
        part: What to read.
        section: How to read it.
        tokenizer: Of the model.
        tell: Shows a line now and then where tokenising takes long.
        lay_out: Makes rows and batches of examples.

    Raises:
        DataError: The data are missing, bad or empty, or the cache cannot be written.
    """
    found = [
        f"{source.kind}:{source.name}:{source.compute_fingerprint()}" for source in part.sources
    ]
    layout = lay_out(tokenizer, section)
    digest = compute_store_digest([*describe_request(section, tokenizer, layout), *found])
    folder = default_cache_dir(section.loading.cache_dir) / "tokens" / digest
    if not folder.is_dir():
        with _locked(folder):
            if not folder.is_dir():
                write_once(folder, partial(_write_store, part, section, layout, tell))
    return TokenStore(folder)


def describe_request(
    section: DataSection, tokenizer: "PreTrainedTokenizerBase", layout: Layout
) -> Iterator[str]:
    """Describe everything but the data that tokenised rows depend on."""
    yield _VERSION
    if described := layout.describe():
        yield described
    settings = section.model_dump(
        include={"max_length", "overlong", "train_on", "format", "columns", "on_bad_row", "clean"}
    )
    # These choose among rows and change none.
    for name in ("test_fraction", "similarity"):
        del settings["clean"][name]
    settings["clean"]["duplicates"] = section.clean.duplicates == "drop_near"
    if section.clean.augment.copies == 0:
        del settings["clean"]["augment"]["seed"]
    yield json.dumps(settings, sort_keys=True)
    augment = section.clean.augment
    if augment.copies and augment.synonyms is not None:
        # A file that cannot be read is refused where it is used.
        with contextlib.suppress(OSError):
            yield hashlib.blake2b(Path(augment.synonyms).read_bytes()).hexdigest()
    yield find_chat_template(tokenizer)
    yield find_chat_template(tokenizer, tools=[{}])
    yield json.dumps([tokenizer.eos_token_id, sorted(tokenizer.all_special_ids)])
    if tokenizer.is_fast:
        yield tokenizer.backend_tokenizer.to_str()
    else:
        yield json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes of this host from doing the same work."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError:
        # `write_once` will say what is wrong with the folder.
        yield
        return
    try:
        with file:
            with contextlib.suppress(OSError):  # Some network file systems have no locks.
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
    finally:
        Path(file.name).unlink(missing_ok=True)


def _write_store(
    part: Part,
    section: DataSection,
    layout: Layout,
    tell: Tell,
    folder: Path,
) -> None:
    start = time.monotonic()
    flag = part.sources[0].flag
    progress = Progress(part.name, part.sources, tell)
    num_proc = choose_num_proc(section.loading.num_proc, part.sources)
    problems = _Problems(section, flag)
    with contextlib.closing(StoreWriter(folder)) as writer:
        tokenizing = tokenize_chunks(
            ChunkTokenizer(section, layout), cut_into_chunks(progress.read()), num_proc
        )
        for chunk in tokenizing:
            problems.see(chunk.rejected)
            writer.append(chunk)
            HERE.beat()
            progress.show(writer.info.records)
            if problems.are_enough:
                break
        tokenizing.close()
        problems.judge(writer.info)
        writer.finish()
        info = writer.info
    if not info.rows:
        losses = describe_losses(info, section.overlong)
        raise DataError(f"{describe_part(part)}: no row is left: {losses}")
    _logger.info(
        "tokenised %d rows, %d tokens in %.1f s", info.rows, info.tokens, time.monotonic() - start
    )


def describe_part(part: Part) -> str:
    """Name a part for an error: the setting, and the first of its sources."""
    more = f" and {len(part.sources) - 1:,} more" if len(part.sources) > 1 else ""
    return f"{part.sources[0].flag}={part.sources[0].name}{more}"


def describe_losses(info: StoreInfo, overlong: str) -> str:
    """Say in one line what became of the records that are no rows."""
    losses = {
        "bad": info.bad_rows,
        "dropped by overlong": info.overlong_rows if overlong == "drop" else 0,
        "without a token to learn": info.unsupervised_rows,
        **{name.replace("_", " "): count for name, count in info.touched.items() if count},
    }
    shown = [f"{count:,} {name}" for name, count in losses.items() if count]
    return f"of {info.records:,} records, {', '.join(shown) or 'none was lost'}"


def choose_num_proc(num_proc: int | None, sources: Sequence[Source]) -> int:
    """Choose how many processes tokenise: those asked for, else as many as the data are worth."""
    if num_proc is not None:
        return num_proc
    files = [Path(source.name) for source in sources if source.kind == "file"]
    # Text shrinks to about a quarter when it is compressed.
    sizes = [file.stat().st_size * (4 if file.suffix in (".gz", ".zst") else 1) for file in files]
    cores = len(os.sched_getaffinity(0))
    return cores if cores > 1 and sum(sizes) >= _PARALLEL_BYTES else 0


def refuse_bad_rows(rejected: list[Rejected]) -> None:
    """Refuse the first row that could not be read; those without a token to learn pass.

    Raises:
        DataError: Names the row.
    """
    for row in rejected:
        if row.is_bad:
            raise DataError(f"--data: {row.origin}: {row.reason}; {_REPAIR}")


_REPAIR = (
    "mend these rows, or leave such rows out with --data.on_bad_row skip (they are kept in"
    " rejected.jsonl of the run folder)"
)


class _Problems:
    """Judges what could not be turned into tokens."""

    def __init__(self, section: DataSection, flag: str) -> None:
        self._section = section
        self._flag = flag
        self._bad: list[Rejected] = []
        self._silent: list[str] = []
        self._first_seen: float | None = None

    def see(self, rejected: list[Rejected]) -> None:
        silent = [row.origin for row in rejected if not row.is_bad]
        bad = [row for row in rejected if row.is_bad]
        self._silent = (self._silent + silent)[:_MAX_EXAMPLES]
        self._bad = (self._bad + bad)[: 1 + _MAX_EXAMPLES]
        if self._bad and self._first_seen is None:
            self._first_seen = time.monotonic()

    @property
    def are_enough(self) -> bool:
        """Whether reading on would tell the user nothing more."""
        if self._section.on_bad_row == "skip" or self._first_seen is None:
            return False
        waited = time.monotonic() - self._first_seen
        return len(self._bad) > _MAX_EXAMPLES or waited > _SECONDS_FOR_MORE

    def judge(self, info: StoreInfo) -> None:
        """Refuse what the settings do not allow.

        Raises:
            DataError: Names the rows.
        """
        if self._bad and (self._section.on_bad_row == "error" or info.bad_rows == info.records):
            raise DataError(self._describe_bad(info))
        records = max(info.records - info.bad_rows, 1)
        share = info.unsupervised_rows / records
        if share > _MAX_UNSUPERVISED_SHARE and self._section.on_bad_row == "error":
            raise DataError(self._describe_silent(info, share))

    def _describe_bad(self, info: StoreInfo) -> str:
        lines: dict[str, list[str]] = {}
        for row in self._bad:
            lines.setdefault(row.reason, []).append(row.origin)
        shown = [
            f"{self._flag}: {origins[0]}: {reason}"
            + (f" (also {', '.join(origins[1:])})" if origins[1:] else "")
            for reason, origins in lines.items()
        ]
        # Settings are wrong, not rows, where all of them have the wrong columns.
        is_misread = info.bad_rows == info.records and all(map(is_about_columns, lines))
        return "\n".join([*shown, explain_formats(info.records) if is_misread else _REPAIR])

    def _describe_silent(self, info: StoreInfo, share: float) -> str:
        return (
            f"{self._flag}: {info.unsupervised_rows:,} rows ({share:.0%}) have {NOTHING_TO_LEARN}:"
            f" {', '.join(self._silent)}; each has no answer, or its answer begins"
            f" after --max_length={self._section.max_length} tokens. Raise --max_length, use"
            " --data.overlong split, or leave such rows out with --data.on_bad_row skip"
        )
