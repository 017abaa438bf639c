"""ZeRO shards -> one verified Hugging Face folder, in memory that does not grow with the model.

    shards --pread--> chunk --cast--> chunk --pwrite--> safetensors --re-opened, checked--> OUT

Nothing is gathered and neither torch nor DeepSpeed is imported: reading goes by file positions
(`layout`), writing into files whose header and length are there from the start.
"""

import errno
import json
import logging
import os
import resource
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigft import __version__
from bigft.checkpoint.assets import copy_assets, read_config, write_model_card
from bigft.checkpoint.cast import is_floating
from bigft.checkpoint.files import sync
from bigft.checkpoint.layout import Layout, SourceTensor, read_layout
from bigft.checkpoint.safetensors_out import Entry, create_files, plan_files
from bigft.checkpoint.source import Source, find_shards
from bigft.checkpoint.stream import copy_tensors
from bigft.checkpoint.swap import MARKER_NAME, check_output, swap_into_place
from bigft.checkpoint.verify import verify_files
from bigft.errors import CheckpointError, ConfigError
from bigft.units import format_bytes

logger = logging.getLogger(__name__)

EXPORT_DTYPES = ("auto", "bfloat16", "float16", "float32")

# More threads than this gain nothing: 2 saturate a SATA disk, 8 an NVMe drive of 7 GB/s.
DEFAULT_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Consolidated:
    """A finished export."""

    path: Path
    parameters: int
    """Elements of the parameters; tied ones count once, buffers do not count."""
    bytes: int
    """Size of the safetensors files."""
    seconds: float
    peak_rss_bytes: int
    """Peak resident memory of this process, the interpreter included."""
    verified: bool


def consolidate(
    source: Path,
    output_dir: Path,
    *,
    dtype: str = "auto",
    max_shard_bytes: int = 5 * 10**9,
    assets: Path | None = None,
    threads: int = DEFAULT_THREADS,
) -> Consolidated:
    """Write the model of a ZeRO checkpoint as one Hugging Face folder.

    The result is re-opened and checked before it gets its name; a previous export of that name is
    replaced in one step.

    Args:
        source: Run folder (its newest committed checkpoint), checkpoint folder, or a stock
            DeepSpeed checkpoint folder.
        output_dir: Name of the result; missing, empty or a previous export.
        dtype: Format of the parameters and of floating point buffers; `auto` is the one the model
            was trained in. Other buffers keep theirs.
        max_shard_bytes: Largest safetensors file, unless one tensor is larger.
        assets: Folder with `config.json` and the tokenizer, instead of the checkpoint's own. A
            stock checkpoint has none: without it only weights are written.
        threads: Chunks in flight.

    Raises:
        CheckpointError: The checkpoint is damaged or incomplete, the disk is full, the output
            folder holds something else, or a value is not finite.
        ConfigError: The output folder cannot be written, or `dtype` is no known format.

    Memory: `threads` times 32 MiB, and the checkpoint's metadata.
    """
    started = time.perf_counter()
    if dtype not in EXPORT_DTYPES:
        raise ConfigError(f"dtype={dtype!r}: give one of {', '.join(EXPORT_DTYPES)}")
    output = output_dir.resolve()
    check_output(output)
    found = find_shards(source)
    found = replace(found, assets=assets or found.assets)
    layout = read_layout(found.shards)
    export_dtype = layout.training_dtype if dtype == "auto" else dtype
    tensors = _select_tensors(layout, found)
    files = plan_files([_plan_entry(one, export_dtype) for one in tensors], max_shard_bytes)
    _check_space(output, sum(file.file_bytes for file in files))
    num_parameters = sum(one.numel for one in layout.tensors if not one.is_buffer)
    temporary = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        create_files(temporary, files)
        copy_tensors(tensors, files, temporary, threads)
        _write_rest(temporary, found, layout, export_dtype, num_parameters)
        _sync_tree(temporary)
        verify_files(temporary, files, threads)
        swap_into_place(temporary, output)
    except OSError as error:
        raise _explain(error, temporary, output) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Consolidated(
        path=output,
        parameters=num_parameters,
        bytes=sum(file.file_bytes for file in files),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=_read_peak_rss(),
        verified=True,
    )


def _select_tensors(layout: Layout, found: Source) -> list[SourceTensor]:
    """Ties are written once, unless the configuration says that nothing is tied."""
    tensors = list(layout.tensors)
    config = read_config(found.assets) if found.assets else {}
    if config.get("tie_word_embeddings") is False:
        # Then transformers would fill the missing names with random values.
        kept = {one.name: one for one in tensors}
        tensors += [replace(kept[to], name=name) for name, to in layout.aliases.items()]
    return tensors


def _plan_entry(tensor: SourceTensor, export_dtype: str) -> Entry:
    is_cast = not tensor.is_buffer or is_floating(tensor.dtype)
    return Entry(tensor.name, export_dtype if is_cast else tensor.dtype, tensor.shape)


def _write_rest(
    folder: Path, found: Source, layout: Layout, dtype: str, num_parameters: int
) -> None:
    facts: dict[str, Any] = {"step": layout.step, "zero_stage": layout.zero_stage, **found.facts}
    if found.assets:
        copy_assets(found.assets, folder, dtype)
    else:
        logger.warning(
            "%s has no config.json and no tokenizer: only weights are written. Give a model "
            "folder with --model to make the result loadable",
            found.shards,
        )
    write_model_card(folder, facts, dtype, num_parameters)
    marker = {
        "bigft": __version__,
        "source": str(found.shards.resolve()),
        "step": facts["step"],
        "dtype": dtype,
        "parameters": num_parameters,
    }
    (folder / MARKER_NAME).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _check_space(output: Path, num_bytes: int) -> None:
    existing = next(path for path in output.parents if path.exists())
    free = shutil.disk_usage(existing).free
    # 16 MiB: configuration, tokenizer and card.
    if num_bytes + (16 << 20) > free:
        raise CheckpointError(
            f"{existing}: {format_bytes(free)} free, the export needs {format_bytes(num_bytes)}; "
            "free some space, choose another output folder, or export --dtype bfloat16"
        )


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _explain(error: OSError, temporary: Path, output: Path) -> CheckpointError | ConfigError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"{output}: the disk is full or the quota is used up; free some space or choose "
            "another output folder. Nothing was left there"
        )
    place = Path(os.fsdecode(error.filename)) if error.filename else Path()
    if temporary in (place, *place.parents) or place in temporary.parents:
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
