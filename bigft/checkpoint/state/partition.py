"""The optimizer's flat vectors inside DeepSpeed's wrappers, found, read and filled.

One class per way in which DeepSpeed 0.19.8 keeps fp32 weights; each knows where the fragments lie
and how the weights of the forward pass follow from them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from bigft.checkpoint.state.fragments import Flat, Fragment, cut_evenly
from bigft.checkpoint.state.swapped import mapped_swap_files
from bigft.errors import CheckpointError


class Partition(Protocol):
    """This rank's share of the fp32 weights and optimizer states."""

    flats: list[Flat]
    is_replicated: bool
    """Every rank holds the same, and one copy is enough."""

    def readable(self) -> contextlib.AbstractContextManager[None]:
        """Have all vectors and states in reach, wherever they live."""

    def writable(self, index: int) -> contextlib.AbstractContextManager[Tensor]:
        """Give one vector to fill; the weights of the forward pass follow at the end."""

    def finish(self) -> None:
        """Bring ranks together again after all vectors are filled. Collective: every rank."""


def open_partition(engine: Any) -> Partition:
    """Find the flat vectors of a DeepSpeed engine.

    Raises:
        CheckpointError: DeepSpeed wraps this optimizer in a way that is not known here.
    """
    outer = engine.optimizer
    names = {id(p): name for name, p in engine.module.named_parameters()}
    if hasattr(outer, "fp32_partitioned_groups_flat"):
        return _Stage3(engine, names)
    if hasattr(outer, "single_partition_of_fp32_groups"):
        flats = outer.single_partition_of_fp32_groups
        return _Mapped(outer, names, outer.bit16_groups, flats)
    if hasattr(outer, "fp32_groups_flat_partition"):
        return _Mapped(outer, names, outer.bf16_groups, outer.fp32_groups_flat_partition)
    if hasattr(outer, "fp32_groups_flat"):
        return _Flattened(outer, names)
    if hasattr(outer, "fp32_groups"):
        halves = [p for group in outer.fp16_groups for p in group]
        return _Whole(names, [p for group in outer.fp32_groups for p in group], halves)
    if isinstance(outer, torch.optim.Optimizer):
        own = [p for group in outer.param_groups for p in group["params"]]
        return _Whole(names, own, own)
    raise CheckpointError(
        f"DeepSpeed keeps the weights of this run in a {type(outer).__name__}, which bigft cannot"
        " save; use another zero_optimization.stage"
    )


class _Stage3:
    """Stage 3: every parameter cut into equal pieces, sub-groups of pieces flat."""

    is_replicated = False

    def __init__(self, engine: Any, names: dict[int, str]) -> None:
        self._engine = engine
        self._outer = engine.optimizer
        self.flats = [
            self._describe(flat, group, names)
            for flat, group in zip(
                self._outer.fp32_partitioned_groups_flat, self._outer.fp16_groups, strict=True
            )
        ]

    def _describe(self, flat: Tensor, group: list[Any], names: dict[int, str]) -> Flat:
        fragments, offset = [], 0
        for parameter in group:
            size = int(parameter.partition_numel())
            rank = torch.distributed.get_rank(group=parameter.ds_process_group)
            name = names[id(parameter)]
            fragments.append(cut_evenly(name, int(parameter.ds_numel), size, rank, offset))
            offset += size
        return Flat(flat, offset, tuple(f for f in fragments if f))

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        with mapped_swap_files(self._outer):
            yield

    @contextlib.contextmanager
    def writable(self, index: int) -> Iterator[Tensor]:
        outer = self._outer
        if index == 0:
            # Gathered weights of before would outlive what is filled in now.
            outer.checkpoint_event_prologue()
        is_swapped = outer._swappable_optimizer_subgroup(index)
        if is_swapped:
            outer._prepare_sub_group(index, None)
        yield outer.fp32_partitioned_groups_flat[index].data
        outer._reassign_or_swap_out_partitioned_parameters(index)
        if is_swapped:
            # States that appeared in memory are taken over by the swapper as after a first step.
            outer._release_sub_group(index, None)

    def finish(self) -> None:
        self._outer.checkpoint_event_epilogue()


class _Mapped:
    """Stages 1 and 2: one vector per group of parameters, cut wherever the cut falls."""

    is_replicated = False

    def __init__(
        self, outer: Any, names: dict[int, str], groups: list[Any], flats: list[Tensor]
    ) -> None:
        self._outer = outer
        self.flats = [
            Flat(flat, flat.numel(), tuple(_find_mapped(group, names)))
            for flat, group in zip(flats, groups, strict=True)
        ]

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def writable(self, index: int) -> Iterator[Tensor]:
        yield self.flats[index].tensor.data

    def finish(self) -> None:
        self._outer.update_lp_params()


def _find_mapped(group: list[Any], names: dict[int, str]) -> Iterator[Fragment]:
    for parameter in group:
        found = parameter._hp_mapping  # None where no element is on this rank.
        if found is not None and found.lp_fragment_address.numel:
            there, here = found.lp_fragment_address, found.hp_fragment_address
            yield Fragment(names[id(parameter)], there.start, there.numel, here.start)


class _Flattened:
    """Stage 0 in half precision with a fused optimizer: whole groups, flat, on every rank."""

    is_replicated = True

    def __init__(self, outer: Any, names: dict[int, str]) -> None:
        self._outer = outer
        self.flats = []
        for flat, group in zip(outer.fp32_groups_flat, outer.fp16_groups, strict=True):
            fragments, offset = [], 0
            for parameter in group:
                name = names[id(parameter)]
                fragments.append(Fragment(name, 0, parameter.numel(), offset))
                offset += parameter.numel()
            self.flats.append(Flat(flat, flat.numel(), tuple(fragments)))

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def writable(self, index: int) -> Iterator[Tensor]:
        flat = self.flats[index].tensor.data
        yield flat
        self._outer.fp16_groups_flat[index].data.copy_(flat)

    def finish(self) -> None:
        """Do nothing: every rank has filled everything."""


class _Whole:
    """Stage 0 otherwise: the optimizer updates each parameter, or an fp32 copy of it."""

    is_replicated = True

    def __init__(self, names: dict[int, str], masters: list[Tensor], weights: list[Tensor]) -> None:
        self._weights = weights
        self.flats = [
            Flat(
                master, master.numel(), (Fragment(names[id(weight)], 0, master.numel(), offset=0),)
            )
            for master, weight in zip(masters, weights, strict=True)
        ]

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def writable(self, index: int) -> Iterator[Tensor]:
        master = self.flats[index].tensor.data
        yield master.view(-1)
        if self._weights[index].data_ptr() != master.data_ptr():
            self._weights[index].data.copy_(master)

    def finish(self) -> None:
        """Do nothing: every rank has filled everything."""
