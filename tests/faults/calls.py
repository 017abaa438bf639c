"""Count the calls of one process that change a disk, and let one of them go wrong.

The functions of `os` through which Python changes files are replaced in the process (`pathlib` and
`shutil` look them up there). Before the call with a given number the process is killed, or the call
fails, or writes only half. `test_strace.py` shows that no system call gets past this.
"""

import contextlib
import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COUNTED = (
    "open",
    "write",
    "pwrite",
    "ftruncate",
    "fsync",
    "close",
    "rename",
    "replace",
    "mkdir",
    "rmdir",
    "unlink",
)


@dataclass(frozen=True)
class Fault:
    """What happens at one call.

    `kill` this process before it, `kill_all` of its process group, `torn`: write half, then be
    killed, `short`: write half and say so, `error`: fail with `errno`.
    """

    kind: str
    number: int
    errno: int = 0


class Calls:
    """The calls of this process since `install`."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.log: list[tuple[str, str]] = []
        """Names of calls, and the path each one is about; `look` opens for reading or fsync,
        `found` is a mkdir or an open of what another rank has made already."""
        self.is_fired = False
        self._fault = fault
        self._paths: dict[int, str] = {}
        self._quiet = threading.local()
        self._real = {name: getattr(os, name) for name in COUNTED}

    def install(self) -> None:
        """Replace the functions for the rest of this process's life."""
        from bigft.checkpoint import folder

        for name in COUNTED:
            setattr(os, name, self._wrap(name))
            # Python 3.10 keeps what it found when pathlib was imported.
            accessor = getattr(pathlib, "_NormalAccessor", None)
            if accessor is not None and hasattr(accessor, name) and name != "open":
                setattr(accessor, name, staticmethod(getattr(os, name)))
        # Python has no call of its own for it.
        self._real["exchange"] = folder.exchange
        folder.exchange = self._wrap("exchange")

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Count nothing in this block: what the test does itself."""
        self._quiet.is_on = True
        try:
            yield
        finally:
            self._quiet.is_on = False

    def _wrap(self, name: str) -> Any:
        real = self._real[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._quiet, "is_on", False):
                return real(*args, **kwargs)
            is_look = name == "open" and args[1] & os.O_ACCMODE == os.O_RDONLY
            self.log.append(("look" if is_look else name, self._path_of(args, kwargs)))
            fault = self._fault
            if fault is not None and len(self.log) == fault.number:
                self.is_fired = True
                return self._fail(fault, name, real, args, kwargs)
            try:
                result = real(*args, **kwargs)
            except FileExistsError:
                self.log[-1] = ("found", self.log[-1][1])
                raise
            if name == "open":
                self._paths[result] = self.log[-1][1]
            return result

        return call

    def _fail(self, fault: Fault, name: str, real: Any, args: Any, kwargs: Any) -> Any:
        # Which of two storages makes a folder above both is chance: the numbers may be one off.
        if fault.kind == "short" and name != "write":
            return real(*args, **kwargs)
        if fault.kind in ("torn", "short") and name == "write":
            data = memoryview(args[1])
            done = real(args[0], data[: max(1, len(data) // 2)])
            if fault.kind == "short":
                return done
        if fault.kind == "error":
            if name == "close":
                # As the kernel does it: the descriptor is gone all the same.
                real(*args, **kwargs)
            # Only calls with a path know it.
            path = None if isinstance(args[0], int) else os.fspath(args[0])
            raise OSError(fault.errno, os.strerror(fault.errno), path)
        os.kill(0 if fault.kind == "kill_all" else os.getpid(), signal.SIGKILL)
        while True:  # the signal is on its way
            signal.pause()

    def _path_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        first = args[0]
        if isinstance(first, int):
            return self._paths.get(first, "")
        path = os.fspath(first)
        folder = kwargs.get("dir_fd")
        return str(Path(self._paths.get(folder, "")) / path) if folder is not None else str(path)


class QuietBoard:
    """A board whose own files are not counted."""

    def __init__(self, board: Any, calls: Calls) -> None:
        self._board = board
        self._calls = calls

    def post(self, key: str, text: str) -> None:
        with self._calls.quiet():
            self._board.post(key, text)

    def read(self, key: str, timeout_seconds: float) -> str | None:
        with self._calls.quiet():
            return self._board.read(key, timeout_seconds)
