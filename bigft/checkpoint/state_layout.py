"""Where every parameter lies in the state files that bigft writes.

    state/index.json                what the parameters are: shapes, formats, tied names
    state/rank_00000.safetensors    one per rank: "<kind>/<parameter>", a flat piece each

The fragments of a parameter, of all ranks together, cover it exactly once. The weights are the fp32
`master` of a trained parameter, or its halves `upper` and `rest`, and the `weight` of one that is
not. Where there is a `shadow` of it, such as its average over the steps, that is taken instead.
Moments are not looked at.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigft.checkpoint.layout import Layout, Slice, SourceTensor
from bigft.errors import CheckpointError, raise_together
from bigft.files.paths import find_escape
from bigft.files.safetensors_header import Header, TensorPlace, read_header
from bigft.files.torch_file import ITEM_BYTES, count_elements, read_shape

STATE_INDEX_NAME = "index.json"
_FORMAT = 1
_FILE_FORMAT = "bigft-state-1"
_RANK_FILE = re.compile(r"rank_(\d{5,})\.safetensors")
# In the order of preference: a parameter has one of them.
_MASTER, _WEIGHT, _BUFFER = "master", "weight", "buffer"
_SHADOW = "shadow"
# A master in two: bf16 numbers and what makes them fp32 ones.
_UPPER, _REST = "upper", "rest"
WEIGHT_KINDS = (_MASTER, _SHADOW, _WEIGHT, _BUFFER, _UPPER, _REST)
"""What is looked at."""
_RESTS = {"I16": "int16", "I8": "int8"}
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True)
class _Fragment:
    start: int
    end: int
    dtype: str
    path: Path
    offset: int
    rest_offset: int | None = None
    rest_dtype: str = ""


@dataclass(frozen=True)
class _Tensor:
    """What the index says about one parameter or buffer."""

    shape: tuple[int, ...]
    dtype: str


_Fragments = dict[tuple[str, str], list[_Fragment]]


def read_state_layout(folder: Path) -> Layout:
    """Find the weights of every parameter in a `state/` folder.

    Args:
        folder: Holds `index.json` and the ranks' files.

    Raises:
        CheckpointError: A rank's file is missing or of another run, or the fragments leave holes,
            overlap, or do not fit the index; everything that is wrong is listed.

    Memory: the files' headers; no tensor is read.
    """
    path = folder / STATE_INDEX_NAME
    try:
        index = json.loads(path.read_bytes())
        version, world_size = int(index["format"]), int(index["world_size"])
        if version > _FORMAT:
            raise CheckpointError(
                f"{path}: format {version}, this bigft reads {_FORMAT}; use a newer bigft"
            )
        parameters = _read_tensors(index["parameters"])
        buffers = _read_tensors(index["buffers"])
        shared = _read_shared(index["shared"], parameters)
        training_dtype = str(index["training_dtype"])
        step = int(index["engine"].get("counters", {}).get("global_steps", 0))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {str(error)[:200]}); use another checkpoint"
        ) from error
    fragments = _read_ranks(folder, world_size)
    problems: list[str] = []
    tensors = [_join(folder, name, one, fragments, problems) for name, one in parameters.items()]
    for name, one in buffers.items():
        tensors.append(_join_kind(folder, _BUFFER, name, one, fragments, problems))
    problems += _find_unknown(folder, parameters, buffers, fragments)
    if problems:
        raise_together(CheckpointError, problems[:20])
    return Layout(tuple(tensors), shared, training_dtype, world_size, step)


# --- the index -----------------------------------------------------------------------------------


def _read_tensors(table: Any) -> dict[str, _Tensor]:
    return {
        name: _Tensor(read_shape(facts["shape"]), _known_dtype(facts["dtype"]))
        for name, facts in table.items()
    }


def _known_dtype(name: str) -> str:
    if name not in ITEM_BYTES:
        raise ValueError(f"number format {name!r} is not known")
    return name


def _read_shared(table: Any, parameters: Mapping[str, _Tensor]) -> dict[str, str]:
    for alias, kept in table.items():
        if alias in parameters or kept not in parameters:
            raise ValueError(f"{alias!r} cannot be another name of {kept!r}")
    return dict(table)


# --- the ranks' files ----------------------------------------------------------------------------


def _read_ranks(folder: Path, world_size: int) -> _Fragments:
    """Read where the weights of all ranks lie: (kind, name) -> fragments."""
    _check_ranks(folder, world_size)
    found: _Fragments = defaultdict(list)
    for rank in range(world_size):
        path = folder / f"rank_{rank:05d}.safetensors"
        if outside := find_escape(path, folder):
            raise CheckpointError(f"{path}: leads out of the checkpoint, to {outside}")
        header = read_header(path)
        starts = _read_starts(path, header)
        for key, place in header.tensors.items():
            kind, _, name = key.partition("/")
            if kind in (_MASTER, _SHADOW, _WEIGHT, _BUFFER) and not name.startswith("@"):
                found[kind, name].append(_read_fragment(path, key, place, starts))
            elif kind == _UPPER:
                upper = _read_fragment(path, key, place, starts)
                found[_MASTER, name].append(_find_rest(upper, name, header))
    return found


def _check_ranks(folder: Path, world_size: int) -> None:
    matches = [_RANK_FILE.fullmatch(path.name) for path in folder.iterdir()]
    ranks = {int(match[1]) for match in matches if match}
    problems = []
    if missing := [str(rank) for rank in range(min(world_size, 10**6)) if rank not in ranks]:
        shown = ", ".join(missing[:8]) + (" and more" if len(missing) > 8 else "")
        problems.append(
            f"{folder}: no file of rank {shown} (written by {world_size} ranks); copy it from the"
            " host that wrote it, or use another checkpoint"
        )
    if extra := sorted(rank for rank in ranks if rank >= world_size):
        problems.append(
            f"{folder}: has a file of rank {extra[0]}, but was written by {world_size} ranks; two"
            " checkpoints lie in one folder. Remove the older one"
        )
    if world_size < 1:
        problems.append(f"{folder / STATE_INDEX_NAME}: written by {world_size} ranks; damaged")
    if problems:
        raise_together(CheckpointError, problems)


def _read_starts(path: Path, header: Header) -> dict[str, Any]:
    try:
        if header.metadata["format"] != _FILE_FORMAT:
            raise ValueError(f"format {header.metadata['format'][:40]!r}")
        starts = json.loads(header.metadata["starts"])
        if not isinstance(starts, dict):
            raise ValueError("the fragments have no places")
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: no state that this bigft reads ({type(error).__name__}: {error}); use"
            " another checkpoint"
        ) from error
    return starts


def _read_fragment(path: Path, key: str, place: TensorPlace, starts: dict[str, Any]) -> _Fragment:
    start = starts.get(key)
    if type(start) is not int or start < 0 or len(place.shape) != 1 or place.dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: {key} is no fragment of a flat tensor (starts at {start!r:.40}, shape"
            f" {place.shape}, {place.dtype}); the file is damaged. Use another checkpoint"
        )
    dtype = _DTYPES[place.dtype]
    return _Fragment(start, start + place.shape[0], dtype, path, place.begin)


def _find_rest(upper: _Fragment, name: str, header: Header) -> _Fragment:
    """Complete the upper halves of fp32 weights by the place of the lower ones."""
    key = f"{_REST}/{name}"
    rest = header.tensors.get(key)
    numel = upper.end - upper.start
    dtype = _RESTS.get(rest.dtype) if rest is not None and rest.shape == (numel,) else None
    if upper.dtype != "bfloat16" or rest is None or dtype is None:
        raise CheckpointError(
            f"{upper.path}: {key} does not fit {_UPPER}/{name}; the file is damaged. Use another"
            " checkpoint"
        )
    return replace(upper, dtype="float32", rest_offset=rest.begin, rest_dtype=dtype)


# --- parameters ----------------------------------------------------------------------------------


def _join(
    folder: Path, name: str, facts: _Tensor, fragments: _Fragments, problems: list[str]
) -> SourceTensor:
    kinds = [kind for kind in (_MASTER, _WEIGHT) if (kind, name) in fragments]
    if len(kinds) > 1:
        problems.append(f"{folder}: {name} is there as {_MASTER} and as {_WEIGHT}; damaged")
    if (_SHADOW, name) in fragments:
        kinds = [_SHADOW]
    return _join_kind(folder, (kinds or [_MASTER])[0], name, facts, fragments, problems)


def _join_kind(
    folder: Path,
    kind: str,
    name: str,
    facts: _Tensor,
    fragments: _Fragments,
    problems: list[str],
) -> SourceTensor:
    """Lay the fragments of a tensor end to end; what is wrong is added to `problems`."""
    found = sorted(fragments.get((kind, name), ()), key=lambda one: (one.start, one.end))
    found = [one for one in found if one.end > one.start]
    position, numel = 0, count_elements(facts.shape)
    for one in found:
        if one.start != position:
            low, high = sorted((one.start, position))
            what = "twice" if one.start < position else "in no rank's file"
            problems.append(f"{folder}: elements {low:,} to {high:,} of {kind}/{name} are {what}")
        position = max(position, one.end)
    if position != numel:
        problems.append(
            f"{folder}: {kind}/{name} has {numel:,} elements, the ranks' files hold {position:,};"
            " files of different runs are mixed, or the checkpoint is not complete"
        )
    problems += _find_wrong_dtypes(kind, name, facts, found)
    slices = (
        Slice(
            one.path,
            one.offset,
            one.end - one.start,
            one.dtype,
            rest_offset=one.rest_offset,
            rest_dtype=one.rest_dtype,
        )
        for one in found
    )
    dtype = found[0].dtype if found else facts.dtype
    return SourceTensor(name, facts.shape, tuple(slices), dtype, kind == _BUFFER)


def _find_wrong_dtypes(
    kind: str, name: str, facts: _Tensor, found: list[_Fragment]
) -> Iterator[str]:
    # A master is fp32; only engines that keep their masters in the training format have others.
    allowed = {
        _MASTER: {"float32", facts.dtype},
        _SHADOW: {"float32"},
    }.get(kind, {facts.dtype})
    for one in found:
        if one.dtype not in allowed:
            wanted = " or ".join(sorted(allowed))
            yield f"{one.path}: {kind}/{name} is {one.dtype} instead of {wanted}; damaged"
            return


def _find_unknown(
    folder: Path,
    parameters: Mapping[str, _Tensor],
    buffers: Mapping[str, _Tensor],
    fragments: _Fragments,
) -> Iterator[str]:
    for kind, name in fragments:
        if name not in (buffers if kind == _BUFFER else parameters):
            yield (
                f"{folder}: {kind}/{name} is not in {STATE_INDEX_NAME}; files of different runs"
                " are mixed"
            )
