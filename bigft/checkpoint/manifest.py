"""The manifest that makes a checkpoint folder committed: which files it has, and their sizes."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from bigft.errors import CheckpointError, raise_together

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
LATEST_NAME = "latest"

_STEP_FOLDER = re.compile(r"step_(\d{8,})")


def write_manifest(step_dir: Path, facts: dict[str, Any]) -> None:
    """Commit a checkpoint folder: list all its files with their sizes, and put them on disk.

    The files, their folders and the manifest are fsynced, the manifest last: a folder with a
    manifest is complete even after a power cut.

    Args:
        step_dir: Folder in which every file is already written.
        facts: What else to record: `step`, `world_size`, `zero_stage`, `model`, `tokens`, ...
    """
    target = step_dir / MANIFEST_NAME
    _partial(target).unlink(missing_ok=True)  # left by a crash; it must not list itself
    files = []
    for path in sorted(step_dir.rglob("*")):
        if path.is_file() and path != target:
            sync(path)
            files.append({"path": str(path.relative_to(step_dir)), "size": path.stat().st_size})
    for folder in (path for path in step_dir.rglob("*") if path.is_dir()):
        sync(folder)
    text = json.dumps({**facts, "files": files}, indent=2) + "\n"
    write_durably(target, text)


def read_manifest(step_dir: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest and check that its files are there with their sizes.

    Raises:
        CheckpointError: There is no manifest, it does not parse, or files are missing or have
            another size.
    """
    path = step_dir / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_bytes())
        files = [(str(entry["path"]), int(entry["size"])) for entry in manifest["files"]]
    except FileNotFoundError:
        raise CheckpointError(
            f"{step_dir}: no {MANIFEST_NAME}; the checkpoint was never committed"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {error}); use another checkpoint"
        ) from error
    if problems := [problem for name, size in files if (problem := _check(step_dir, name, size))]:
        raise_together(CheckpointError, problems)
    return dict(manifest)


def find_committed(checkpoints_dir: Path) -> list[Path]:
    """List the committed checkpoints of a run, oldest first; damaged ones are logged and left out.

    Returns:
        Folders `step_XXXXXXXX` whose manifest and files were checked.
    """
    if not checkpoints_dir.is_dir():
        return []
    committed = []
    for path in sorted(checkpoints_dir.iterdir(), key=_step_of):
        if not path.is_dir() or not _STEP_FOLDER.fullmatch(path.name):
            continue
        try:
            read_manifest(path)
        except CheckpointError as error:
            logger.warning("left out: %s", error)
        else:
            committed.append(path)
    return committed


def find_newest(checkpoints_dir: Path) -> Path | None:
    """Find the checkpoint that a run wrote last: `latest` names it, else the highest step.

    After a new start in an old folder the last one is not the one with the highest step.
    """
    committed = find_committed(checkpoints_dir)
    latest = checkpoints_dir / LATEST_NAME
    named = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""
    by_name = {path.name: path for path in committed}
    return by_name.get(named, committed[-1] if committed else None)


def write_durably(path: Path, text: str) -> None:
    """Replace a text file in one step, on disk when this returns."""
    partial = _partial(path)
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Put a file, or the names inside a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _step_of(path: Path) -> tuple[int, str]:
    match = _STEP_FOLDER.fullmatch(path.name)
    return (int(match[1]) if match else -1, path.name)


def _check(step_dir: Path, name: str, size: int) -> str | None:
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        return f"{step_dir / MANIFEST_NAME}: lists {name}, which lies outside the checkpoint"
    path = step_dir / relative
    if not path.is_file():
        return f"{path}: missing, though the checkpoint's manifest lists it; use another checkpoint"
    found = path.stat().st_size
    if found != size:
        return (
            f"{path}: has {found:,} bytes, the checkpoint's manifest says {size:,}; "
            "the file is damaged. Use another checkpoint"
        )
    return None
