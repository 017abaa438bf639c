"""The manifest that makes a checkpoint folder whole: which files it has, and their digests.

    {"step": 500, ..., "sequence": 7, "files": [{"path", "size", "sha256"}, ...], "digest": "..."}

`sequence` counts the commits of a run's folder: after a resume from an older checkpoint the newest
is not the one with the highest step.
"""

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bigft.checkpoint.elsewhere import (
    PartsElsewhereError,
    explain_lost,
    find_lost,
    list_parts,
)
from bigft.checkpoint.files import FileRecord, explain_name, hash_file, sync, walk_files
from bigft.errors import CheckpointError, raise_together

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
LATEST_NAME = "latest"
BEST_NAME = "best"

_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def write_manifest(step_dir: Path, facts: dict[str, Any]) -> None:
    """List all files of a finished folder in its manifest, and put them on disk.

    Args:
        step_dir: Folder in which every file is already written.
        facts: What else to record: `step`, `world_size`, `zero_stage`, `model`, `tokens`, ...
    """
    target = step_dir / MANIFEST_NAME
    _partial(target).unlink(missing_ok=True)  # left by a crash; it must not list itself
    records = []
    for path in sorted(walk_files(step_dir)):
        if path != target:
            sync(path)
            place = path.relative_to(step_dir).as_posix()
            records.append(FileRecord(place, path.stat().st_size, hash_file(path)))
    for folder in (path for path in step_dir.rglob("*") if path.is_dir()):
        sync(folder)
    facts = {**facts, "sequence": next_sequence(step_dir.parent)}
    write_durably(target, format_manifest(facts, records))


def format_manifest(facts: dict[str, Any], records: Sequence[FileRecord]) -> str:
    """Return the text of a manifest.

    Args:
        facts: What is known about the checkpoint; plain values.
        records: Its files.
    """
    files = [asdict(entry) for entry in sorted(records, key=lambda entry: entry.path)]
    # As it will be read: keys that are numbers become text on the way.
    manifest = json.loads(json.dumps({**facts, "files": files}))
    return json.dumps({**manifest, "digest": _digest(manifest)}, indent=2) + "\n"


