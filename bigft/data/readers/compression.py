"""Opening a file, compressed or not, so that whatever breaks later names the file and the line."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigft.data.readers.encoding import explain_conversion, find_foreign_encoding
from bigft.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER_BYTES = 1 << 20


@dataclass
class InputFile:
    """An open file, and how far its reader has come."""

    path: Path
    flag: str
    stream: io.BufferedReader
    line: int = 0
    """The line being read; 0 before the first one."""

    def fail(self, reason: str, line: int | None = None) -> DataError:
        """Build the error that names the flag, the file and the line."""
        return DataError(f"{self.flag}: {self.path}:{line or self.line or 1}: {reason}")


@contextmanager
def open_input(path: Path, flag: str) -> Iterator[InputFile]:
    """Open a file for reading bytes, decompressed by the end of its name.

    Raises:
        DataError: The file is missing, damaged or cut off, now or later in the `with` block, or is
            UTF-16 or UTF-32.

    Memory: 1 MiB, and what the decompressor needs.
    """
    file: InputFile | None = None
    try:
        with _open(path) as stream:
            file = InputFile(path, flag, stream)
            encoding = find_foreign_encoding(stream.peek(4)[:4])
            if encoding:
                raise DataError(
                    f"{flag}={path}: {encoding}, not UTF-8; {explain_conversion(encoding)}"
                )
            yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        place = f" after line {file.line}" if file and file.line else ""
        raise DataError(f"{flag}={path}: cannot be read to its end{place}: {error}") from error


def _open(path: Path) -> io.BufferedReader:
    return io.BufferedReader(_OPENERS.get(path.suffix.lower(), io.FileIO)(path), _BUFFER_BYTES)


class _Zstandard(io.RawIOBase):
    """The decompressed bytes, by pyarrow: the standard library has none before Python 3.14."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._damage = pyarrow.ArrowException
        self._stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        try:
            data = self._stream.read(len(view))
        except self._damage as error:
            raise OSError(str(error)) from None
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _Zstandard,
}

COMPRESSIONS = tuple(_OPENERS)
"""Endings behind the one of the kind."""
