"""A checkpoint's state, filled into a fresh engine of any number of ranks and any placement."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigft.checkpoint.state.collect import BUFFER, CODES, MASTER, PLAIN, WEIGHT, find_buffers
from bigft.checkpoint.state.fragments import Flat, cut_evenly
from bigft.checkpoint.state.host import fill_host
from bigft.checkpoint.state.index import Index, read_index
from bigft.checkpoint.state.numbers import restore_numbers
from bigft.checkpoint.state.partition import open_partition
from bigft.checkpoint.state.read import StateReader
from bigft.checkpoint.state.shadow import Shadow
from bigft.errors import CheckpointError
from bigft.optim.host import HostAdamW


def load_state(
    engine: Any, checkpoint: Path, shadow: Shadow | None = None, beside: Path | None = None
) -> None:
    """Put weights, optimizer states, schedule and counters into an engine that has not trained.

    Args:
        engine: A DeepSpeed engine; stage, ranks and offload may differ from those that saved.
        checkpoint: A committed checkpoint folder.
        shadow: Weights beside those of the engine; those of the engine where the checkpoint has
            none.
        beside: Folder with files that the checkpoint lacks here.

    Raises:
        CheckpointError: The checkpoint lacks something that this engine has.

    Collective: every rank.
    Memory: 16 MiB beside the state itself.
    """
    index = read_index(checkpoint, beside)
    partition = open_partition(engine)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    rank = torch.distributed.get_rank()
    with StateReader(checkpoint, index.world_size, beside) as reader:
        steps = 0
        for number, flat in enumerate(partition.flats):
            if isinstance(inner, HostAdamW):
                with partition.writable(number):
                    steps = _fill_states(reader, inner, flat)
                continue
            with partition.writable(number) as target:
                _fill_flat(reader, MASTER, flat, target)
                source = rank if _is_same(reader, index, rank, number, flat) else None
                steps = _restore_states(inner, reader, flat, number, source)
        partition.finish()
        if shadow is not None:
            shadow.fill(reader)
        _restore_untrained(engine.module, reader, rank)
    restore_numbers(engine, inner, index.engine, steps)


def _fill_states(reader: StateReader, inner: HostAdamW, flat: Flat) -> int:
    steps = 0
    for state in inner.find(flat.tensor):
        with inner.opened(state):
            steps = fill_host(reader, state)
    return steps


def _is_same(reader: StateReader, index: Index, rank: int, number: int, flat: Flat) -> bool:
    """Whether this very vector was saved, so that codes and scales can be taken as they are."""
    if not reader.has_vectors or index.world_size != torch.distributed.get_world_size():
        return False
    saved = reader.flats[rank]
    return number < len(saved) and saved[number] == flat.describe()


def _fill_flat(reader: StateReader, kind: str, flat: Flat, target: Tensor) -> None:
    target.zero_()  # Padding between fragments.
    row = target.view(-1)
    for fragment in flat.fragments:
        reader.fill(kind, fragment.parameter, fragment.start, row[fragment.place])


def _restore_states(
    inner: Any, reader: StateReader, flat: Flat, number: int, source: int | None
) -> int:
    """Create the optimizer's state of one vector; returns its step."""
    step = reader.find_step()
    if step == 0:
        return 0
    if hasattr(inner, "restore_state"):
        _restore_quantised(inner, reader, flat, number, source, step)
        return step
    state: dict[str, Any] = {"step": _write_step(inner, flat, step)}
    for kind in PLAIN if set(reader.kinds) & set(CODES) else reader.kinds:
        state[kind] = torch.zeros_like(flat.tensor.data)
        _fill_flat(reader, kind, flat, state[kind])
    inner.state[flat.tensor] = state
    return step


def _restore_quantised(
    inner: Any, reader: StateReader, flat: Flat, number: int, source: int | None, step: int
) -> None:
    """Hand 8-bit states over: codes as they are, or numbers to be quantised anew."""
    if source is None:
        moments = []
        for kind in PLAIN:
            values = torch.zeros(flat.numel, dtype=torch.float32)
            _fill_flat(reader, kind, flat, values)
            moments.append(values)
        inner.restore_moments(flat.tensor, step, *moments)
        return
    tensors = reader.list_whole(source, number)
    for kind in reader.kinds:
        table = tensors.get(kind.replace("state", "qmap"))
        # Padding has the code of zero.
        empty, dtype = (0, torch.float32) if table is None else (table.abs().argmin(), torch.uint8)
        tensors[kind] = torch.full((flat.numel,), int(empty), dtype=dtype)
        for fragment in flat.fragments:
            reader.fill(kind, fragment.parameter, fragment.start, tensors[kind][fragment.place])
    inner.restore_state(flat.tensor, step, tensors)


def _write_step(inner: Any, flat: Flat, step: int) -> Any:
    if not isinstance(inner, torch.optim.AdamW | torch.optim.Adam):
        return step
    if type(inner).__name__ == "DeepSpeedCPUAdam":
        return step
    return torch.tensor(float(step), dtype=torch.float32, device=flat.tensor.device)


def _restore_untrained(module: nn.Module, reader: StateReader, rank: int) -> None:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            continue
        if not reader.has(WEIGHT, name):
            raise CheckpointError(f"{name} is not trained now, but it was when the state was saved")
        if hasattr(parameter, "ds_tensor"):
            held: Any = parameter
            mine = torch.distributed.get_rank(group=held.ds_process_group)
            size = int(held.partition_numel())
            piece = cut_evenly(name, int(held.ds_numel), size, mine, 0)
            if piece:
                reader.fill(WEIGHT, name, piece.start, held.ds_tensor.data[: piece.numel])
        else:
            reader.fill(WEIGHT, name, 0, parameter.data.view(-1))
    for name, buffer in find_buffers(module).items():
        whole = torch.empty_like(buffer).reshape(-1)
        reader.fill(BUFFER, name, 0, whole)
        buffer.data.copy_(whole.view_as(buffer))
