"""A checkpoint -> one Hugging Face folder, in memory that does not grow with the model.

    state files | DeepSpeed's files --layout--> slices --stream--> safetensors --checked--> OUT

Nothing is gathered and neither torch nor DeepSpeed is imported: reading goes by file positions
(`layout`), writing into files whose header and length are there from the start (`stream`).
"""

import errno
import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigft import __version__
from bigft.checkpoint.assets import check_config, copy_assets, write_model_card
from bigft.checkpoint.cast import is_floating
from bigft.checkpoint.files import sync
from bigft.checkpoint.layout import Layout, SourceTensor
from bigft.checkpoint.parts import PARTS_NAME, Piece, link, list_parts, share_files, split_tensors
from bigft.checkpoint.safetensors_out import (
    Entry,
    PlannedFile,
    create_files,
    plan_files,
)
from bigft.checkpoint.source import Source, find_source
from bigft.checkpoint.state_layout import STATE_INDEX_NAME, read_state_layout
from bigft.checkpoint.stock_layout import read_stock_layout
from bigft.checkpoint.stream import reread, write_tensors
from bigft.checkpoint.swap import MARKER_NAME, check_output, swap_into_place, unfinished_folder
from bigft.checkpoint.verify import check_files
from bigft.errors import CheckpointError, ConfigError
from bigft.units import format_bytes

logger = logging.getLogger(__name__)

EXPORT_DTYPES = ("auto", "bfloat16", "float16", "float32")

# Two more than there are cores: while some wait for the disk, others cast. 16 keep the memory below
# 200 MB and an NVMe drive of 7 GB/s busy.
DEFAULT_THREADS = min(16, (os.cpu_count() or 1) + 2)

Progress = Callable[[str, int, int], object]
"""Called with what is being done, the bytes done since the last call, and the bytes in all."""


@dataclass(frozen=True)
class Consolidated:
    """A finished export."""

    path: Path
    source: Path
    """Folder with the state files or DeepSpeed's files that were read."""
    parameters: int
    """Elements of the parameters; tied ones count once, buffers do not count."""
    bytes: int
    """Size of the safetensors files."""
    seconds: float
    peak_rss_bytes: int
    """Peak resident memory of this process, the interpreter included."""
    verified: bool
    """Names, shapes, formats, places and the index were read back, and every value is finite."""
    reread: bool
    """Every byte was read again and is what was written."""


def consolidate(
    source: Path | Source,
    output_dir: Path,
    *,
    dtype: str = "auto",
    max_shard_bytes: int = 5 * 10**9,
    assets: Path | None = None,
    threads: int = DEFAULT_THREADS,
    verify: bool = False,
    is_source_verified: bool = False,
    progress: Progress = lambda what, num_bytes, total: None,
) -> Consolidated:
    """Write the model of a checkpoint as one Hugging Face folder.

    The values are checked while they are written, the result is re-opened before it gets its name,
    and a previous export of that name is replaced in one step. Interrupted, it leaves the name as
    it was; the next start removes what is left.

    Args:
        source: Run folder (its newest committed checkpoint), checkpoint folder, or a stock
            DeepSpeed checkpoint folder; or what was found and verified already.
        output_dir: Name of the result; missing, empty or a previous export.
        dtype: Format of the parameters and of floating point buffers; `auto` is the one the model
            was trained in. Other buffers keep theirs.
        max_shard_bytes: Largest safetensors file, unless one tensor is larger.
        assets: Folder with `config.json` and the tokenizer, instead of the checkpoint's own. A
            stock checkpoint has none: without it only weights are written.
        threads: Blocks in flight.
        verify: Whether to read the finished files once more and compare digests.
        is_source_verified: Whether the caller knows that a committed checkpoint's files are what
            its manifest says; they are read and compared otherwise.
        progress: Told how far the work is, from one thread at a time.

    Raises:
        CheckpointError: The checkpoint is damaged or incomplete, the disk is full, the output
            folder holds something else, or a value is not finite.
        ConfigError: The output folder cannot be written, or `dtype` is no known format.

    Memory: `threads` times 10 MiB, and the checkpoint's metadata.
    """
    started = time.perf_counter()
    if dtype not in EXPORT_DTYPES:
        raise ConfigError(f"dtype={dtype!r}: give one of {', '.join(EXPORT_DTYPES)}")
    output = output_dir.resolve()
    check_output(output)
    found = source
    if not isinstance(found, Source):
        found = find_source(found, is_digest_checked=not is_source_verified)
    if assets and found.assets and list_parts(found.assets):
        raise ConfigError(
            f"--model {assets}: the checkpoint has several heads, each with a configuration of its"
            " own. Leave --model out"
        )
    found = replace(found, assets=assets or found.assets)
    layout = _read_layout(found.folder)
    export_dtype = layout.training_dtype if dtype == "auto" else dtype
    pieces = split_tensors(layout, found.assets)
    if assets:
        check_config(assets, {one.name: one.shape for piece in pieces for one in piece.tensors})
    planned = _plan_pieces(pieces, export_dtype, max_shard_bytes)
    num_bytes = sum(file.file_bytes for one in planned for file in one.files)
    num_parameters = sum(one.numel for one in layout.tensors if not one.is_buffer)
    try:
        with unfinished_folder(output) as folder:
            # Now: what a killed start left there is gone.
            _check_space(folder, num_bytes)
            for one in planned:
                (folder / one.piece.name).mkdir(exist_ok=True)
                create_files(folder / one.piece.name, one.files, one.shared)
            _write_weights(folder, planned, threads, verify, progress)
            _write_rest(folder, found, layout, planned, export_dtype, num_parameters)
            _sync_tree(folder)
            for one in planned:
                check_files(folder / one.piece.name, one.every)
            swap_into_place(folder, output)
    except OSError as error:
        raise _explain(error, output) from error
    return Consolidated(
        path=output,
        source=Path(found.name) if found.name else found.folder,
        parameters=num_parameters,
        bytes=num_bytes,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=_read_peak_rss(),
        verified=True,
        reread=verify,
    )


