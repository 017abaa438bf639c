"""Re-open a written model and compare it with what was planned."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bigft.checkpoint.safetensors_out import DTYPE_NAMES, INDEX_NAME, PlannedFile
from bigft.errors import CheckpointError, raise_together
from bigft.files.safetensors_header import read_header


def check_files(folder: Path, files: Sequence[PlannedFile]) -> None:
    """Check names, shapes, formats, places, byte counts and the index.

    The values are not read: they were checked while they were written (`stream`).

    Raises:
        CheckpointError: What differs; the folder must not be used.
    """
    problems = [problem for file in files for problem in _compare(folder / file.name, file)]
    if len(files) > 1:
        index = json.loads((folder / INDEX_NAME).read_bytes())["weight_map"]
        if index != {entry.name: file.name for file in files for entry in file.entries}:
            problems.append(f"{folder / INDEX_NAME}: names other tensors than the files hold")
    if problems:
        raise_together(CheckpointError, problems)


def _compare(path: Path, file: PlannedFile) -> list[str]:
    planned = {one.name: (DTYPE_NAMES[one.dtype], list(one.shape)) for one in file.entries}
    size = path.stat().st_size
    if size != file.file_bytes:
        return [f"{path}: has {size:,} bytes instead of {file.file_bytes:,}"]
    # The library's own reader, so that the reader of the model is the judge of the writer.
    try:
        with safe_open(path, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            found = {name: (one.get_dtype(), list(one.get_shape())) for name, one in slices.items()}
    except SafetensorError as error:
        return [f"{path}: cannot be opened again ({error})"]
    places = {name: place.begin for name, place in read_header(path).tensors.items()}
    wrong = [
        f"{path}: {name} is {found.get(name, 'missing')} instead of {planned.get(name, 'absent')}"
        for name in sorted(planned.keys() | found.keys())
        if found.get(name) != planned.get(name)
    ]
    if not wrong and places != file.offsets:
        wrong.append(f"{path}: its tensors lie at other places than planned")
    return wrong
