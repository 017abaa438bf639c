"""Where every parameter lies in the files that DeepSpeed wrote.

ZeRO writes flat fp32 vectors without names; the model files list names and shapes in the order of
the vectors. Stages 1 and 2 cut each group's vector into one piece per rank, wherever the cut falls:

    rank 0 |aaaaaabb|  rank 1 |bbbcccc.|        b spans two ranks; the end is padding

Stage 3 cuts every parameter into equal slices, `ceil(n / ranks)` elements each:

    rank 0 |aaabbbcc|  rank 1 |aaabb.cc|        each rank has a slice of each; the last is padded
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from bigft.checkpoint.layout import Layout, Slice, SourceTensor
from bigft.checkpoint.shards import Shards, find_stage, find_training_dtype, read_shards
from bigft.checkpoint.stock_swap import find_swapped
from bigft.errors import CheckpointError
from bigft.files.torch_file import ITEM_BYTES, TensorRef, count_elements, read_shape

_MAX_PARAMETERS = 10_000_000


def read_stock_layout(folder: Path) -> Layout:
    """Find the fp32 master slices of every parameter of a folder of DeepSpeed's files.

    Args:
        folder: Holds `*_model_states.pt` and, for ZeRO stages 1 to 3, `*_optim_states.pt`.

    Raises:
        CheckpointError: A rank's file is missing, belongs to another world size, has no master
            weights, or the lengths do not add up.

    Memory: the files' structure; no tensor is read.
    """
    try:
        return _read_layout(folder)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        # Files can hold any structure: what is not DeepSpeed's does not deserve a check per key.
        raise CheckpointError(
            f"{folder}: its files do not hold what DeepSpeed writes ({type(error).__name__}:"
            f" {str(error)[:200]}); use another checkpoint"
        ) from error


def _read_layout(folder: Path) -> Layout:
    shards = read_shards(folder)
    model = shards.models[min(shards.models)]
    stage = find_stage(shards)
    found = list(_find_parameters(shards, model, stage))
    parameters = dict(found)
    if len(parameters) < len(found):
        raise CheckpointError(f"{folder}: a parameter is named twice; the files are damaged")
    shared = model.get("shared_params") or {}
    if stage == 1:
        parameters |= _find_unlisted(model, {*parameters, *shared, *model["buffer_names"]})
    aliases = {
        alias: kept
        for alias, kept in shared.items()
        # Empty parameters all have the address 0, so stages 1 and 2 call them tied.
        if alias not in parameters and kept in parameters
    }
    if stage == 0:
        aliases |= _fold_ties(parameters)
    for name in model["buffer_names"]:
        if name in model["module"] and name not in parameters:
            parameters[name] = _whole_tensor(name, model["module"][name], is_buffer=True)
    order = {name: position for position, name in enumerate(model["module"])}
    tensors = sorted(parameters.values(), key=lambda one: order.get(one.name, len(order)))
    return Layout(
        tensors=tuple(tensors),
        aliases=aliases,
        training_dtype=find_training_dtype(shards, model),
        world_size=max(len(shards.optims), 1),
        step=int(model.get("global_steps") or 0),
        zero_stage=stage,
    )


# --- parameters ----------------------------------------------------------------------------------


def _find_parameters(
    shards: Shards, model: dict[str, Any], stage: int
) -> Iterator[tuple[str, SourceTensor]]:
    if stage == 0:
        for name, value in model["module"].items():
            if name not in model["buffer_names"] and isinstance(value, TensorRef):
                yield name, _whole_tensor(name, value)
        return
    names = _read_param_shapes(shards, model)
    groups = _read_groups(shards, stage, names)
    trainable = _join_whole_groups if stage < 3 else _join_sliced_groups
    for tensor in (*_find_frozen(shards, stage), *trainable(shards, groups, names)):
        yield tensor.name, tensor


def _read_param_shapes(shards: Shards, model: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    shapes = model.get("param_shapes")
    if not isinstance(shapes, list | tuple):
        path = shards.model_paths[min(shards.model_paths)]
        raise CheckpointError(f"{path}: holds no param_shapes; the weights cannot be named")
    # A small file can name one long list many times over.
    if sum(len(group) for group in shapes) > _MAX_PARAMETERS:
        raise CheckpointError(f"{shards.folder}: names more than {_MAX_PARAMETERS:,} parameters")
    return [{name: read_shape(shape) for name, shape in group.items()} for group in shapes]


def _read_groups(
    shards: Shards, stage: int, names: Sequence[Mapping[str, tuple[int, ...]]]
) -> list[list[TensorRef]]:
    """Read the flat fp32 groups: `groups[rank][group]`."""
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    groups: list[list[TensorRef]] = []
    for rank, optim in shards.optims.items():
        path = shards.optim_paths[rank]
        found = optim["optimizer_state_dict"].get(key)
        if not isinstance(found, list | tuple) or not all(isinstance(g, TensorRef) for g in found):
            raise CheckpointError(f"{path}: holds no {key}; no master weights to consolidate")
        if not all(group.is_contiguous for group in found):
            raise CheckpointError(f"{path}: {key} are not contiguous; the file is damaged")
        groups.append(list(found))
    if len({len(found) for found in groups}) > 1:
        raise CheckpointError(f"{shards.folder}: the ranks have different numbers of {key}")
    if stage == 3 and any(not group.numel for found in groups for group in found):
        _fill_swapped(shards, groups, names)
    if not sum(group.numel for found in groups for group in found):
        path = shards.optim_paths[min(shards.optim_paths)]
        raise CheckpointError(f"{path}: the fp32 groups are empty; no weights to consolidate")
    return groups


def _fill_swapped(
    shards: Shards,
    groups: list[list[TensorRef]],
    names: Sequence[Mapping[str, tuple[int, ...]]],
) -> None:
    """Find the groups that DeepSpeed swapped out to NVMe; it saves them as empty tensors."""
    if len(names) != len(groups[0]):
        _raise_group_count(shards, len(names), len(groups[0]))
    for rank, found in enumerate(groups):
        for index, group in enumerate(found):
            sizes = map(count_elements, names[index].values())
            numel = sum(-(-size // len(groups)) for size in sizes)
            if not group.numel and numel:
                found[index] = find_swapped(shards.folder, rank, group, numel)


def _join_whole_groups(
    shards: Shards, groups: list[list[TensorRef]], names: Sequence[Mapping[str, tuple[int, ...]]]
) -> Iterator[SourceTensor]:
    """Stages 1 and 2: each group is one vector, cut into consecutive pieces."""
    first = min(shards.optims)
    paddings = shards.optims[first]["optimizer_state_dict"].get("param_alignment_paddings")
    if len(names) != len(groups[0]) or (paddings and len(paddings) != len(names)):
        _raise_group_count(shards, len(names), len(groups[0]))
    for index, shapes in enumerate(names):
        pieces = [rank_groups[index] for rank_groups in groups]
        vector = _Vector(pieces)
        gaps = paddings[index] if paddings else [0] * len(shapes)
        if len(gaps) != len(shapes):
            _raise_group_count(shards, len(shapes), len(gaps))
        position = 0
        for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
            end = position + count_elements(shape)
            slices = tuple(vector.cut(position, end))
            _check_length(shards, name, count_elements(shape), slices)
            yield SourceTensor(name, shape, slices, pieces[0].dtype)
            position = end + int(gap)
        available = vector.numel
        # Groups are padded to twice the number of ranks; the last rank's pad is cut off, or not.
        if _round_up(position, 2 * len(pieces)) != _round_up(available, 2 * len(pieces)):
            _raise_total(shards, position, available)


def _join_sliced_groups(
    shards: Shards, groups: list[list[TensorRef]], names: Sequence[Mapping[str, tuple[int, ...]]]
) -> Iterator[SourceTensor]:
    """Stage 3: every rank has an equal slice of every parameter."""
    world_size = len(groups)
    vectors = [_Vector(found) for found in groups]
    position = 0
    for name, shape in ((name, shape) for shapes in names for name, shape in shapes.items()):
        numel = count_elements(shape)
        per_rank = -(-numel // world_size)
        slices: list[Slice] = []
        for rank, vector in enumerate(vectors):
            # The last ranks' slices end in padding, or are padding altogether.
            wanted = max(min(per_rank, numel - rank * per_rank), 0)
            slices += vector.cut(position, position + wanted)
        _check_length(shards, name, numel, slices)
        yield SourceTensor(name, shape, tuple(slices), groups[0][0].dtype)
        position += per_rank
    if any(vector.numel != position for vector in vectors):
        _raise_total(shards, position * world_size, sum(vector.numel for vector in vectors))


class _Vector:
    """Tensors laid end to end, as one vector."""

    def __init__(self, pieces: Sequence[TensorRef]) -> None:
        self._pieces = pieces
        self._starts = [0, *accumulate(piece.numel for piece in pieces)]
        self.numel = self._starts[-1]

    def cut(self, start: int, end: int) -> Iterator[Slice]:
        """Find elements `start` to `end`."""
        first = bisect_right(self._starts, start) - 1
        for index in range(first, len(self._pieces)):
            begin, piece = self._starts[index], self._pieces[index]
            if begin >= end:
                return
            low, high = max(start - begin, 0), min(end - begin, piece.numel)
            if low < high:
                offset = piece.offset + low * ITEM_BYTES[piece.dtype]
                yield Slice(piece.path, offset, high - low, piece.dtype)


def _find_frozen(shards: Shards, stage: int) -> Iterator[SourceTensor]:
    """Frozen and empty parameters, which the optimizer does not hold."""
    first = min(shards.models)
    for name, size in (shards.models[first].get("frozen_param_shapes") or {}).items():
        shape = read_shape(size)
        numel = count_elements(shape)
        owners = range(len(shards.optims)) if stage == 3 else [first]
        slices: list[Slice] = []
        for rank in owners:
            fragment = _find_fragment(shards, rank, name)
            if stage < 3:
                slices += _whole_tensor(name, fragment).slices
                continue
            if not fragment.is_contiguous:
                raise CheckpointError(f"{fragment.path}: the slice of {name} is not contiguous")
            wanted = min(fragment.numel, numel - sum(one.numel for one in slices))
            slices += _Vector([fragment]).cut(0, wanted)
        _check_length(shards, name, numel, slices)
        dtype = _find_fragment(shards, first, name).dtype
        yield SourceTensor(name, shape, tuple(slices), dtype)


def _find_unlisted(model: dict[str, Any], listed: Container[str]) -> dict[str, SourceTensor]:
    """Frozen parameters of stage 1: DeepSpeed lists them nowhere, but the module has them whole."""
    return {
        name: _whole_tensor(name, value)
        for name, value in model["module"].items()
        if name not in listed and isinstance(value, TensorRef) and value.numel
    }


def _find_fragment(shards: Shards, rank: int, name: str) -> TensorRef:
    if rank not in shards.models:
        raise CheckpointError(
            f"{shards.folder}: no *_model_states.pt file of rank {rank}, which holds its slices of "
            f"the frozen parameters ({name}); copy it from the host that wrote it"
        )
    fragment = (shards.models[rank].get("frozen_param_fragments") or {}).get(name)
    if not isinstance(fragment, TensorRef):
        raise CheckpointError(
            f"{shards.model_paths[rank]}: no values of the frozen parameter {name}; it was saved "
            "with exclude_frozen_parameters, so it cannot give a whole model"
        )
    return fragment


def _whole_tensor(name: str, ref: TensorRef, *, is_buffer: bool = False) -> SourceTensor:
    strided = None if ref.is_contiguous else ref
    slices = (Slice(ref.path, ref.offset, ref.numel, ref.dtype, strided),) if ref.numel else ()
    return SourceTensor(name, ref.shape, slices, ref.dtype, is_buffer)


def _fold_ties(parameters: dict[str, SourceTensor]) -> dict[str, str]:
    """Stage 0: tensors that share a record are tied; keep the one the model names first."""
    by_place: dict[object, list[str]] = defaultdict(list)
    for name, tensor in parameters.items():
        if tensor.slices:
            by_place[tensor.slices, tensor.shape].append(name)
    aliases = {other: kept for kept, *others in by_place.values() for other in others}
    for alias in aliases:
        del parameters[alias]
    return aliases


# --- complaints ----------------------------------------------------------------------------------


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _check_length(shards: Shards, name: str, numel: int, slices: Sequence[Slice]) -> None:
    found = sum(one.numel for one in slices)
    if found != numel:
        raise CheckpointError(
            f"{shards.folder}: {name} has {numel:,} elements, but the shards hold {found:,} of "
            "them; files of different runs are mixed, or the checkpoint was not saved completely"
        )


def _raise_total(shards: Shards, wanted: int, available: int) -> None:
    raise CheckpointError(
        f"{shards.folder}: the parameters need {wanted:,} elements, the shards hold {available:,}; "
        "files of different runs are mixed, or the checkpoint was not saved completely"
    )


def _raise_group_count(shards: Shards, wanted: int, found: int) -> None:
    raise CheckpointError(
        f"{shards.folder}: the model file lists {wanted} parameter groups, the optimizer files "
        f"{found}; files of different runs are mixed"
    )
