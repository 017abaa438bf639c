"""Find what a run continues from where its hosts do not share one storage.

A checkpoint counts if every one of its files is on some storage of this run. What a crash left
undecided between the storages is settled first; nothing is deleted before one has been found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bigft.checkpoint.ask import look_for
from bigft.checkpoint.content import find_damaged, share_files
from bigft.checkpoint.elsewhere import PartsElsewhereError, explain_lost, find_hosts, find_lost
from bigft.checkpoint.folder import clear_debris, final_place
from bigft.checkpoint.holdings import (
    Commit,
    Survey,
    finish,
    list_commits,
    settle,
    survey,
)
from bigft.checkpoint.manifest import MANIFEST_NAME, read_own_manifest, set_aside
from bigft.checkpoint.storages import Storages
from bigft.distributed.claim import claimed
from bigft.distributed.collectives import broadcast_object, errors_shared, gather_objects
from bigft.errors import CheckpointError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run continues from."""

    folder: Path
    manifest: dict[str, Any]
    held: tuple[frozenset[str], ...] = ()
    """Per storage: which of its files are there, verified; nothing where all ranks share one."""


def choose_commit(
    surveys: Sequence[Survey], check: Callable[[Commit], str | None]
) -> tuple[Commit | None, list[tuple[int, str]], list[str]]:
    """Return the newest whole checkpoint, or None if there is none at all.

    Args:
        surveys: What each storage holds.
        check: Says what is wrong with one, or None; the same answer on every rank.

    Returns:
        The checkpoint; storage and name of each folder to put away; and what is wrong with these.

    Raises:
        CheckpointError: There are checkpoints, and none is whole. They stay as they are.
    """
    damaged = [
        (number, one.name, one.problem)
        for number, holdings in enumerate(surveys)
        for one in holdings
        if one.is_final and not one.digest
    ]
    for commit in reversed(list_commits(surveys)):
        finals = commit.held_finally()
        if not finals:
            continue
        problem = check(commit)
        if problem is None:
            places = [(number, name) for number, name, _ in damaged]
            return commit, places, list(dict.fromkeys(text for _, _, text in damaged))
        damaged += [(number, one.name, problem) for number, one in finals.items()]
    if damaged:
        problems = "\n".join(dict.fromkeys(text for _, _, text in damaged))
        raise CheckpointError(
            f"{problems}\nno checkpoint of this run is whole; mend one from a copy, or start anew"
            " with --resume never"
        )
    return None, [], []


