"""What a save finds on the disk, and what it is asked to do there."""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bigft.checkpoint.commit import write_checkpoint
from bigft.checkpoint.files import Files
from bigft.checkpoint.storages import Storages
from bigft.distributed.board import LocalBoard

WORLD_SIZE = 4

# Two names of a library's files, which rank 0 adopts.
ASSETS = ("hf/config.json", "hf/tokenizer.json")
INDEX = "state/index.json"


@dataclass(frozen=True)
class Situation:
    """Committed steps in the order of their commits, and the save that follows."""

    name: str
    committed: tuple[int, ...]
    step: int
    keep_last: int
    protected: int | None = None
    has_exchange: bool = True
    """Whether the file system can exchange two names in one step."""
    debris: tuple[str, ...] = field(default=())
    aside: tuple[int, ...] = ()
    """Committed steps that a crash left under their name for the time of a replacement."""
    damaged: tuple[int, ...] = ()
    storages: int = 1
    """Two: ranks 0 and 1 share one, ranks 2 and 3 the other."""
    half_named: tuple[int, ...] = ()
    """Steps whose commit was decided, and which a crash left without their name on the other one;
    a step that is there twice was replaced in that way."""

    @property
    def tags(self) -> dict[int, str]:
        """What is known to be whole: step and the mark in all its files."""
        again = self.half_named[1:]
        return {
            step: f"newer-{step}" if step in again else f"old-{step}"
            for step in self.committed
            if step not in self.damaged
        }


SITUATIONS = {
    situation.name: situation
    for situation in (
        Situation("first save", (), 10, keep_last=2),
        Situation("normal", (10, 20), 30, keep_last=3),
        Situation("same step again", (10, 20, 30), 30, keep_last=3, protected=20),
        Situation("same step, no exchange", (10, 20, 30), 30, 3, protected=20, has_exchange=False),
        Situation("rotation", (10, 20, 30, 40), 50, keep_last=2, protected=10),
        Situation("rotation to 1", (10, 20), 30, keep_last=1),
        Situation("rotation to 3", (10, 20, 40, 30), 50, keep_last=3),
        Situation(
            "debris",
            (10, 15, 20, 25),
            30,
            keep_last=3,
            debris=(".tmp-step_00000030-dead", ".tmp-trash-step_00000005", ".aside-step_00000020"),
            aside=(15,),
            damaged=(25,),
        ),
    )
}

APART = {
    situation.name: situation
    for situation in (
        Situation("apart: first save", (), 10, keep_last=2, storages=2),
        Situation("apart: normal", (10, 20), 30, keep_last=3, storages=2),
        Situation("apart: same step again", (10, 20, 30), 30, 3, protected=20, storages=2),
        Situation(
            "apart: same step, no exchange", (10, 20, 30), 30, 3, 20, has_exchange=False, storages=2
        ),
        Situation("apart: rotation", (10, 20, 30, 40), 50, 2, protected=10, storages=2),
        Situation("apart: half named", (10, 20), 30, 2, storages=2, half_named=(20,)),
        Situation(
            "apart: half replaced",
            (10, 20),
            30,
            2,
            storages=2,
            half_named=(20, 20),
            debris=(".tmp-step_00000030-dead", ".tmp-trash-step_00000005"),
        ),
    )
}
"""The same where the ranks have disks of their own."""

EVERY = SITUATIONS | APART


def find_checkpoints(run: Path, storage: int) -> Path:
    """Return where a storage keeps a run's checkpoints."""
    return (run / "other" if storage else run) / "checkpoints"


def find_storage(rank: int, situation: Situation) -> int:
    """Return the storage of a rank."""
    return rank * situation.storages // WORLD_SIZE


def describe_storages(situation: Situation) -> Storages | None:
    """Return what the ranks know of their storages; nothing where they share one."""
    if situation.storages == 1:
        return None
    numbers = tuple(find_storage(rank, situation) for rank in range(WORLD_SIZE))
    return Storages(numbers, tuple(f"host{number}" for number in numbers))


def shard_name(rank: int) -> str:
    """Return a rank's file."""
    return f"state/rank_{rank:05d}.safetensors"


