"""Several real ranks for tests: processes with one process group, reused from test to test.

Importing torch, deepspeed and transformers takes a rank about ten seconds, so the processes stay
alive and are handed one function after another. After a failure or a time-out the group is in an
unknown state: it is killed, and the next test gets a fresh one.
"""

import contextlib
import faulthandler
import importlib
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent


class RankFailedError(AssertionError):
    """A rank raised; the text is its traceback."""


class RankPool:
    """`world_size` processes that run functions of test modules together."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self.log_folder = Path(tempfile.mkdtemp(prefix="bigft-ranks-"))

    def run(self, function: str, *args: Any, timeout: float = 240, **kwargs: Any) -> list[Any]:
        """Run `module:function` of tests/support on every rank; results in rank order."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args, kwargs))
        results, errors = [], []
        for rank, pipe in enumerate(self._pipes):
            try:
                answered = pipe.poll(timeout)
                if not answered:
                    self._dump_stack(rank)
                ok, value = pipe.recv() if answered else (False, f"no answer in {timeout} s")
            except EOFError:
                ok, value = False, "the process died"
            results.append(value)
            if not ok:
                errors.append(f"rank {rank}: {value}\n{self._log_tail(rank)}")
                timeout = 5
        if errors:
            self.close()
            raise RankFailedError("\n".join(errors))
        return results

    def _dump_stack(self, rank: int) -> None:
        # Where a rank hangs is worth more than that it hangs.
        with contextlib.suppress(OSError):
            os.kill(self._processes[rank].pid, signal.SIGUSR2)
        time.sleep(0.5)

    def _log_tail(self, rank: int) -> str:
        log = self.log_folder / f"rank_{rank}.log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""

    def _start(self) -> None:
        context = get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(self.world_size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(there, rank, self.world_size, port, str(self.log_folder)),
                daemon=True,
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def close(self) -> None:
        """Stop the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(3)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes = [], []


def _serve(pipe: Connection, rank: int, world_size: int, port: int, logs: str) -> None:
    log = open(f"{logs}/rank_{rank}.log", "w")  # noqa: SIM115, PTH123
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1",
    )
    sys.path.insert(0, str(SUPPORT))
    while (message := pipe.recv()) is not None:
        function, args, kwargs = message
        try:
            module, _, name = function.partition(":")
            value = getattr(importlib.import_module(module), name)(*args, **kwargs)
            pipe.send((True, value))
        except BaseException:  # noqa: BLE001 - whatever happened belongs to the test
            pipe.send((False, traceback.format_exc()))
    from bigft.distributed.world import close_world

    close_world()
