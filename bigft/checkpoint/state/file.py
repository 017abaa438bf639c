"""One rank's file, read range by range.

Not by the safetensors library, which maps the whole file as memory that a process could write: of a
file larger than the memory the kernel refuses that.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from bigft.checkpoint.state.write import DTYPES
from bigft.errors import CheckpointError
from bigft.files.safetensors_header import read_header

HEADER_SUFFIX = ".header"
"""Of a file that is only the header of another one, whose tensors are not here."""

_NAMED = {name: dtype for dtype, name in DTYPES.items()}


class StateFile:
    """Flat tensors by name; a context manager that keeps the file open."""

    def __init__(self, path: Path, *, is_header: bool = False) -> None:
        """Read the header.

        Args:
            path: Of the file.
            is_header: Whether that is all there is: reading a tensor fails.

        Raises:
            CheckpointError: The file is missing or damaged.
        """
        self._path = path
        header = read_header(path, has_tensors=not is_header)
        self.metadata = header.metadata
        self._places = header.tensors
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> "StateFile":
        """Keep it open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self._descriptor)

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self._places)

    def has(self, key: str) -> bool:
        """Whether there is such a tensor."""
        return key in self._places

    def numel(self, key: str) -> int:
        """Elements of a tensor."""
        return self._places[key].shape[0]

    def dtype(self, key: str) -> torch.dtype:
        """Format of a tensor."""
        return _NAMED[self._places[key].dtype]

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read elements `[start, stop)` of a tensor, `(n,)`; all of it without them.

        Raises:
            CheckpointError: The disk fails.
        """
        place, dtype = self._places[key], self.dtype(key)
        stop = self.numel(key) if stop is None else stop
        found = torch.empty(stop - start, dtype=dtype)
        view = found.view(torch.uint8).numpy().data
        position, done = place.begin + start * dtype.itemsize, 0
        try:
            while done < len(view):
                count = os.preadv(self._descriptor, [view[done:]], position + done)
                if count == 0:
                    raise CheckpointError(f"{self._path}: has been cut off; use another checkpoint")
                done += count
        except OSError as error:
            raise CheckpointError(f"{self._path}: cannot be read ({error.strerror})") from error
        return found