def make_content(tag: str, rank: int, step: int) -> list[bytes]:
    """Return what a rank writes, in pieces: every file says of which save it is."""
    filler = bytes((step * 7 + rank * 31 + index) % 256 for index in range(200))
    return [f"{tag} {rank} {step}\n".encode(), filler, filler[::-1]]


def make_writer(tag: str, rank: int, step: int, pause: Callable[[], None]) -> Callable:
    """Return the callback that writes a rank's files."""

    def write(files: Files) -> None:
        with files.create(shard_name(rank)) as file:
            for piece in make_content(tag, rank, step):
                pause()
                file.write(piece)
        if rank == 0:
            with files.create(INDEX) as file:
                file.write(f"{tag}\n".encode())
            (files.folder / "hf").mkdir()
            for name in ASSETS:
                _write_as_a_library(files.folder / name, tag)
            files.adopt("hf")

    return write


def _write_as_a_library(path: Path, tag: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    data = f'{{"tag": "{tag}"}}'.encode()
    while data:
        data = data[os.write(descriptor, data) :]
    os.close(descriptor)


def save_in_threads(
    checkpoints: Path,
    step: int,
    tag: str,
    keep_last: int,
    protected: Path | None = None,
    world_size: int = WORLD_SIZE,
    situation: Situation | None = None,
) -> list[Path | BaseException]:
    """Save with ranks that are threads of this process; results in rank order."""
    home = checkpoints.parent
    board = LocalBoard()
    results: list[Path | BaseException] = [RuntimeError("no answer")] * world_size

    def run(rank: int) -> None:
        storage = find_storage(rank, situation) if situation else 0
        try:
            results[rank] = write_checkpoint(
                find_checkpoints(home, storage),
                step=step,
                facts={"tag": tag},
                write=make_writer(tag, rank, step, lambda: None),
                rank=rank,
                world_size=world_size,
                board=board,
                timeout_seconds=60,
                keep_last=keep_last,
                protected=protected,
                save_id=f"threads-{tag}",
                storages=describe_storages(situation) if situation else None,
            )
        except Exception as error:  # noqa: BLE001
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def build(situation: Situation, run: Path) -> None:
    """Make the run's folder as the save finds it."""
    run.mkdir(parents=True)
    checkpoints = run / "checkpoints"
    for step in situation.committed:
        _save_old(situation, checkpoints, step, f"old-{step}")
    if situation.half_named:
        _name_by_half(situation, run)
    for step in situation.aside:
        folder = checkpoints / f"step_{step:08d}"
        folder.rename(checkpoints / f".aside-{folder.name}")
    for step in situation.damaged:
        (checkpoints / f"step_{step:08d}" / shard_name(2)).write_bytes(b"damaged")
    for name in situation.debris:
        (checkpoints / name / "state").mkdir(parents=True)
        (checkpoints / name / shard_name(0)).write_bytes(b"half")
        (checkpoints / name / shard_name(1)).write_bytes(b"")
    if situation.debris:
        (checkpoints / ".tmp-latest").write_text("step_0000")


def _save_old(situation: Situation, checkpoints: Path, step: int, tag: str) -> None:
    for result in save_in_threads(checkpoints, step, tag, keep_last=100, situation=situation):
        if isinstance(result, BaseException):
            raise result


def _name_by_half(situation: Situation, run: Path) -> None:
    """Leave what a kill between the renames of the two storages leaves."""
    (step, *again) = situation.half_named
    name = f"step_{step:08d}"
    here, there = (find_checkpoints(run, storage) for storage in (0, 1))
    if not again:
        (there / name).rename(there / f".tmp-{name}-dead")
        return
    old = [folder / f".kept-{name}" for folder in (here, there)]
    for folder, place in zip((here, there), old, strict=True):
        shutil.copytree(folder / name, place)
    _save_old(situation, here, step, f"newer-{step}")
    (there / name).rename(there / f".tmp-{name}-dead")
    old[1].rename(there / name)
    old[0].rename(here / f".tmp-{name}-dead")


def clone(template: Path, run: Path) -> None:
    """Copy a run's folder cheaply: committed files are never written to."""
    run.parent.mkdir(parents=True)
    if not any(template.iterdir()):
        return  # the first save makes the run's folder too

    def copy(source: str, target: str) -> None:
        if source.endswith(".lock"):
            shutil.copyfile(source, target)
        else:
            os.link(source, target)

    shutil.copytree(template, run, copy_function=copy)
