"""Where every parameter lies in the shards that DeepSpeed wrote.

ZeRO writes flat fp32 vectors without names; the model files list names and shapes in the order of
the vectors. Stages 1 and 2 cut each group's vector into one piece per rank, wherever the cut falls:

    rank 0 |aaaaaabb|  rank 1 |bbbcccc.|        b spans two ranks; the end is padding

Stage 3 cuts every parameter into equal slices, `ceil(n / ranks)` elements each:

    rank 0 |aaabbbcc|  rank 1 |aaabb.cc|        each rank has a slice of each; the last is padded
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigft.checkpoint.shards import Shards, find_stage, find_training_dtype, read_shards
from bigft.checkpoint.torch_file import ITEM_BYTES, TensorRef, count_elements
from bigft.errors import CheckpointError


@dataclass(frozen=True)
class Slice:
    """A run of elements of one file, in the order in which the tensor needs them."""

    path: Path
    offset: int
    numel: int
    dtype: str
    strided: TensorRef | None = None
    """The tensor itself, where its elements do not lie one after the other."""


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of the model and the slices that give its elements in C order."""

    name: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]
    dtype: str
    is_buffer: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return count_elements(self.shape)


@dataclass(frozen=True)
class Layout:
    """All tensors of a checkpoint, in the order of the model's state dict."""

    tensors: tuple[SourceTensor, ...]
    aliases: Mapping[str, str]
    """Name of a tied parameter -> name under which its values are kept."""
    training_dtype: str
    """`bfloat16`, `float16` or `float32`: what the model computed in."""
    zero_stage: int
    world_size: int
    step: int


def read_layout(folder: Path) -> Layout:
    """Find the fp32 master slices of every parameter of a folder of DeepSpeed shards.

    Args:
        folder: Holds `*_model_states.pt` and, for ZeRO stages 1 to 3, `*_optim_states.pt`.

    Raises:
        CheckpointError: A rank's file is missing, belongs to another world size, has no master
            weights, or the lengths do not add up.

    Memory: the files' structure; no tensor is read.
    """
    shards = read_shards(folder)
    model = shards.models[min(shards.models)]
    stage = find_stage(shards)
    parameters = dict(_find_parameters(shards, model, stage))
    aliases = {
        alias: kept
        for alias, kept in (model.get("shared_params") or {}).items()
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
        zero_stage=stage,
        world_size=max(len(shards.optims), 1),
        step=int(model.get("global_steps") or 0),
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
    groups = _read_groups(shards, stage)
    names = _read_param_shapes(shards, model)
    trainable = _join_whole_groups if stage < 3 else _join_sliced_groups
    for tensor in (*_find_frozen(shards, stage), *trainable(shards, groups, names)):
        yield tensor.name, tensor


def _read_param_shapes(shards: Shards, model: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    shapes = model.get("param_shapes")
    if not isinstance(shapes, list | tuple):
        path = shards.model_paths[min(shards.model_paths)]
        raise CheckpointError(f"{path}: holds no param_shapes; the weights cannot be named")
    return [{name: tuple(shape) for name, shape in group.items()} for group in shapes]


def _read_groups(shards: Shards, stage: int) -> list[list[TensorRef]]:
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
    if not sum(group.numel for found in groups for group in found):
        raise CheckpointError(
            f"{shards.optim_paths[min(shards.optim_paths)]}: the fp32 groups are empty; with NVMe "
            "offload stock DeepSpeed leaves the weights in its swap files. Consolidate a checkpoint"
            " that bigft saved, or save one with the optimizer in host memory"
        )
    return groups


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
        gaps = paddings[index] if paddings else [0] * len(shapes)
        if len(gaps) != len(shapes):
            _raise_group_count(shards, len(shapes), len(gaps))
        position = 0
        for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
            end = position + count_elements(shape)
            slices = tuple(_cut(pieces, position, end))
            _check_length(shards, name, count_elements(shape), slices)
            yield SourceTensor(name, shape, slices, pieces[0].dtype)
            position = end + int(gap)
        available = sum(piece.numel for piece in pieces)
        # Groups are padded to twice the number of ranks; the last rank's pad is cut off, or not.
        if _round_up(position, 2 * len(pieces)) != _round_up(available, 2 * len(pieces)):
            _raise_total(shards, position, available)


def _join_sliced_groups(
    shards: Shards, groups: list[list[TensorRef]], names: Sequence[Mapping[str, tuple[int, ...]]]
) -> Iterator[SourceTensor]:
    """Stage 3: every rank has an equal slice of every parameter."""
    world_size = len(groups)
    available = [sum(group.numel for group in found) for found in groups]
    position = 0
    for name, shape in ((name, shape) for shapes in names for name, shape in shapes.items()):
        numel = count_elements(shape)
        per_rank = -(-numel // world_size)
        slices: list[Slice] = []
        for rank, found in enumerate(groups):
            # The last ranks' slices end in padding, or are padding altogether.
            wanted = max(min(per_rank, numel - rank * per_rank), 0)
            slices += _cut(found, position, position + wanted)
        _check_length(shards, name, numel, slices)
        yield SourceTensor(name, shape, tuple(slices), groups[0][0].dtype)
        position += per_rank
    if set(available) != {position}:
        _raise_total(shards, position * world_size, sum(available))


def _cut(pieces: Sequence[TensorRef], start: int, end: int) -> Iterator[Slice]:
    """Find elements `start` to `end` of the pieces laid end to end."""
    begin = 0
    for piece in pieces:
        low, high = max(start - begin, 0), min(end - begin, piece.numel)
        if low < high:
            offset = piece.offset + low * ITEM_BYTES[piece.dtype]
            yield Slice(piece.path, offset, high - low, piece.dtype)
        begin += piece.numel


def _find_frozen(shards: Shards, stage: int) -> Iterator[SourceTensor]:
    """Frozen and empty parameters, which the optimizer does not hold."""
    first = min(shards.models)
    for name, size in (shards.models[first].get("frozen_param_shapes") or {}).items():
        shape = tuple(size)
        numel = count_elements(shape)
        owners = range(len(shards.optims)) if stage == 3 else [first]
        slices: list[Slice] = []
        for rank in owners:
            fragment = _find_fragment(shards, rank, name)
            if stage < 3:
                slices += _whole_tensor(name, fragment).slices
                continue
            wanted = min(fragment.numel, numel - sum(one.numel for one in slices))
            slices += _cut([fragment], 0, wanted)
        _check_length(shards, name, numel, slices)
        dtype = _find_fragment(shards, first, name).dtype
        yield SourceTensor(name, shape, tuple(slices), dtype)


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
