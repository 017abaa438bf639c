"""Find what a run continues from, verified before anything is built on it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bigft.checkpoint.choose import choose_whole
from bigft.checkpoint.content import share_files, verify_files
from bigft.checkpoint.elsewhere import PartsElsewhereError
from bigft.checkpoint.folder import clean_up
from bigft.checkpoint.manifest import MANIFEST_NAME, find_candidates, read_manifest
from bigft.checkpoint.resume_apart import Finder, Resumed
from bigft.checkpoint.storages import Storages
from bigft.distributed.collectives import (
    broadcast_object,
    errors_shared,
    gather_errors,
    raise_first,
)
from bigft.errors import BigftError, CheckpointError, raise_together

# What must be the same for the state to fit and the data order to go on: key in the manifest, the
# words for it, and the flags that set it. Ranks, ZeRO stage and offload may differ.
_BOUND = {
    "optimizer": ("optimizer", "--optim"),
    "parameters": ("number of parameters", "--model"),
    "global_batch_size": (
        "sequences per step",
        "--per_device_train_batch_size, --gradient_accumulation_steps",
    ),
    "freeze": ("parameters that are not trained", "--model.freeze"),
    "data": ("data, tokenizer or their settings", "--data"),
    "seed": ("seed", "--seed"),
    "inner_steps": ("steps on each part", "--trainer.reptile.inner_steps"),
}
_BEFORE = {"inner_steps": 0}
"""What checkpoints mean that were written before the setting existed."""
_OF_DATA = ("data.", "task.", "model.")
"""Beginnings of the settings that the digest of the data may depend on."""


def find_resume(
    resume: str, checkpoints: Path, rank: int, storages: Storages
) -> tuple[Resumed | None, list[str]]:
    """Return the checkpoint to continue from, or None to start anew, and what is to be said.

    Every file is read and compared with its digest; the ranks share the work. A damaged checkpoint
    of this run is set aside under another name, and the one before it is taken.

    Args:
        resume: `auto`, `never`, or a path to a checkpoint or a run folder.
        checkpoints: The run's own `checkpoints/` folder.
        rank: Of this process.
        storages: Which ranks share the run's folder.

    Raises:
        CheckpointError: The path names no committed checkpoint, or a damaged one; or all
            checkpoints of the run are damaged; or some of its files are on other hosts.

    Collective: every rank.
    """
    if storages.count > 1:
        return _find_apart(resume, checkpoints, Finder(rank, storages))
    found, notes = _find_together(resume, checkpoints, rank, len(storages.of_rank))
    if found is None:
        return None, notes
    with errors_shared():
        manifest = read_manifest(found)
    return Resumed(found, manifest), notes


def _find_apart(resume: str, checkpoints: Path, finder: Finder) -> tuple[Resumed | None, list[str]]:
    if resume == "never":
        return None, _warn_of(finder.list_earlier(checkpoints), checkpoints)
    if resume == "auto":
        return finder.find_auto(checkpoints)
    return finder.find_given(resume), []


def _find_together(
    resume: str, checkpoints: Path, rank: int, world_size: int
) -> tuple[Path | None, list[str]]:
    candidates: list[Path] = []
    error: BigftError | None = None
    if rank == 0:
        try:
            candidates = _list_candidates(resume, checkpoints)
        except BigftError as caught:
            error = caught
    raise_first(error)
    candidates = broadcast_object(candidates)
    if resume == "never":
        return None, _warn_of([path.name for path in candidates], checkpoints)
    if resume == "auto":
        return choose_whole(
            candidates, lambda one: _verify(one, rank, world_size), is_rank_zero=rank == 0
        )
    # A checkpoint that was named is taken or refused; nothing of another run is renamed.
    if problem := _verify(candidates[0], rank, world_size):
        raise_first(CheckpointError(problem))
    return candidates[0], []


def _list_candidates(resume: str, checkpoints: Path) -> list[Path]:
    if resume == "never":
        return find_candidates(checkpoints)
    if resume == "auto":
        clean_up(checkpoints)
        return find_candidates(checkpoints)
    given = Path(resume)
    if (given / MANIFEST_NAME).is_file():
        return [given]
    for folder in (given / "checkpoints", given):
        if folder.is_dir() and (found := find_candidates(folder)):
            return found[:1]
    raise CheckpointError(
        f"--resume {resume}: no committed checkpoint there; give a folder step_XXXXXXXX with a"
        " manifest.json, a run folder, or auto"
    )


def _warn_of(earlier: list[str], checkpoints: Path) -> list[str]:
    if not earlier:
        return []
    return [
        f"warning: --resume never: {', '.join(earlier)} in {checkpoints}: an earlier run's, and"
        " removed as this one saves its own; give another --output_dir to keep them"
    ]


def _verify(folder: Path, rank: int, world_size: int) -> str | None:
    """Say what is wrong with a checkpoint. Collective: every rank."""
    problem, elsewhere = None, None
    try:
        manifest = read_manifest(folder)
        verify_files(folder, manifest, share_files(manifest, rank, world_size))
    except PartsElsewhereError as error:
        elsewhere = error
    except CheckpointError as error:
        problem = str(error)
    # It is not damaged: nothing is put away, and nothing older taken instead.
    raise_first(elsewhere)
    found = [text for text in gather_errors(problem) if text]
    return "; ".join(dict.fromkeys(found)) or None


def check_fits(
    folder: Path, facts: dict[str, Any], manifest: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Compare a checkpoint's manifest with this run.

    Args:
        folder: The checkpoint.
        facts: Of this run.
        manifest: Of the checkpoint; absent: it is read.

    Returns:
        The manifest.

    Raises:
        CheckpointError: Names everything that differs, with both values.
    """
    manifest = {**_BEFORE, **(read_manifest(folder) if manifest is None else manifest)}
    problems = [
        f"{words}: {manifest[key]!r} in the checkpoint, {facts[key]!r} now"
        f" ({_explain_data(manifest, facts) if key == 'data' else flags})"
        for key, (words, flags) in _BOUND.items()
        if key in manifest and key in facts and manifest[key] != facts[key]
    ]
    if problems:
        problems[0] = f"{folder} cannot be continued by this run: {problems[0]}"
        problems[-1] += (
            ". Use the settings of the first run (resolved/), or start anew with --resume never"
            " and another --output_dir"
        )
        raise_together(CheckpointError, problems)
    return manifest


