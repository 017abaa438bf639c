"""Commit a checkpoint whose files lie on several storages: prepared on all, decided by one rename.

    leaders   lock; what is here                                  -> "survey-<rank>"
    rank 0    what a crash left unfinished                        -> "begin"
    leaders   finish that, clear up, mkdir .tmp-step_00000500-... -> "made-<rank>"
    all       write, hash and fsync their files                   -> "part-<rank>"
    rank 0    the manifest of all files                           -> "manifest"
    leaders   manifest.json, fsync                                -> "prepared-<rank>"
    rank 0    rename, fsync: this decides                         -> "decided"
    leaders   rename, fsync; what is here                         -> "named-<rank>"
    rank 0    done, and what rotation may take                    -> "outcome"

Each storage is led by its first rank, that of rank 0 by rank 0. Until rank 0 renames nothing has a
final name anywhere; from then on every storage holds what it needs to rename as well, and the next
start does that if a crash came between (`holdings.settle`). A save is announced when all have.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigft.checkpoint.agree import shared_error
from bigft.checkpoint.files import FileRecord, Files, sync
from bigft.checkpoint.folder import (
    clear_debris,
    make_durably,
    point_best,
    point_latest,
    publish,
    remove,
)
from bigft.checkpoint.holdings import (
    Holding,
    finish,
    from_plain,
    remove_obsolete,
    settle,
    survey,
    to_plain,
)
from bigft.checkpoint.manifest import MANIFEST_NAME, check_files, format_manifest, list_files
from bigft.checkpoint.part import Part, Save, agree, explain, silence_explained, write_part
from bigft.checkpoint.storages import Storages
from bigft.distributed.claim import claimed
from bigft.errors import BigftError, CheckpointError

_PATIENCE = 3
"""Rank 0 waits for the slowest rank up to three times between two of its messages."""

_Message = dict[str, Any]


def commit_apart(
    save: Save,
    storages: Storages,
    facts: dict[str, Any],
    choose: Callable[[list[list[Holding]]], list[str]],
) -> None:
    """Write and commit on every storage; when this returns, all have it.

    Args:
        save: What is saved, and where.
        storages: Which ranks share which.
        facts: For the manifest; those of rank 0 count.
        choose: Says on rank 0 which checkpoints are no longer needed.

    Raises:
        CheckpointError: On all ranks with the same words. Where it says that the checkpoint may be
            there all the same, the next save or start settles that.

    Collective: every rank, through the board.
    """
    rank = save.ranks.rank
    with contextlib.ExitStack() as held:
        if rank == 0:
            _lead_all(save, storages, facts, choose, held)
        elif storages.leads(rank):
            _lead_here(save, storages.of_rank[rank], held)
        else:
            _write_here(save, storages.leaders[storages.of_rank[rank]])


# --- rank 0 --------------------------------------------------------------------------------------


def _lead_all(
    save: Save,
    storages: Storages,
    facts: dict[str, Any],
    choose: Callable[[list[list[Holding]]], list[str]],
    held: contextlib.ExitStack,
) -> None:
    others = storages.leaders[1:]
    stage = "begin"
    is_decided = False
    try:
        surveys = [_open_here(save, held), *_hear_surveys(save, "survey", others)]
        sequence = 1 + max((one.sequence for ones in surveys for one in ones), default=0)
        unfinished = settle(surveys)
        _tell(save, "begin", unfinished=unfinished)
        stage = "manifest"
        records = _write_all(save, unfinished)
        text = _describe(save, storages, {**facts, "sequence": sequence}, records)
        _tell(save, "manifest", text=text)
        stage = "decided"
        _prepare(save, text, 0)
        _raise_problems(save, [one["problem"] for one in _collect(save, "prepared", others)])
        replaced = publish(save.partial, save.final, is_part=True)
        is_decided = True
        problem = _sync(save)
        _tell(save, "decided")
        stage = "outcome"
        surveys = [survey(save.checkpoints), *_hear_surveys(save, "named", others)]
        _raise_problems(save, [problem])
    except BaseException as error:
        told = _as_told(error, save, is_decided=is_decided)
        for word in dict.fromkeys((stage, "made-0", "outcome")):
            with contextlib.suppress(BigftError):
                _tell(save, word, problem=str(told))
        if not is_decided:
            remove(save.partial)
        if isinstance(error, OSError | BigftError):
            raise told from error
        raise
    obsolete = choose(surveys)
    _tell(save, "outcome", obsolete=obsolete)
    _tidy(save, replaced, obsolete)


def _write_all(save: Save, unfinished: list[str]) -> list[list[FileRecord]]:
    """Write on every rank; the files by rank."""
    _make_here(save, unfinished)
    _tell(save, "made-0")
    return agree(save, write_part(save))


def _describe(
    save: Save, storages: Storages, facts: dict[str, Any], records: list[list[FileRecord]]
) -> str:
    """Return the text of the manifest, which is the same on every storage."""
    parts = [
        {
            "hosts": storages.hosts_at(number),
            "path": str(save.final),
            "files": sorted(
                one.path for rank in storages.ranks_at(number) for one in records[rank]
            ),
        }
        for number in range(storages.count)
    ]
    every = [one for ones in records for one in ones]
    return format_manifest({**facts, "storages": parts}, every)


def _sync(save: Save) -> str:
    """Put the name on disk. It cannot be taken back: the others go on, and the save has failed."""
    try:
        sync(save.checkpoints)
    except OSError as error:
        return explain(error, save)
    return ""


def _as_told(error: BaseException, save: Save, *, is_decided: bool) -> BaseException:
    if isinstance(error, CheckpointError) and error.is_shared:
        return error
    return shared_error(save.explain([explain(error, save)], is_decided=is_decided))


def _hear_surveys(save: Save, word: str, leaders: tuple[int, ...]) -> list[list[Holding]]:
    messages = _collect(save, word, leaders)
    _raise_problems(save, [one["problem"] for one in messages], is_decided=word == "named")
    return [from_plain(one["holdings"]) for one in messages]


def _collect(save: Save, word: str, leaders: tuple[int, ...]) -> list[_Message]:
    texts, problems = save.ranks.collect(word, leaders)
    return [*map(json.loads, texts), *({"problem": one} for one in problems)]


def _raise_problems(save: Save, problems: list[str], *, is_decided: bool = False) -> None:
    if found := [problem for problem in problems if problem]:
        raise shared_error(save.explain(found, is_decided=is_decided))


# --- the first rank of another storage -----------------------------------------------------------


def _lead_here(save: Save, number: int, held: contextlib.ExitStack) -> None:
    rank = save.ranks.rank
    with silence_explained(save):
        _report(save, "survey", lambda: _open_here(save, held))
        begin = _hear(save, "begin")
        if begin["problem"]:
            _tell(save, f"made-{rank}", problem=begin["problem"])
            raise shared_error(begin["problem"])
        part = _make_and_write(save, begin["unfinished"])
        save.ranks.report("part", part.to_text())
        if part.bug:
            raise part.bug
        manifest = _hear_or_remove(save, "manifest")
        _report(save, "prepared", lambda: _prepare(save, manifest["text"], number))
        _hear_or_remove(save, "decided")
        replaced: list[Path | None] = []

        def name() -> list[Holding]:
            replaced.append(publish(save.partial, save.final, is_part=True))
            sync(save.checkpoints)
            return survey(save.checkpoints)

        _report(save, "named", name)
        outcome = _hear(save, "outcome")
    if outcome["problem"]:
        raise shared_error(outcome["problem"])
    _tidy(save, replaced[0], outcome["obsolete"])


def _make_and_write(save: Save, unfinished: list[str]) -> Part:
    rank = save.ranks.rank
    try:
        _make_here(save, unfinished)
    except (OSError, BigftError) as error:
        problem = explain(error, save)
        _tell(save, f"made-{rank}", problem=problem)
        return Part(problem=problem)
    _tell(save, f"made-{rank}")
    return write_part(save)


def _report(save: Save, word: str, act: Callable[[], list[Holding]]) -> None:
    """Do a step and report it; rank 0 waits for that, whatever happens."""
    bug = None
    message: _Message = {"problem": "", "holdings": []}
    try:
        message["holdings"] = to_plain(act())
    except (OSError, BigftError) as error:
        message["problem"] = explain(error, save)
    except BaseException as error:  # noqa: BLE001 (raised again once the others know)
        message["problem"], bug = explain(error, save), error
    save.ranks.report(word, json.dumps(message))
    if bug:
        raise bug


def _hear_or_remove(save: Save, word: str) -> _Message:
    message = _hear(save, word)
    if message["problem"]:
        # Nothing is decided, and nothing will be.
        remove(save.partial)
        raise shared_error(message["problem"])
    return message


# --- every other rank ----------------------------------------------------------------------------


def _write_here(save: Save, leader: int) -> None:
    with silence_explained(save):
        problem = _hear(save, f"made-{leader}")["problem"]
        # The leader's problem is in its own report.
        part = Part() if problem else write_part(save)
        save.ranks.report("part", part.to_text())
        if part.bug:
            raise part.bug
        outcome = _hear(save, "outcome", 2 * _PATIENCE)
    if outcome["problem"]:
        raise shared_error(outcome["problem"])


# --- steps ---------------------------------------------------------------------------------------


def _open_here(save: Save, held: contextlib.ExitStack) -> list[Holding]:
    make_durably(save.checkpoints)
    held.enter_context(claimed(save.checkpoints))
    return survey(save.checkpoints)


def _make_here(save: Save, unfinished: list[str]) -> None:
    finish(save.checkpoints, unfinished)
    clear_debris(save.checkpoints)
    save.partial.mkdir()


def _prepare(save: Save, text: str, number: int) -> list[Holding]:
    """Write the manifest, once every file of this storage is seen here."""
    manifest = json.loads(text)
    names = set(manifest["storages"][number]["files"])
    check_files(save.partial, [one for one in list_files(manifest) if one.path in names])
    with Files(save.partial).create(MANIFEST_NAME) as file:
        file.write(text.encode())
    sync(save.partial)
    return []


def _tidy(save: Save, replaced: Path | None, obsolete: list[str]) -> None:
    """What can no longer fail the save: it is committed everywhere, and the others know."""
    remove(replaced)
    point_latest(save.final)
    if save.best is not None:
        point_best(save.best)
    remove_obsolete(save.checkpoints, obsolete)


def _tell(save: Save, word: str, problem: str = "", **content: Any) -> None:
    save.ranks.tell(word, json.dumps({"problem": problem, **content}))


def _hear(save: Save, word: str, patience: float = _PATIENCE) -> _Message:
    found: _Message = json.loads(save.ranks.hear(word, patience))
    return found
