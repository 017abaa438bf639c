"""What one rank has to save: named fragments, and the few numbers that are no fragments."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bigft.checkpoint.state.fragments import Flat, cut_evenly
from bigft.checkpoint.state.partition import Partition
from bigft.optim.code8 import BLOCK
from bigft.optim.host import FlatState, HostAdamW, Kept

MASTER = "master"
"""fp32 weights that the optimizer updates."""
WEIGHT = "weight"
"""Parameters that are not trained, in their own format."""
BUFFER = "buffer"
SHADOW = "shadow"
"""fp32 weights beside those that the optimizer updates, such as their average: what is exported."""
UPPER, REST = "upper", "rest"
"""An fp32 weight in two: a bf16 number, and the bits that are missing in it (int16; int8 where a
weight of 24 bits is kept)."""
CODES, SCALES, PLAIN = ("state1", "state2"), ("scale1", "scale2"), ("exp_avg", "exp_avg_sq")
"""First and second moments: 8-bit codes with the scales of their blocks of 256 elements, which are
counted from the parameter's first one; or fp32 numbers."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a rank's file."""

    kind: str
    name: str
    """Of the parameter or buffer; `@3` for what belongs to flat vector 3 as a whole."""
    start: int
    """Its first element in the flattened parameter."""
    parts: tuple[Tensor, ...]
    """`(n,)` each, one after the other, of one format, on any device; views, where possible."""

    @property
    def key(self) -> str:
        """The tensor's name in the file."""
        return f"{self.kind}/{self.name}"

    @property
    def numel(self) -> int:
        """Elements of all parts."""
        return sum(part.numel() for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Size of all parts."""
        return self.numel * self.parts[0].element_size()


@dataclass(frozen=True)
class RankState:
    """Everything of one rank's file."""

    entries: list[Entry]
    flats: list[Any] = field(default_factory=list)
    """The layout of the optimizer's vectors, as `Flat.describe` gives it."""
    scalars: list[dict[str, float]] = field(default_factory=list)
    """Per vector: states that are single numbers, such as the optimizer's own step."""
    release: Callable[[Tensor], None] | None = None
    """Called with each part once it is written."""

    @property
    def num_bytes(self) -> int:
        """Size of the tensors."""
        return sum(entry.num_bytes for entry in self.entries)

    def copied(self) -> "RankState":
        """Return the same in host memory of its own, which training no longer changes."""
        entries = [
            replace(e, parts=tuple(part.to("cpu", copy=True) for part in e.parts))
            for e in self.entries
        ]
        return replace(self, entries=entries)


def collect_state(
    partition: Partition, inner: torch.optim.Optimizer, module: nn.Module, rank: int
) -> RankState:
    """Gather views of what this rank saves; to be used inside `partition.readable()`.

    Args:
        partition: Where the optimizer's vectors are.
        inner: The optimizer that does the arithmetic.
        module: The model, for what is not trained.
        rank: Of this process; what every rank holds is saved by rank 0 alone.
    """
    first = rank == 0
    entries = list(_collect_untrained(module, rank))
    if partition.is_replicated and not first:
        return RankState(entries)
    scalars = []
    for number, flat in enumerate(partition.flats):
        if isinstance(inner, HostAdamW):
            states = inner.find(flat.tensor)
            entries += _collect_host(states)
            step = max((kept.step for kept in states), default=0)
            scalars.append({"step": float(step)} if step else {})
            continue
        state = inner.state.get(flat.tensor, {})
        entries += _collect_flat(flat, number, state)
        scalars.append(_collect_scalars(state))
    return RankState(entries, [flat.describe() for flat in partition.flats], scalars)


def _collect_host(states: list[FlatState]) -> Iterator[Entry]:
    """Name what is kept; a parameter that lies in several pieces is one again."""
    found: dict[tuple[str, str], Entry] = {}
    for row, step in ((row, kept.step) for kept in states for row in kept.rows):
        for kind, start, tensor in _list_kept(row, has_moments=step > 0):
            key = kind, row.region.parameter
            before = found.get(key, Entry(kind, row.region.parameter, start, ()))
            found[key] = replace(before, parts=(*before.parts, tensor))
    yield from found.values()


def _list_kept(row: Kept, *, has_moments: bool) -> Iterator[tuple[str, int, Tensor]]:
    start = row.region.start
    if len(row.rest):
        yield UPPER, start, row.weights
        yield REST, start, row.rest
    else:
        yield MASTER, start, row.weights
    for number in (0, 1) if has_moments else ():
        if row.scales is None:
            yield PLAIN[number], start, row.moments[number]
        else:
            yield CODES[number], start, row.moments[number]
            yield SCALES[number], start // BLOCK, row.scales[number]


def _collect_flat(flat: Flat, number: int, state: dict[str, Any]) -> Iterator[Entry]:
    tensors = {MASTER: flat.tensor.data}
    for kind, value in state.items():
        if torch.is_tensor(value) and kind != "step":
            if value.numel() == flat.numel:
                tensors[kind] = value
            else:
                # Scales and code tables of 8-bit states belong to blocks of the whole vector.
                yield Entry(kind, f"@{number}", 0, (value.detach().reshape(-1),))
    for kind, tensor in tensors.items():
        row = tensor.detach().reshape(-1)
        for fragment in flat.fragments:
            yield Entry(kind, fragment.parameter, fragment.start, (row[fragment.place],))


def _collect_scalars(state: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in state.items():
        if torch.is_tensor(value) and name == "step":
            found[name] = float(value.item())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def _collect_untrained(module: nn.Module, rank: int) -> Iterator[Entry]:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_tensor"):
            held: Any = parameter
            size = int(held.partition_numel())
            mine = torch.distributed.get_rank(group=held.ds_process_group)
            piece = cut_evenly(name, int(held.ds_numel), size, mine, 0)
            if piece:
                yield Entry(WEIGHT, name, piece.start, (held.ds_tensor.data[: piece.numel],))
        elif rank == 0:
            yield Entry(WEIGHT, name, 0, (parameter.data.reshape(-1),))
    if rank == 0:
        for name, buffer in find_buffers(module).items():
            yield Entry(BUFFER, name, 0, (buffer.detach().reshape(-1),))


def find_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Find the buffers that are part of the model's state; of tied ones the first name."""
    found: dict[str, Tensor] = {}
    for prefix, child in module.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found
