"""Protocols with one mistake each. The checks are worth something only if they notice them."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigft.checkpoint import commit, commit_apart, files, folder, holdings, manifest


def _publish_without_the_others(save: Any, mine: Any) -> list[files.FileRecord]:
    return list(mine.records)


def _publish_after_deleting(partial: Path, final: Path) -> None:
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)


def _publish_after_latest(partial: Path, final: Path) -> Path | None:
    folder.point_latest(final)
    return _publish(partial, final)


def _seal_after_rotation(save: Any, facts: dict[str, Any], records: list[Any]) -> None:
    folder.rotate(save.checkpoints, 1, None)
    _seal(save, facts, records)


def _announce_before_the_rename(save: Any, facts: dict[str, Any], records: list[Any]) -> None:
    _seal(save, facts, records)
    save.ranks.tell("outcome", "")


def _write_under_the_final_name(checkpoints: Path, step: int, save_id: str) -> Path:
    return folder.final_place(checkpoints, step)


def _publish_nothing(partial: Path, final: Path) -> None:
    return None


def _rotate_by_size_of_step(checkpoints: Path, keep_last: int, protected: Path | None) -> None:
    for old in sorted(checkpoints.glob("step_*"))[:-keep_last]:
        shutil.rmtree(old)


def _clear_nothing(checkpoints: Path) -> None:
    return None


def _remove_everything_unfinished(checkpoints: Path) -> None:
    for path in checkpoints.glob(".*-*"):
        folder.remove(path)


def _check_nothing(step_dir: Path, records: list[files.FileRecord]) -> None:
    return None


def _remove_nothing(path: Path | None) -> None:
    return None


def _sync_files_alone(path: Path) -> None:
    if path.is_file():
        _sync(path)


def _sync_carelessly(path: Path) -> None:
    with contextlib.suppress(OSError):
        _sync(path)


class _CarelessSystem:
    """The module `os` with an `fsync` whose errors nobody sees."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)


def _decide_without_the_others(save: Any, word: str, leaders: Any) -> list[dict[str, Any]]:
    return [] if word == "prepared" else _collect(save, word, leaders)


def _announce_without_the_others(save: Any, word: str, leaders: Any) -> list[Any]:
    return [] if word == "named" else _hear_surveys(save, word, leaders)


def _settle_nothing(surveys: Any) -> list[str]:
    return []


def _rotate_what_is_not_whole(surveys: Any, keep_last: int, protected: Any) -> list[str]:
    return [one.digest for one in holdings.list_commits(surveys)[:-keep_last]]


_collect = commit_apart._collect
_hear_surveys = commit_apart._hear_surveys
_sync = files.sync
_publish = folder.publish
_seal = commit._seal

# Name: what is replaced by what.
BROKEN: dict[str, list[tuple[Any, str, Callable]]] = {
    "publishes without waiting for the others": [
        (commit, "_agree", _publish_without_the_others),
        (commit, "check_files", _check_nothing),
    ],
    "deletes before it renames": [(commit, "publish", _publish_after_deleting)],
    "points latest first": [(commit, "publish", _publish_after_latest)],
    "rotates before it commits": [(commit, "_seal", _seal_after_rotation)],
    "announces before the rename": [(commit, "_seal", _announce_before_the_rename)],
    "writes under the final name": [
        (commit, "partial_place", _write_under_the_final_name),
        (commit, "publish", _publish_nothing),
        (commit, "remove", _remove_nothing),
    ],
    "deletes under the final name": [(folder, "move_to_trash", lambda path: path)],
    "rotates what was resumed from": [(commit, "rotate", _rotate_by_size_of_step)],
    "leaves debris": [
        (commit, "clear_debris", _clear_nothing),
        (folder, "clear_debris", _clear_nothing),
    ],
    "forgets what it renamed aside": [
        (commit, "clear_debris", _remove_everything_unfinished),
        (folder, "clear_debris", _remove_everything_unfinished),
    ],
    "resumes from the highest name": [
        (manifest, "_in_order", lambda path: [(1, p) for p in sorted(path.glob("step_*"))]),
    ],
    "decides before all are prepared": [(commit_apart, "_collect", _decide_without_the_others)],
    "announces before all have renamed": [
        (commit_apart, "_hear_surveys", _announce_without_the_others),
    ],
    "settles nothing": [
        (commit_apart, "settle", _settle_nothing),
        (holdings, "settle", _settle_nothing),
    ],
    "rotates what was resumed from, apart": [
        (commit, "choose_obsolete", _rotate_what_is_not_whole),
    ],
    "puts no names on disk": [
        (commit, "sync", _sync_files_alone),
        (files, "sync", _sync_files_alone),
        (folder, "sync", _sync_files_alone),
    ],
    "ignores errors of fsync": [(files, "os", _CarelessSystem())],
    "ignores errors of sync": [
        (commit, "sync", _sync_carelessly),
        (files, "sync", _sync_carelessly),
    ],
}


@contextlib.contextmanager
def broken(name: str) -> Iterator[None]:
    """Break the protocol for the length of the block."""
    changed = BROKEN[name] if name else []
    before = [(place, word, getattr(place, word)) for place, word, _ in changed]
    for place, word, value in changed:
        setattr(place, word, value)
    try:
        yield
    finally:
        for place, word, value in before:
            setattr(place, word, value)
