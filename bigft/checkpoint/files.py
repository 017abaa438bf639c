"""The files of a checkpoint while they are written: counted, hashed and put on disk.

A file is hashed from the memory it is written from, so what the disk holds later can be compared
with what was meant, and nothing is read twice.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING

from bigft.errors import CheckpointError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Large enough that calls cost nothing, small enough to stay in the cache of a core.
_CHUNK_BYTES = 4 << 20

# A file system that cannot sync a folder says so with these; its names are then its own affair.
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint as the manifest lists it."""

    path: str
    """Place in the checkpoint's folder, with `/` between its parts."""
    size: int
    """Bytes."""
    sha256: str
    """Digest of the content, 64 hexadecimal digits."""


class Files:
    """Makes the files of one rank in a folder that is not committed yet."""

    def __init__(self, folder: Path) -> None:
        """Take the temporary folder of the checkpoint."""
        self.folder = folder
        """For libraries that write by themselves; `adopt` what they wrote."""
        self.records: list[FileRecord] = []
        """The files written or adopted so far."""

    def create(self, name: str) -> "FileWriter":
        """Open a new file for writing, with the folders on its way.

        Args:
            name: Place in the checkpoint, such as `state/rank_00003.safetensors`.

        Returns:
            A context manager. The file counts once its block ends without an exception.

        Raises:
            CheckpointError: The name leaves the folder.
            OSError: It cannot be made, or is already there.
        """
        path = self._place(name)
        # Never the folder itself: a rank that comes late must not bring back what rank 0 removed.
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            (self.folder / parent).mkdir(exist_ok=True)
        return FileWriter(path, name, self.records)

    def adopt(self, name: str) -> None:
        """Take over what a library wrote: a file, or a folder with everything in it.

        Raises:
            CheckpointError: The name leaves the folder, or something is no regular file.
            OSError: It cannot be read or put on disk.
        """
        path = self._place(name)
        found = sorted(walk_files(path)) if path.is_dir() and not path.is_symlink() else [path]
        for file in found:
            if not stat.S_ISREG(file.lstat().st_mode):
                raise CheckpointError(f"{file}: not a regular file; a checkpoint holds no links")
            sync(file)
            place = file.relative_to(self.folder).as_posix()
            self.records.append(FileRecord(place, file.stat().st_size, hash_file(file)))

    def sync_folders(self) -> None:
        """Put the names of this rank's files on disk, up to the checkpoint's folder."""
        places = {parent for entry in self.records for parent in PurePosixPath(entry.path).parents}
        for place in sorted(places, key=lambda place: len(place.parts), reverse=True):
            sync(self.folder / place)

    def _place(self, name: str) -> Path:
        if problem := explain_name(name):
            raise CheckpointError(f"{self.folder}: {name!r} {problem}")
        parent = (self.folder / name).parent
        if not parent.resolve().is_relative_to(self.folder.resolve()):
            raise CheckpointError(f"{self.folder}: {name!r} leaves the checkpoint through a link")
        return self.folder / name


class FileWriter:
    """A file under construction: everything written is counted, hashed and put on disk."""

    def __init__(self, path: Path, name: str, records: list[FileRecord]) -> None:
        """Create the file; it must not be there yet."""
        self._path = path
        self._name = name
        self._records = records
        self._sha256 = hashlib.sha256()
        self._size = 0
        # The mode is left to the umask.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)

    def write(self, data: "ReadableBuffer") -> int:
        """Write all of a contiguous buffer.

        Returns:
            Its bytes.

        Raises:
            OSError: With the name of the file.
        """
        view = memoryview(data)
        if view.nbytes == 0:
            return 0
        view = view.cast("B")
        try:
            for start in range(0, view.nbytes, _CHUNK_BYTES):
                self._write_chunk(view[start : start + _CHUNK_BYTES])
        except OSError as error:
            raise _named(error, self._path) from error
        self._size += view.nbytes
        return view.nbytes

    def _write_chunk(self, chunk: memoryview) -> None:
        done = 0
        while done < chunk.nbytes:
            # A full disk first takes a part and fails at the next call.
            done += os.write(self._descriptor, chunk[done:])
        # While it is in the cache. A second thread for this gained nothing on two cores.
        self._sha256.update(chunk)

    def __enter__(self) -> "FileWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
        except OSError as problem:
            raise _named(problem, self._path) from problem
        finally:
            self._close(is_told=kind is None)
        if kind is None:
            record = FileRecord(self._name, self._size, self._sha256.hexdigest())
            self._records.append(record)

    def _close(self, *, is_told: bool) -> None:
        try:
            os.close(self._descriptor)
        except OSError as error:
            # NFS reports a full disk here; the descriptor is gone all the same.
            if is_told:
                raise _named(error, self._path) from error


def explain_name(name: str) -> str | None:
    """Say what is wrong with a file's place in a checkpoint, or return None."""
    parts = PurePosixPath(name).parts
    if not name or "\0" in name or str(PurePosixPath(name)) != name or parts in ((), (".",)):
        return "is not the plain name of a file"
    if name.startswith("/") or ".." in parts:
        return "lies outside the checkpoint"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return "is not a name that a file can have"
    return None


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder that is not a folder itself, without following links."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from walk_files(path)
        else:
            yield path


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's content as 64 hexadecimal digits.

    Memory: 4 MiB.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Put a file, or the names inside a folder, on disk.

    Raises:
        OSError: With the name.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT_SYNC):
            raise _named(error, path) from error


def _named(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, error.strerror, str(path))
