"""Re-open a written model and compare it with what was planned."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from bigft.checkpoint.safetensors_out import DTYPE_NAMES, INDEX_NAME, PlannedFile, read_header
from bigft.checkpoint.stream import check_finite
from bigft.errors import CheckpointError, raise_together


def verify_files(folder: Path, files: Sequence[PlannedFile], threads: int) -> None:
    """Check names, shapes, formats, byte counts, the index, and that all values are finite.

    Raises:
        CheckpointError: What differs; the folder must not be used.

    Memory: `threads` chunks.
    """
    offsets: dict[str, int] = {}
    problems: list[str] = []
    for file in files:
        path = folder / file.name
        problems += _compare(path, file)
        header, begin = read_header(path)
        offsets |= {name: begin + facts["data_offsets"][0] for name, facts in header.items()}
    if len(files) > 1:
        index = json.loads((folder / INDEX_NAME).read_bytes())["weight_map"]
        if index != {entry.name: file.name for file in files for entry in file.entries}:
            problems.append(f"{folder / INDEX_NAME}: names other tensors than the files hold")
    if problems:
        raise_together(CheckpointError, problems)
    check_finite(files, offsets, folder, threads)


def _compare(path: Path, file: PlannedFile) -> list[str]:
    planned = {one.name: (DTYPE_NAMES[one.dtype], list(one.shape)) for one in file.entries}
    size = path.stat().st_size
    if size != file.file_bytes:
        return [f"{path}: has {size:,} bytes instead of {file.file_bytes:,}"]
    # The library's own reader, so that the reader of the model is the judge of the writer.
    with safe_open(path, framework="numpy") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        found = {name: (one.get_dtype(), list(one.get_shape())) for name, one in slices.items()}
    return [
        f"{path}: {name} is {found.get(name, 'missing')} instead of {planned.get(name, 'absent')}"
        for name in sorted(planned.keys() | found.keys())
        if found.get(name) != planned.get(name)
    ]
