"""Files of a checkpoint that lie on several hosts, gathered here over ssh.

Only hosts of the hostfile are asked, whatever a manifest says, and only for names that a manifest
whose digest is right may list. What arrives is compared with that manifest's digests.
"""

import contextlib
import logging
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bigft.checkpoint.ask import look_for, read_answer
from bigft.checkpoint.content import verify_files
from bigft.checkpoint.elsewhere import explain_lost, find_lost
from bigft.checkpoint.files import FileRecord
from bigft.checkpoint.holdings import Commit, Holding, list_commits
from bigft.checkpoint.manifest import MANIFEST_NAME, list_files, read_own_manifest
from bigft.checkpoint.source import Source
from bigft.checkpoint.swap import unfinished_folder
from bigft.errors import CheckpointError, LaunchError, raise_together
from bigft.launch.hostfile import read_hostfile
from bigft.launch.remote import ask_there, render_ssh
from bigft.units import format_bytes

logger = logging.getLogger(__name__)

_ASK_SECONDS = 60
_STALL_SECONDS = 60
"""A connection over which nothing comes for so long has failed."""
_PIECE_BYTES = 1 << 20
_MOST_MANIFEST = 256 << 20
"""Bytes: those of a million files."""

_AT_ONCE = 4
_SPARE = 64 << 20

_HERE = ""
"""The name of this host among the others."""

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class _Found:
    """The checkpoint that is taken, and who has it."""

    commit: Commit
    names: tuple[str, ...]
    """Number in the commit -> host; `_HERE` for this one."""
    folders: tuple[Path, ...]
    """Number -> folder in which the checkpoint's lies there."""

    def place(self, number: int) -> Path:
        """Return the checkpoint's folder on a host."""
        return self.folders[number] / self.commit.held[number][0].name

    def is_beside(self, number: int, folder: Path) -> bool:
        """Whether a host's files can be linked into a folder: this host's, on the same disk."""
        is_here = self.names[number] == _HERE
        return is_here and self.place(number).stat().st_dev == folder.stat().st_dev

    def find_holder(self, name: str) -> int | None:
        """Return who has a file; this host, if it has it."""
        return next(
            (n for n, ones in self.commit.held.items() if name in ones[0].present),
            None,
        )


@contextlib.contextmanager
def gathered(source: Path, hostfile: Path, output: Path, progress: Progress) -> Iterator[Source]:
    """Have the newest checkpoint under a path in one place for the length of the block.

    Args:
        source: A run folder or a checkpoint: the same path on every host that has some of it.
        hostfile: The hosts to ask.
        output: What is gathered lies in `<output>.gathered.partial` meanwhile.
        progress: Told how many bytes have come.

    Raises:
        LaunchError: The hostfile is wrong.
        CheckpointError: Some files are on none of these hosts, arrive damaged, or do not come.
    """
    hosts = [one.name for one in read_hostfile(hostfile)]
    found = _find(source.absolute(), hosts)
    with unfinished_folder(output.with_name(f"{output.name}.gathered")) as folder:
        manifest = _fetch_manifest(found, folder)
        records = list_files(manifest)
        all_holders = {one.path: found.find_holder(one.path) for one in records}
        holders = {name: n for name, n in all_holders.items() if n is not None}
        if lost := find_lost(manifest, holders):
            raise CheckpointError(
                f"{explain_lost(found.place(min(found.commit.held)), manifest, lost)}."
                f" None of the hosts of {hostfile} has them"
            )
        coming = [one for one in records if not found.is_beside(holders[one.path], folder)]
        _check_room(folder, coming)
        _fetch_all(found, holders, records, folder, progress)
        verify_files(folder, manifest)
        name = str(found.place(min(found.commit.held)) / "state")
        yield Source(folder / "state", folder / "hf", manifest, name=name)


