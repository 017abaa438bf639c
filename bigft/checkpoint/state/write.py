"""One rank's file: safetensors, written front to back in pieces, without a copy of the state.

The layout is the one of the safetensors library (an 8-byte length, a JSON header, then the tensors
one after the other), so that the file opens with it alone.
"""

import json
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from bigft.checkpoint.state.collect import Entry, RankState

FORMAT = "bigft-state-1"

# Through the processor's cache a few MiB at a time; from a device, enough to keep the bus busy.
_CHUNK_BYTES = 16 << 20

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


class Sink(Protocol):
    """Where bytes go, one after the other."""

    def write(self, data: memoryview) -> object:
        """Take all of `data`."""


def file_name(rank: int) -> str:
    """Name of a rank's file in the checkpoint."""
    return f"state/rank_{rank:05d}.safetensors"


def write_state(state: RankState, sink: Sink) -> None:
    """Write a rank's state.

    Memory: 16 MiB beside the state.
    """
    header = json.dumps(_build_header(state), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    sink.write(memoryview(len(header).to_bytes(8, "little") + header))
    for entry in state.entries:
        for part in entry.parts:
            for piece in _cut(part):
                sink.write(piece.view(torch.uint8).numpy().data)
            if state.release is not None:
                state.release(part)


def measure_file(state: RankState) -> int:
    """Count the bytes that `write_state` will write, the header about right."""
    return state.num_bytes + 200 * len(state.entries)


def _build_header(state: RankState) -> dict[str, object]:
    header: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "starts": json.dumps({e.key: e.start for e in state.entries}),
            "flats": json.dumps(state.flats),
            "scalars": json.dumps(state.scalars),
        }
    }
    offset = 0
    for entry in state.entries:
        end = offset + entry.num_bytes
        header[entry.key] = {
            "dtype": _name_dtype(entry),
            "shape": [entry.numel],
            "data_offsets": [offset, end],
        }
        offset = end
    return header


def _name_dtype(entry: Entry) -> str:
    return DTYPES[entry.parts[0].dtype]


def _cut(tensor: Tensor) -> Iterator[Tensor]:
    step = max(1, _CHUNK_BYTES // tensor.element_size())
    for start in range(0, tensor.numel(), step):
        yield tensor[start : start + step].contiguous().cpu()