def describe_changes(
    manifest: dict[str, Any],
    facts: dict[str, Any],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Say what a run that fits does otherwise than the one that wrote a checkpoint.

    Args:
        manifest: Of the checkpoint.
        facts: Of this run; `settings` and `versions` are compared.
        defaults: Setting -> what a run does that does not know it yet.
    """
    before = manifest.get("settings")
    if isinstance(before, dict):
        manifest = {**manifest, "settings": {**_of(defaults, facts), **before}}
    found = {
        "settings": _compare(manifest, facts, "settings"),
        "versions": _compare(manifest, facts, "versions"),
    }
    return [
        f"note: other {what} than in the checkpoint: {'; '.join(changes)}"
        for what, changes in found.items()
        if changes
    ]


def _of(defaults: Mapping[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in defaults.items() if name in facts.get("settings", {})}


def _explain_data(manifest: dict[str, Any], facts: dict[str, Any]) -> str:
    changes = [text for text in _compare(manifest, facts, "settings") if text.startswith(_OF_DATA)]
    # A digest alone helps nobody to find what it was.
    return "; ".join(changes) or "the settings are the same: a file of them has changed"


def _compare(manifest: dict[str, Any], facts: dict[str, Any], key: str) -> list[str]:
    before, now = manifest.get(key), facts.get(key)
    if not isinstance(before, dict) or not isinstance(now, dict):
        return []  # Written before this was kept.
    return [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