def _find(source: Path, hosts: Sequence[str]) -> _Found:
    """Ask all hosts what they have, and choose the newest checkpoint."""
    try:
        here = look_for(source)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from error
    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = [here, *pool.map(lambda host: _ask(host, source), hosts)]
    problems = [str(one) for one in answers if isinstance(one, LaunchError)]
    places = [one if isinstance(one, tuple) else (source, []) for one in answers]
    commits = list_commits([holdings for _, holdings in places])
    if not commits:
        said = [one.problem for _, holdings in places for one in holdings]
        raise_together(
            CheckpointError,
            [f"{source}: no committed checkpoint there, here or on {', '.join(hosts)}"]
            + problems
            + said,
        )
    commit = commits[-1]
    if not commit.is_whole and problems:
        raise_together(CheckpointError, [f"{source}: not all hosts have answered", *problems])
    for problem in problems:
        logger.warning("%s", problem)
    return _Found(commit, (_HERE, *hosts), tuple(folder for folder, _ in places))


def _ask(host: str, source: Path) -> tuple[Path, list[Holding]] | LaunchError:
    answer = ask_there(host, ["-m", "bigft.checkpoint.ask"], _ASK_SECONDS, text=f"{source}\n")
    if answer.code is None:
        return LaunchError(f"{host}: no answer in {_ASK_SECONDS} s")
    if answer.code != 0:
        return LaunchError(f"{host}: {answer.last_words}")
    try:
        return read_answer(answer.last_line)
    except ValueError:
        return LaunchError(f"{host}: answers {answer.last_words[:200]!r}")


def _fetch_manifest(found: _Found, folder: Path) -> dict[str, Any]:
    number = min(found.commit.held)
    _fetch(found, number, MANIFEST_NAME, folder)
    manifest = read_own_manifest(folder)
    if manifest["digest"] != found.commit.digest:
        raise CheckpointError(f"{found.place(number)}: changes while it is read; try again")
    return manifest


def _fetch_all(
    found: _Found,
    holders: Mapping[str, int],
    records: Sequence[FileRecord],
    folder: Path,
    progress: Progress,
) -> None:
    total = sum(one.size for one in records)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        work = {
            pool.submit(_fetch, found, holders[one.path], one.path, folder, one.size): one
            for one in records
        }
        try:
            for job, one in work.items():
                job.result()
                progress("gathering", one.size, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(found: _Found, number: int, name: str, folder: Path, size: int | None = None) -> None:
    """Bring one file; its content is not looked at yet, but no more comes than it has."""
    host, path, target = found.names[number], found.place(number) / name, folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if host == _HERE:
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
        return
    try:
        with target.open("xb") as file:
            problem = _copy(render_ssh(host, ["cat", "--", str(path)], {}, Path("/")), file, size)
    except OSError as error:
        problem = str(error)
    if problem:
        raise CheckpointError(f"{host}:{path}: did not come ({problem})")


def _copy(command: Sequence[str], file: BinaryIO, size: int | None) -> str:
    """Write what a command says as long as something comes; what went wrong, if anything."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as child:
        try:
            return _receive(child, file, size)
        except subprocess.TimeoutExpired:
            return f"nothing came for {_STALL_SECONDS} s"
        finally:
            child.kill()


def _receive(child: "subprocess.Popen[bytes]", file: BinaryIO, size: int | None) -> str:
    assert child.stdout
    assert child.stderr
    most, count = _MOST_MANIFEST if size is None else size, 0
    poller = select.poll()
    poller.register(child.stdout, select.POLLIN)
    piece = b"anything"
    while piece:
        if not poller.poll(_STALL_SECONDS * 1000):
            raise subprocess.TimeoutExpired(child.args, _STALL_SECONDS)
        piece = child.stdout.read(_PIECE_BYTES)
        count += len(piece)
        if count > most:
            said = "no manifest has more than" if size is None else "its manifest says"
            return f"{count:,} bytes came and more may, {said} {most:,}"
        file.write(piece)
    code = child.wait(_STALL_SECONDS)
    if code != 0:
        lines = child.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"
    is_whole = size is None or count == size
    return "" if is_whole else f"{count:,} bytes came, its manifest says {size:,}"


def _check_room(folder: Path, records: Sequence[FileRecord]) -> None:
    needed, free = sum(one.size for one in records), shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise CheckpointError(
            f"{folder.parent}: {format_bytes(free)} free, the gathered checkpoint needs"
            f" {format_bytes(needed)} for a while; free some space, or name an --output_dir on"
            " another disk"
        )
