"""Save the state of a run: collect it, write it on every rank, commit it together.

In the foreground the state is written from where it lies. In the background it is copied into host
memory first, which is all that training waits for; the commit follows while it goes on.
"""

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigft.checkpoint.agree import Board
from bigft.checkpoint.commit import write_checkpoint
from bigft.checkpoint.files import Files
from bigft.checkpoint.pace import Pace, Written
from bigft.checkpoint.state.collect import RankState, collect_state
from bigft.checkpoint.state.index import INDEX_NAME, Index, build_index
from bigft.checkpoint.state.numbers import collect_numbers
from bigft.checkpoint.state.partition import open_partition
from bigft.checkpoint.state.shadow import Shadow
from bigft.checkpoint.state.write import file_name, write_state
from bigft.checkpoint.storages import Storages, one_storage
from bigft.distributed.board import open_board
from bigft.distributed.collectives import broadcast_object
from bigft.errors import CheckpointError

ASSETS = "hf"

_SPARE = 256 << 20
"""Bytes that a checkpoint leaves free."""

WriteAssets = Callable[[Path], None]


class Checkpoints:
    """Writes the checkpoints of one run, one after the other."""

    def __init__(
        self,
        engine: Any,
        folder: Path,
        write_assets: WriteAssets,
        *,
        keep_last: int,
        timeout_seconds: float,
        protected: Path | None = None,
        storages: Storages | None = None,
        shadow: Shadow | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Take what is saved, and where.

        Args:
            engine: The DeepSpeed engine.
            folder: The run's `checkpoints/`.
            write_assets: Writes config and tokenizer into a folder; called on rank 0.
            keep_last: Committed checkpoints that rotation leaves.
            timeout_seconds: How long ranks wait for each other's files.
            protected: The checkpoint that the run resumed from.
            storages: Which ranks share the folder's storage; all of them by default.
            shadow: Weights beside those of the engine that are kept, too.
            tell: Shows a warning about a disk that is slow; on rank 0, in whatever thread writes.

        Collective: every rank.
        """
        self._engine = engine
        self._folder = folder
        self._write_assets = write_assets
        self._keep_last = keep_last
        self._timeout_seconds = timeout_seconds
        self._protected = protected
        self._shadow = shadow
        self._tell = tell
        self._rank = torch.distributed.get_rank()
        self._world_size = torch.distributed.get_world_size()
        self._storages = storages or one_storage(self._world_size)
        self._pace = Pace(self._storages.hosts)
        self._name = broadcast_object(uuid.uuid4().hex[:8])
        self._board: Board = open_board(f"bigft-{self._name}")
        self._number = 0
        self._thread: threading.Thread | None = None
        self._result: Path | BaseException | None = None

    def save(
        self,
        step: int,
        facts: dict[str, Any],
        *,
        is_last: bool = False,
        best: Path | None = None,
    ) -> Path:
        """Write and commit a checkpoint.

        Args:
            step: Optimizer steps done.
            facts: Kept in the manifest; plain values.
            is_last: Whether the engine is not needed afterwards: where there is no room for the
                checkpoint beside the swap files, it takes theirs.
            best: The run's best checkpoint, which may be this one; it is kept.

        Returns:
            The committed folder `step_XXXXXXXX`.

        Raises:
            CheckpointError: It could not be written, or the one before could not; older
                checkpoints are untouched.

        Collective: every rank.
        Memory: 16 MiB beside the state.
        """
        self.wait()
        with self._collected() as (state, index):
            release = self._find_release(state, is_last=is_last)
            return self._commit(step, facts, replace(state, release=release), index, best)

    def _find_release(self, state: RankState, *, is_last: bool) -> Callable[[Tensor], None] | None:
        """What to do with mapped swap files once they are written: to save memory, and disk."""
        swap: Any = getattr(self._engine.optimizer, "swap", None)
        if swap is None:
            return None
        run = self._folder.parent  # The folder itself may not be there yet.
        here = int(os.environ.get("LOCAL_SIZE", self._world_size))
        has_room = shutil.disk_usage(run).free > here * state.num_bytes + _SPARE
        is_beside = swap.folder.stat().st_dev == run.stat().st_dev
        chosen: Callable[[Tensor], None] = (
            swap.release if is_last and is_beside and not has_room else swap.forget
        )
        return chosen

    def begin(self, step: int, facts: dict[str, Any], *, best: Path | None = None) -> None:
        """Copy the state, and write and commit it in the background; `wait` says how it went.

        Args:
            step: Optimizer steps done.
            facts: Kept in the manifest; plain values.
            best: The run's best checkpoint, which may be this one; it is kept.

        Raises:
            CheckpointError: The save before this one failed.

        Collective: every rank.
        Memory: this rank's state once more, until it is written.
        """
        self.wait()
        with self._collected() as (state, index):
            copied = state.copied()

        def work() -> None:
            try:
                self._result = self._commit(step, facts, copied, index, best)
            except BaseException as error:  # noqa: BLE001 - raised again by `wait`
                self._result = error

        # No daemon: a process that ends waits for its checkpoint.
        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def wait(self) -> Path | None:
        """Wait for the save in the background, if there is one.

        Returns:
            The folder that it committed.

        Raises:
            CheckpointError: It failed, on all ranks alike.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        result, self._result = self._result, None
        if isinstance(result, BaseException):
            raise result
        return result

    @contextlib.contextmanager
    def _collected(self) -> Iterator[tuple[RankState, Index]]:
        engine = self._engine
        inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
        partition = open_partition(engine)
        numbers = collect_numbers(engine, inner)
        index = build_index(engine.module, self._world_size, numbers)
        error: CheckpointError | None = None
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(partition.readable())
                state = collect_state(partition, inner, engine.module, self._rank)
                if self._shadow is not None and (self._rank == 0 or not partition.is_replicated):
                    state = replace(state, entries=state.entries + self._shadow.collect())
            except CheckpointError as caught:
                # The others go on to write: this rank has to take part and say so there.
                error, state = caught, RankState([])
            self._unreadable = error
            yield state, index

    def _commit(
        self, step: int, facts: dict[str, Any], state: RankState, index: Index, best: Path | None
    ) -> Path:
        unreadable = self._unreadable

        def write(files: Files) -> None:
            if unreadable is not None:
                raise unreadable
            with files.create(file_name(self._rank)) as file:
                write_state(state, file)
            if self._rank == 0:
                with files.create(INDEX_NAME) as file:
                    file.write(index.to_json().encode())
                (files.folder / ASSETS).mkdir()
                self._write_assets(files.folder / ASSETS)
                files.adopt(ASSETS)

        def judge(parts: list[Written]) -> None:
            warning = self._pace.judge(step, parts)
            if warning is not None:
                self._tell(warning)

        self._number += 1
        return write_checkpoint(
            self._folder,
            step=step,
            facts=facts,
            write=write,
            rank=self._rank,
            world_size=self._world_size,
            board=self._board,
            timeout_seconds=self._timeout_seconds,
            keep_last=self._keep_last,
            protected=self._protected,
            save_id=f"{self._name}-{self._number}",
            best=best,
            storages=self._storages,
            heard=judge,
        )
