"""Which ranks' files an engine's part of the state lies in: the others need not be here."""

from typing import Any

import torch

from bigft.checkpoint.state.collect import find_buffers
from bigft.checkpoint.state.fragments import cut_evenly
from bigft.checkpoint.state.partition import open_partition
from bigft.checkpoint.state.read import StateReader


def find_needed(engine: Any, reader: StateReader) -> set[int]:
    """Return the ranks whose files `load_state` reads from on this rank.

    Args:
        engine: The DeepSpeed engine that is to be filled.
        reader: Knows what every file holds.
    """
    needed: set[int] = set()
    for flat in open_partition(engine).flats:
        for one in flat.fragments:
            needed |= reader.find_ranks(one.parameter, one.start, one.start + one.numel)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_tensor"):
            size = int(parameter.partition_numel())
            mine = torch.distributed.get_rank(group=parameter.ds_process_group)
            piece = cut_evenly(name, int(parameter.ds_numel), size, mine, 0)
            if piece:
                needed |= reader.find_ranks(name, piece.start, piece.start + piece.numel)
        else:
            needed |= reader.find_ranks(name, 0, parameter.numel())
    for name, buffer in find_buffers(engine.module).items():
        needed |= reader.find_ranks(name, 0, max(1, buffer.numel()))
    return needed
