"""What each of several storages holds of which checkpoint, and which of it counts.

A checkpoint of hosts with disks of their own is one manifest, the same on every storage, and beside
it those of its files that the storage's ranks wrote. Two checkpoints are the same if their
manifests have the same digest.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bigft.checkpoint.folder import move_to_trash, publish, remove
from bigft.checkpoint.manifest import find_present, list_files, read_own_manifest
from bigft.errors import CheckpointError

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"(?:\.aside-|)step_(\d{8,})|\.tmp-step_(\d{8,})-.+")


@dataclass(frozen=True)
class Holding:
    """A folder with the manifest of a checkpoint, on one storage."""

    name: str
    """Of the folder: `step_...`, or what a crash left: `.aside-step_...`, `.tmp-step_...-<id>`."""
    step: int
    digest: str = ""
    """Of the manifest; empty: there is none that can be read."""
    sequence: int = 0
    num_files: int = 0
    """That the manifest lists, on all storages."""
    present: tuple[str, ...] = ()
    """Files that are here with their sizes."""
    problem: str = ""

    @property
    def is_named(self) -> bool:
        """Whether its commit was decided: before that nothing has another name."""
        return not self.name.startswith(".tmp-")

    @property
    def is_final(self) -> bool:
        """Whether it has the name of a checkpoint."""
        return self.name.startswith("step_")


Survey = Sequence[Holding]
"""Of one storage."""


@dataclass
class Commit:
    """One checkpoint, wherever parts of it are."""

    digest: str
    step: int
    sequence: int
    num_files: int
    held: dict[int, list[Holding]] = field(default_factory=dict)
    """Number of the storage -> its folders of this checkpoint; more than one after a crash."""

    @property
    def is_whole(self) -> bool:
        """Whether every file is on some storage."""
        return len({name for one in self._every() for name in one.present}) == self.num_files

    @property
    def is_named(self) -> bool:
        """Whether the commit was decided."""
        return any(one.is_named for one in self._every())

    def held_finally(self) -> dict[int, Holding]:
        """Return the folders that have their final name."""
        return {n: one for n, ones in self.held.items() for one in ones if one.is_final}

    def _every(self) -> Iterator[Holding]:
        for ones in self.held.values():
            yield from ones


def survey(checkpoints: Path) -> list[Holding]:
    """List what the storage here holds.

    Raises:
        OSError: The folder cannot be listed.
    """
    if not checkpoints.is_dir():
        return []
    found = []
    for path in sorted(checkpoints.iterdir()):
        if (match := _FOLDER.fullmatch(path.name)) and path.is_dir():
            holding = look_at(path, int(match[1] or match[2]))
            # What was killed before its manifest was written is debris, not a damaged checkpoint.
            if holding.digest or holding.is_final:
                found.append(holding)
    return found


def look_at(folder: Path, step: int) -> Holding:
    """Say what a folder holds; what cannot be believed is its `problem`."""
    try:
        manifest = read_own_manifest(folder)
        present = find_present(folder, manifest)
    except CheckpointError as error:
        return Holding(folder.name, step, problem=str(error))
    sequence, found = manifest.get("sequence"), manifest.get("step")
    return Holding(
        folder.name,
        found if type(found) is int else step,
        str(manifest["digest"]),
        sequence if type(sequence) is int else 0,
        len(list_files(manifest)),
        tuple(present),
    )


def to_plain(holdings: Survey) -> list[dict[str, Any]]:
    """Return what JSON can carry."""
    return [asdict(one) for one in holdings]


def from_plain(values: Iterable[Mapping[str, Any]]) -> list[Holding]:
    """Return what `to_plain` was given."""
    return [Holding(**{**one, "present": tuple(one["present"])}) for one in values]


def list_commits(surveys: Sequence[Survey]) -> list[Commit]:
    """Put together what the storages hold, the oldest commit first.

    Args:
        surveys: One per storage.
    """
    found: dict[str, Commit] = {}
    for number, holdings in enumerate(surveys):
        for one in holdings:
            if one.digest:
                commit = found.setdefault(
                    one.digest, Commit(one.digest, one.step, one.sequence, one.num_files)
                )
                commit.held.setdefault(number, []).append(one)
    return sorted(found.values(), key=lambda one: (one.sequence, one.step, one.digest))


def settle(surveys: Sequence[Survey]) -> list[str]:
    """Say which checkpoints a crash kept from having their name on every storage.

    A commit that was decided has its name on one storage at least, and is prepared on the others:
    it is finished there. Of two of the same step that are whole, the later one counts.

    Returns:
        Digests.
    """
    winners: dict[int, Commit] = {}
    for commit in list_commits(surveys):
        if commit.is_named and commit.is_whole:
            winners[commit.step] = commit
    return [one.digest for one in winners.values() if set(one.held_finally()) != set(one.held)]


def finish(checkpoints: Path, digests: Collection[str]) -> None:
    """Give checkpoints their names here, as `settle` says. Nothing is deleted.

    Raises:
        OSError: A folder cannot be renamed.
    """
    holdings = survey(checkpoints)
    named = {one.digest for one in holdings if one.is_final}
    for one in holdings:
        if one.digest in digests and one.digest not in named:
            final = checkpoints / f"step_{one.step:08d}"
            publish(checkpoints / one.name, final, is_part=True)
            named.add(one.digest)
            logger.info("%s is committed: its commit was decided before a crash", final)


def choose_obsolete(
    surveys: Sequence[Survey], keep_last: int, protected: Collection[str]
) -> list[str]:
    """Say which checkpoints rotation may take, on every storage.

    Only those count that are whole over all storages. What is older than all that stay goes, whole
    or not: parts of older ones are left by a crash of a rotation, or by other hosts.

    Args:
        surveys: One per storage.
        keep_last: Checkpoints to leave, from 1.
        protected: Names of folders that stay in any case.

    Returns:
        Digests.
    """
    commits = [one for one in list_commits(surveys) if one.held_finally()]
    kept = [one for one in commits if one.is_whole][-keep_last:]
    if len(kept) < keep_last:
        return []
    older = commits[: commits.index(kept[0])]
    return [one.digest for one in older if f"step_{one.step:08d}" not in protected]


def remove_obsolete(checkpoints: Path, digests: Collection[str]) -> None:
    """Remove checkpoints here, as `choose_obsolete` says. A failure is a warning."""
    try:
        for one in survey(checkpoints):
            if one.is_final and one.digest in digests:
                remove(move_to_trash(checkpoints / one.name))
                logger.info("rotated out %s", one.name)
    except OSError as error:
        logger.warning("%s: old checkpoints could not be removed: %s", checkpoints, error)