def read_manifest(step_dir: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest, and check its digest and that its files are there.

    The content of the files is not read; `content.verify_files` does that.

    Returns:
        The facts, `files` and `digest`. Keys that this version does not know are kept.

    Raises:
        CheckpointError: There is no manifest, it is damaged or of an older version, or files are
            missing, have another size, lie outside the folder, or are not listed.
    """
    manifest = read_own_manifest(step_dir)
    records = list_files(manifest)
    if len(list_parts(manifest)) > 1:
        present = [one.path for one in records if os.path.lexists(step_dir / one.path)]
        if lost := find_lost(manifest, present):
            raise PartsElsewhereError(explain_lost(step_dir, manifest, lost))
    check_files(step_dir, records)
    return manifest


def read_own_manifest(step_dir: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest and check its digest, whichever of its files are here.

    Raises:
        CheckpointError: As `read_manifest`, but for what concerns files.
    """
    path = step_dir / MANIFEST_NAME
    manifest = _parse(path)
    expected = manifest.get("digest")
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    if expected != _digest(rest):
        raise CheckpointError(
            f"{path}: damaged or edited (its digest is another one); use another checkpoint"
        )
    match = _STEP_FOLDER.fullmatch(step_dir.name)
    if match and manifest.get("step", int(match[1])) != int(match[1]):
        raise CheckpointError(
            f"{path}: is of step {manifest['step']}, in a folder named {step_dir.name};"
            " rename the folder, or use another checkpoint"
        )
    return manifest


def list_files(manifest: dict[str, Any]) -> list[FileRecord]:
    """Return the files that a manifest lists."""
    return [FileRecord(**_known(entry)) for entry in manifest["files"]]


def check_files(step_dir: Path, records: Sequence[FileRecord]) -> None:
    """Check that a folder has the listed files with their sizes, and no others below it.

    Files beside the manifest and hidden files are nobody's business: notes, `.DS_Store`, `.nfs...`.

    Raises:
        CheckpointError: Names every file that is missing, extra or of another size.
    """
    problems = [problem for entry in records if (problem := check_file(step_dir, entry))]
    try:
        problems += _find_extra(step_dir, {entry.path for entry in records})
    except OSError as error:
        problems.append(f"{error.filename}: cannot be listed ({error.strerror})")
    if problems:
        raise_together(CheckpointError, problems)


def check_file(step_dir: Path, entry: FileRecord) -> str | None:
    """Say what is wrong with a file's place, kind or size; its content is not read."""
    path = step_dir / entry.path
    try:
        if not path.resolve().is_relative_to(step_dir.resolve()):
            return f"{path}: leads outside the checkpoint; use another checkpoint"
        found = path.stat()
    except FileNotFoundError:
        return f"{path}: missing, though the checkpoint's manifest lists it; use another checkpoint"
    except (OSError, ValueError, RuntimeError) as error:
        return f"{path}: cannot be opened ({error}); use another checkpoint"
    if not stat.S_ISREG(found.st_mode):
        return f"{path}: not a regular file; use another checkpoint"
    if found.st_size != entry.size:
        return (
            f"{path}: has {found.st_size:,} bytes, the checkpoint's manifest says {entry.size:,};"
            " the file is damaged. Use another checkpoint"
        )
    return None


def find_present(step_dir: Path, manifest: dict[str, Any]) -> list[str]:
    """List the files of a checkpoint that are in this folder.

    Raises:
        CheckpointError: One of them has another size, or there are others.
    """
    records = [one for one in list_files(manifest) if os.path.lexists(step_dir / one.path)]
    check_files(step_dir, records)
    return [one.path for one in records]


def find_candidates(checkpoints: Path) -> list[Path]:
    """List what may be resumed from, in the order to try: the newest commit first.

    Nothing but the manifests' own words is read: the caller checks each (`read_manifest`,
    `verify_files`), and sets aside what is damaged. Folders without a readable manifest come
    first, so that they are noticed.
    """
    return [folder for _, folder in reversed(_in_order(checkpoints))]


def find_committed(checkpoints: Path) -> list[Path]:
    """List the committed checkpoints of a run, oldest first; damaged ones are logged and left out.

    So are those of which other hosts have some files.

    Returns:
        Folders `step_XXXXXXXX` whose manifest, and the sizes of whose files, were checked.
    """
    committed = []
    for _, folder in _in_order(checkpoints):
        try:
            read_manifest(folder)
        except CheckpointError as error:
            logger.warning("left out: %s", error)
        else:
            committed.append(folder)
    return committed


def find_newest(checkpoints: Path) -> Path | None:
    """Find the checkpoint that a run committed last, of those whose files have their sizes."""
    committed = find_committed(checkpoints)
    return committed[-1] if committed else None


def find_best_step(checkpoints: Path) -> int | None:
    """Find the step of the checkpoint that a run keeps as its best; None where it keeps none."""
    try:
        match = _STEP_FOLDER.fullmatch((checkpoints / BEST_NAME).read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None
    return int(match[1]) if match else None


def next_sequence(checkpoints: Path) -> int:
    """Return the number of the next commit in a run's folder, from 1."""
    return max((sequence or 0 for sequence, _ in _in_order(checkpoints)), default=0) + 1


def set_aside(step_dir: Path) -> Path:
    """Rename a damaged checkpoint, so that nobody resumes from it or deletes it.

    Returns:
        Its new place, `damaged-step_XXXXXXXX` with a number if that is taken.

    Raises:
        OSError: It cannot be renamed.
    """
    number = 1
    while True:
        name = f"damaged-{step_dir.name}" + (f"-{number}" if number > 1 else "")
        target = step_dir.with_name(name)
        if not os.path.lexists(target):
            break
        number += 1
    step_dir.rename(target)
    sync(target.parent)
    logger.warning("set aside: %s is now %s", step_dir, target.name)
    return target


def write_durably(path: Path, text: str) -> None:
    """Replace a text file in one step, on disk when this returns."""
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _in_order(checkpoints: Path) -> list[tuple[int | None, Path]]:
    """Pairs of sequence and folder, oldest first; those without a sequence at the end."""
    try:
        paths = list(checkpoints.iterdir()) if checkpoints.is_dir() else []
        steps = {
            path: int(match[1])
            for path in paths
            if (match := _STEP_FOLDER.fullmatch(path.name)) and path.is_dir()
        }
    except OSError as error:
        raise CheckpointError(f"{checkpoints}: cannot be listed ({error.strerror})") from error
    found = []
    for path, step in steps.items():
        try:
            sequence = _parse(path / MANIFEST_NAME).get("sequence", 0)
            known = sequence if type(sequence) is int else None
        except CheckpointError:
            known = None
        found.append((known is None, known or 0, step, path))
    return [(None if lost else known, path) for lost, known, _, path in sorted(found)]


def _parse(path: Path) -> dict[str, Any]:
    """Read a manifest's structure, without its digest and its files."""
    try:
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise CheckpointError(f"{path}: leads outside the checkpoint; use another checkpoint")
        manifest = json.loads(path.read_bytes())
        entries = manifest["files"]
        if "digest" not in manifest and any(set(entry) == {"path", "size"} for entry in entries):
            raise CheckpointError(
                f"{path}: written by an older version of bigft (its files have no sha256);"
                " continue with the version that wrote it"
            )
        problem = next((problem for entry in entries if (problem := _explain(entry))), None)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: no {MANIFEST_NAME}; the checkpoint was never committed"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {error}); use another checkpoint"
        ) from error
    if problem:
        raise CheckpointError(f"{path}: {problem}; use another checkpoint")
    return dict(manifest)


def _explain(entry: dict[str, Any]) -> str | None:
    name, size, sha256 = entry["path"], entry["size"], entry["sha256"]
    if not isinstance(name, str) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        return f"damaged (lists {name!r} with digest {sha256!r})"
    if type(size) is not int or size < 0:
        return f"damaged (lists {name!r} with {size!r} bytes)"
    problem = explain_name(name)
    return f"lists {name!r}, which {problem}" if problem else None


def _known(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("path", "size", "sha256")}


def _digest(rest: dict[str, Any]) -> str:
    """Return the sha256 of a manifest without its `digest`, in canonical JSON."""
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _find_extra(step_dir: Path, listed: Collection[str]) -> Iterator[str]:
    for path in walk_files(step_dir):
        place = path.relative_to(step_dir)
        is_hidden = any(part.startswith(".") for part in place.parts)
        if len(place.parts) > 1 and not is_hidden and place.as_posix() not in listed:
            yield (
                f"{path}: not of this checkpoint (its manifest does not list it); remove the file"
                " or use another checkpoint"
            )