class Finder:
    """Looks for a checkpoint together with the other ranks. Every method is collective."""

    def __init__(self, rank: int, storages: Storages) -> None:
        """Take this rank's place."""
        self._rank = rank
        self._storages = storages
        self._mine = storages.of_rank[rank]
        self.held: tuple[frozenset[str], ...] = ()

    def find_auto(self, checkpoints: Path) -> tuple[Resumed | None, list[str]]:
        """Return the run's newest whole checkpoint, and what is to be said.

        Raises:
            CheckpointError: Files of the newest are on hosts that are not in this run; or there are
                checkpoints, and none is whole.
        """
        unfinished = settle(self._ask(lambda: survey(checkpoints)))
        if unfinished:
            self._ask(lambda: _claim(checkpoints, lambda: finish(checkpoints, unfinished)))
        surveys = self._ask(lambda: survey(checkpoints))
        manifests: dict[str, dict[str, Any]] = {}

        def check(commit: Commit) -> str | None:
            folder = final_place(checkpoints, commit.step)
            manifests[commit.digest] = self._read(folder, min(commit.held_finally()))
            return self._check(folder, manifests[commit.digest], commit, is_named=False)

        commit, places, problems = choose_commit(surveys, check)
        put = self._ask(lambda: _put_away(checkpoints, places, self._mine))
        if commit or not any(surveys):
            self._ask(lambda: _claim(checkpoints, lambda: clear_debris(checkpoints)))
        kept = ", ".join(
            f"{name} on {host}"
            for names, host in zip(put, self._hosts(), strict=True)
            for name in names
        )
        notes = [f"warning: {problem}. The checkpoint before it is used" for problem in problems]
        if kept:
            notes.append(f"warning: damaged checkpoints are kept as {kept}")
        if commit is None:
            return None, notes
        folder = final_place(checkpoints, commit.step)
        return Resumed(folder, manifests[commit.digest], self.held), notes

    def find_given(self, resume: str) -> Resumed:
        """Return the checkpoint that was named, or the newest of a run folder that was.

        Raises:
            CheckpointError: There is none, it is damaged, or files of it are on no host.
        """
        found = self._ask(lambda: look_for(Path(resume)))
        commits = list_commits([holdings for _, holdings in found])
        if not commits:
            problems = [one.problem for _, holdings in found for one in holdings]
            raise _shared(
                "; ".join(problems)
                or f"--resume {resume}: no committed checkpoint there on any host; give a folder"
                f" step_XXXXXXXX with a {MANIFEST_NAME}, a run folder, or auto"
            )
        commit = commits[-1]
        first = min(commit.held)
        folder = found[first][0] / commit.held[first][0].name
        manifest = self._read(folder, first)
        if problem := self._check(folder, manifest, commit, is_named=True):
            raise _shared(problem)
        return Resumed(folder, manifest, self.held)

    def find_finished(self, folder: Path) -> Resumed:
        """Return a checkpoint of this run, to make a model of it.

        The newest one was written or verified by this run; every file of another one is read.

        Raises:
            CheckpointError: It is damaged, or files of it are on no host.
        """
        surveys = self._ask(lambda: survey(folder.parent))
        finals = [one for one in list_commits(surveys) if one.held_finally()]
        commit = next(
            (one for one in finals if final_place(folder.parent, one.step) == folder), None
        )
        if commit is None:
            raise _shared(f"{folder}: no longer there on any host")
        manifest = self._read(folder, min(commit.held_finally()))
        is_newest = commit is finals[-1]
        if problem := self._check(folder, manifest, commit, is_named=True, is_read=not is_newest):
            raise _shared(problem)
        return Resumed(folder, manifest, self.held)

    def list_earlier(self, checkpoints: Path) -> list[str]:
        """List the names of all checkpoints on all storages."""
        surveys = self._ask(lambda: survey(checkpoints))
        return sorted({one.name for holdings in surveys for one in holdings if one.is_final})

    def _read(self, folder: Path, number: int) -> dict[str, Any]:
        """Read a manifest where a storage has it under this name."""
        source = self._storages.leaders[number]
        manifest: dict[str, Any] = {}
        with errors_shared():
            if self._rank == source:
                manifest = read_own_manifest(folder)
        return broadcast_object(manifest, source)

    def _check(
        self,
        folder: Path,
        manifest: dict[str, Any],
        commit: Commit,
        *,
        is_named: bool,
        is_read: bool = True,
    ) -> str | None:
        """Say what is wrong with a checkpoint; every file is read, unless that is not needed."""
        present = {
            number: {name for one in ones for name in one.present}
            for number, ones in commit.held.items()
        }
        lost = find_lost(manifest, set().union(*present.values()))
        if lost:
            text = explain_lost(folder, manifest, lost)
            if is_named or not set(find_hosts(manifest, lost)) <= set(self._storages.hosts):
                raise _shared(text, PartsElsewhereError)
            return text
        damaged: dict[str, str] = {}
        if self._mine in present and is_read:
            ranks = self._storages.ranks_at(self._mine)
            place = ranks.index(self._rank)
            names = share_files(manifest, place, len(ranks), present[self._mine])
            damaged = find_damaged(folder, manifest, names)
        found = gather_objects(damaged)
        for rank, bad in enumerate(found):
            present.get(self._storages.of_rank[rank], set()).difference_update(bad)
        self.held = tuple(
            frozenset(present.get(number, ())) for number in range(self._storages.count)
        )
        # Another storage may have a good copy.
        lost = find_lost(manifest, set().union(*self.held))
        texts = [text for bad in found for name, text in bad.items() if name in lost]
        return "; ".join(dict.fromkeys(texts)) or None

    def _ask(self, act: Callable[[], _T]) -> list[_T]:
        """Let the first rank of every storage do something; what they found, by storage."""
        mine: Any = None
        with errors_shared():
            if self._storages.leads(self._rank):
                try:
                    mine = act()
                except OSError as error:
                    raise CheckpointError(
                        f"{error.filename}: cannot be read or cleaned up after a crash"
                        f" ({error.strerror}); check the folder's owner and its disk"
                    ) from error
        every: list[Any] = gather_objects(mine)
        return [every[leader] for leader in self._storages.leaders]

    def _hosts(self) -> list[str]:
        return [self._storages.hosts_at(n)[0] for n in range(self._storages.count)]


def _claim(checkpoints: Path, act: Callable[[], None]) -> None:
    if checkpoints.is_dir():
        with claimed(checkpoints):
            act()


def _put_away(checkpoints: Path, places: Sequence[tuple[int, str]], mine: int) -> list[str]:
    return [set_aside(checkpoints / name).name for number, name in places if number == mine]


def _shared(text: str, kind: type[CheckpointError] = CheckpointError) -> CheckpointError:
    """Make an error that every rank raises by itself."""
    error = kind(text)
    error.is_shared = True
    return error
