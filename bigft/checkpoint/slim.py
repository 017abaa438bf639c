"""The weights of a rank's file without its optimizer states: what an export needs of it.

| length | header of what is kept, anew | bytes of the kept tensors, as they stand in the file |
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigft.checkpoint.state_layout import WEIGHT_KINDS
from bigft.files.safetensors_header import Header, read_header

_METADATA = ("format", "starts")


class SlimFile:
    """Reads such a file front to back, without ever writing it."""

    def __init__(self, path: Path) -> None:
        """Read the header of a rank's file.

        Raises:
            CheckpointError: It is damaged.
            OSError: It cannot be opened.
        """
        header = read_header(path)
        kept = [key for key in header.tensors if key.partition("/")[0] in WEIGHT_KINDS]
        self._begin = _format_header(header, kept)
        self._runs = list(_find_runs(header, kept))
        self.size = len(self._begin) + sum(end - begin for begin, end in self._runs)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def readinto(self, view: memoryview) -> int:
        """Fill some of a buffer with what comes next; 0 at the end."""
        if self._begin:
            count = min(len(view), len(self._begin))
            view[:count], self._begin = self._begin[:count], self._begin[count:]
            return count
        while self._runs:
            begin, end = self._runs[0]
            if begin == end:
                self._runs.pop(0)
                continue
            count = os.preadv(self._descriptor, [view[: end - begin]], begin)
            self._runs[0] = (begin + count, end)
            return count
        return 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def measure_slim(path: Path) -> int:
    """Return the bytes of a rank's file without its optimizer states."""
    file = SlimFile(path)
    file.close()
    return file.size


def _format_header(header: Header, kept: list[str]) -> bytes:
    metadata = {key: header.metadata[key] for key in _METADATA if key in header.metadata}
    if "starts" in metadata:
        starts = json.loads(metadata["starts"])
        metadata["starts"] = json.dumps({key: starts[key] for key in kept if key in starts})
    table: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for key in kept:
        place = header.tensors[key]
        end = offset + place.end - place.begin
        table[key] = {
            "dtype": place.dtype,
            "shape": list(place.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _find_runs(header: Header, kept: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the byte runs of the kept tensors; neighbours are one run."""
    begin = end = 0
    for place in (header.tensors[key] for key in kept):
        if place.begin != end:
            if end > begin:
                yield begin, end
            begin = place.begin
        end = place.end
    if end > begin:
        yield begin, end
