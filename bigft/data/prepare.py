"""Tokenise once per host into a store in the cache; every rank of the host maps that store."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigft.data.cache import default_cache_dir, write_once, write_text_atomically
from bigft.data.example import Conversation, Example, compute_digest
from bigft.data.formats.table import Format, find_format, load_format
from bigft.data.section import DataSection
from bigft.data.sources import Source, SourceRecord, find_sources
from bigft.data.store import StoreInfo, StoreWriter, TokenStore, compute_store_digest
from bigft.data.tokenize import find_chat_template, tokenize
from bigft.errors import BigftError, DataError, raise_together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VERSION = "1"
"""Part of every digest; to be raised whenever the same data give other rows."""

_MAX_PROBLEMS = 10

_logger = logging.getLogger(__name__)


def open_stores(
    specs: list[tuple[str, str]],
    section: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    local_rank: int,
    barrier: Callable[[], None],
) -> list[TokenStore]:
    """Open one store per (spec, flag); local rank 0 makes what is missing, the others wait.

    Raises:
        DataError: The data are missing, bad or empty; raised on every rank of the host.

    Collective: all ranks; `barrier` is called once.
    """
    handoff = _find_handoff(specs, section, tokenizer)
    if local_rank == 0:
        make_all = partial(_make_stores, specs, section, tokenizer)
        return _make_and_tell(make_all, handoff, barrier)
    barrier()
    return _open_as_told(handoff)


def open_store(
    spec: str, flag: str, section: DataSection, tokenizer: "PreTrainedTokenizerBase"
) -> TokenStore:
    """Open the tokenised rows of `spec`; tokenise first if they are not in the cache.

    Raises:
        DataError: The data are missing, bad or empty, or the cache cannot be written.
    """
    sources = find_sources(spec, flag)
    found = [f"{source.kind}:{source.name}:{source.compute_fingerprint()}" for source in sources]
    digest = compute_store_digest([*_describe_request(section, tokenizer), *found])
    folder = default_cache_dir(section.loading.cache_dir) / "tokens" / digest
    if not folder.is_dir():
        write_once(folder, partial(_write_store, sources, section, tokenizer))
    return TokenStore(folder)


# Writing a store.


def _write_store(
    sources: list[Source], section: DataSection, tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> None:
    start = time.monotonic()
    problems: list[str] = []
    with contextlib.closing(StoreWriter(folder)) as writer:
        for item, flag in ((item, source.flag) for source in sources for item in source.read()):
            try:
                example = _read_example(item, flag, writer.info)
                rows = tokenize(
                    example, tokenizer, train_on=section.train_on, max_length=section.max_length
                )
            except ValueError as error:
                problems.append(f"{flag}: {item.origin}: {error}")
                if len(problems) == _MAX_PROBLEMS:
                    problems.append("there may be more bad records; reading stopped here")
                    break
                continue
            writer.info.conversations += isinstance(example, Conversation)
            writer.append(rows, compute_digest(example))
        if problems:
            raise_together(DataError, problems)
        writer.finish()
        info = writer.info
    _logger.info(
        "tokenised %d rows, %d tokens in %.1f s; %d rows cut off, %d without a supervised token",
        *(info.rows, info.tokens, time.monotonic() - start, info.truncated_rows),
        info.rejected_rows,
    )


def _read_example(item: SourceRecord, flag: str, info: StoreInfo) -> Example:
    try:
        found, record = _choose_format(item.record)
    except DataError as error:
        raise DataError(f"{flag}: {item.origin}: {error}") from None
    example = found.read(record)
    info.formats[found.NAME] = info.formats.get(found.NAME, 0) + 1
    return example


def _choose_format(record: Mapping[str, Any]) -> tuple[Format, Mapping[str, Any]]:
    try:
        return load_format(find_format(record.keys())), record
    except DataError:
        # Columnar files with rows of several formats fill what a row lacks with null.
        filled = {name: value for name, value in record.items() if value is not None}
        if len(filled) == len(record) or not filled:
            raise
        return load_format(find_format(filled)), filled


def _describe_request(section: DataSection, tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    yield from (_VERSION, str(section.max_length), section.train_on)
    yield find_chat_template(tokenizer)
    yield json.dumps([tokenizer.eos_token_id, sorted(tokenizer.all_special_ids)])
    if tokenizer.is_fast:
        yield tokenizer.backend_tokenizer.to_str()
    else:
        yield json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)


# Sharing the result between the ranks of a host.


def _make_stores(
    specs: list[tuple[str, str]], section: DataSection, tokenizer: "PreTrainedTokenizerBase"
) -> list[TokenStore]:
    stores, problems = [], []
    for spec, flag in specs:
        try:
            stores.append(open_store(spec, flag, section, tokenizer))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise_together(DataError, problems)
    return stores


def _find_handoff(
    specs: list[tuple[str, str]], section: DataSection, tokenizer: "PreTrainedTokenizerBase"
) -> Path:
    request = compute_store_digest([*_describe_request(section, tokenizer), json.dumps(specs)])
    return default_cache_dir(section.loading.cache_dir) / "handoff" / f"{request}.json"


def _make_and_tell(
    make_all: Callable[[], list[TokenStore]], handoff: Path, barrier: Callable[[], None]
) -> list[TokenStore]:
    """Leave a note for the other ranks of the host, of success or failure, and let them go on.

    The note is a file, so it works before any process group exists. Every run writes it anew
    before the barrier, so the note of an earlier run is never read.
    """
    try:
        stores = make_all()
        folders = [str(store.folder.resolve()) for store in stores]
        write_text_atomically(handoff, json.dumps({"stores": folders}))
    except Exception as error:
        text = str(error) if isinstance(error, BigftError) else f"{type(error).__name__}: {error}"
        # If the cache cannot be written, that is the error already, and no note is left.
        with contextlib.suppress(DataError):
            write_text_atomically(handoff, json.dumps({"error": text}))
        raise
    finally:
        barrier()
    return stores


def _open_as_told(handoff: Path) -> list[TokenStore]:
    try:
        note = json.loads(handoff.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"local rank 0 left no note about the data: {error}") from error
    if "error" in note:
        raise DataError(note["error"])
    return [TokenStore(Path(folder)) for folder in note["stores"]]