def _read_layout(folder: Path) -> Layout:
    is_state = (folder / STATE_INDEX_NAME).is_file()
    return read_state_layout(folder) if is_state else read_stock_layout(folder)


@dataclass(frozen=True)
class _Planned:
    """The files of one folder."""

    piece: Piece
    files: tuple[PlannedFile, ...]
    """Its own."""
    shared: tuple[PlannedFile, ...] = ()
    """Those of the body, under their names in this folder."""

    @property
    def every(self) -> tuple[PlannedFile, ...]:
        """All that are to be found there."""
        return self.shared + self.files


def _plan_pieces(pieces: list[Piece], dtype: str, max_shard_bytes: int) -> list[_Planned]:
    """Plan the files of the body, or of the whole model, and then those of the heads."""
    first, *heads = pieces
    files = plan_files([_plan_entry(one, dtype) for one in first.tensors], max_shard_bytes)
    planned = [_Planned(first, files)]
    for piece in heads:
        entries = [_plan_entry(one, dtype) for one in piece.tensors]
        own = plan_files(entries, max_shard_bytes) if entries else ()
        shared, named = share_files(files, own)
        planned.append(_Planned(piece, tuple(named), tuple(shared)))
    return planned


def _write_weights(
    folder: Path,
    planned: list[_Planned],
    threads: int,
    verify: bool,
    progress: Progress,
) -> None:
    total = sum(file.file_bytes for one in planned for file in one.files)
    digests = [
        write_tensors(
            one.piece.tensors,
            one.files,
            folder / one.piece.name,
            threads,
            with_digests=verify,
            advance=lambda num_bytes: progress("writing", num_bytes, total),
        )
        for one in planned
    ]
    for one in planned:
        for file in one.files:
            sync(folder / one.piece.name / file.name)
    for one, found in zip(planned, digests, strict=True):
        if verify:
            reread(
                one.files,
                folder / one.piece.name,
                found,
                threads,
                advance=lambda num_bytes: progress("verifying", num_bytes, total),
            )
    for one in planned:
        for source, target in zip(planned[0].files, one.shared, strict=False):
            link(folder / source.name, folder / one.piece.name / target.name)


def _plan_entry(tensor: SourceTensor, export_dtype: str) -> Entry:
    is_cast = not tensor.is_buffer or is_floating(tensor.dtype)
    return Entry(tensor.name, export_dtype if is_cast else tensor.dtype, tensor.shape)


def _write_rest(
    folder: Path,
    found: Source,
    layout: Layout,
    planned: list[_Planned],
    dtype: str,
    num_parameters: int,
) -> None:
    facts: dict[str, Any] = {"step": layout.step, "zero_stage": layout.zero_stage, **found.facts}
    if found.assets:
        _copy_all(found.assets, folder, [one.piece.name for one in planned[1:]], dtype)
    else:
        logger.warning(
            "%s has no config.json and no tokenizer: only weights are written. Give a model "
            "folder with --model to make the result loadable",
            found.folder,
        )
    own = [
        sum(tensor.numel for tensor in one.piece.tensors if not tensor.is_buffer)
        for one in planned[1:]
    ]
    body = num_parameters - sum(own)
    heads = [f"`{one.piece.name}/`" for one in planned[1:]]
    write_model_card(folder, {**facts, "heads": ", ".join(heads)}, dtype, body)
    for one, count in zip(planned[1:], own, strict=True):
        write_model_card(folder / one.piece.name, facts, dtype, body + count)
    marker = {
        "bigft": __version__,
        "source": found.name or str(found.folder.resolve()),
        "step": facts["step"],
        "dtype": dtype,
        "parameters": num_parameters,
    }
    (folder / MARKER_NAME).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _copy_all(assets: Path, folder: Path, parts: list[str], dtype: str) -> None:
    """Copy configuration and tokenizer; each part has its own configuration beside the rest."""
    copy_assets(assets, folder, dtype)
    for name in parts:
        copy_assets(assets, folder / name, dtype)
        copy_assets(assets / name, folder / name, dtype)
        (folder / name / PARTS_NAME).unlink()


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    # 16 MiB: configuration, tokenizer and card.
    if num_bytes + (16 << 20) > free:
        raise CheckpointError(
            f"{folder.parent}: {format_bytes(free)} free, the export needs"
            f" {format_bytes(num_bytes)}; free some space, choose another output folder, or export"
            " --dtype bfloat16"
        )


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _explain(error: OSError, output: Path) -> CheckpointError | ConfigError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"{output}: the disk is full or the quota is used up; free some space or choose "
            "another output folder. Nothing was left there"
        )
    place = Path(os.fsdecode(error.filename)) if error.filename else Path()
    partial = output.with_name(f"{output.name}.partial")
    if partial in (place, *place.parents) or place in partial.parents:
        return ConfigError(f"{output}: cannot be written: {error}; choose another output folder")
    return CheckpointError(f"{output}: not written, a file operation failed: {error}")


def _read_peak_rss() -> int:
    # VmHWM belongs to this program; ru_maxrss survives exec and can be the parent's.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
