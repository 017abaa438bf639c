"""The content of a checkpoint's files, read and compared with the digests of its manifest."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bigft.checkpoint.files import FileRecord, hash_file
from bigft.checkpoint.manifest import check_file, list_files
from bigft.errors import CheckpointError, raise_together


def verify_files(
    step_dir: Path,
    manifest: dict[str, Any],
    names: Collection[str] | None = None,
    threads: int = 4,
) -> None:
    """Read files of a checkpoint and compare their content with the manifest's digests.

    Args:
        step_dir: The checkpoint.
        manifest: What `read_manifest` returned for it.
        names: Files to read; all by default. `share_files` cuts them up for several ranks.
        threads: Files read at the same time.

    Raises:
        CheckpointError: Names every file that is damaged.

    Memory: 4 MiB per thread.
    """
    wanted = [entry.path for entry in list_files(manifest)] if names is None else names
    if found := find_damaged(step_dir, manifest, wanted, threads):
        raise_together(CheckpointError, list(found.values()))


def find_damaged(
    step_dir: Path, manifest: dict[str, Any], names: Collection[str], threads: int = 4
) -> dict[str, str]:
    """Read files of a checkpoint; those whose content is another one, and what is to be said.

    Memory: 4 MiB per thread.
    """
    known = set(names)
    wanted = [entry for entry in list_files(manifest) if entry.path in known]
    with ThreadPoolExecutor(max_workers=threads) as pool:
        problems = list(pool.map(lambda entry: _verify(step_dir, entry), wanted))
    return {one.path: text for one, text in zip(wanted, problems, strict=True) if text}


def share_files(
    manifest: dict[str, Any], rank: int, world_size: int, names: Collection[str] | None = None
) -> list[str]:
    """Return the files that one of several ranks verifies, so that all have equally many bytes.

    Args:
        manifest: Lists them.
        rank: Which of them.
        world_size: How many they are.
        names: Files to share; all by default.
    """
    bytes_of = [0] * world_size
    mine = []
    wanted = [one for one in list_files(manifest) if names is None or one.path in names]
    for entry in sorted(wanted, key=lambda entry: (-entry.size, entry.path)):
        taker = bytes_of.index(min(bytes_of))
        bytes_of[taker] += entry.size
        if taker == rank:
            mine.append(entry.path)
    return mine


def _verify(step_dir: Path, entry: FileRecord) -> str | None:
    path = step_dir / entry.path
    if problem := check_file(step_dir, entry):
        return problem
    try:
        found = hash_file(path)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}); use another checkpoint"
    if found != entry.sha256:
        return (
            f"{path}: its content is not what was saved (sha256 {found[:12]}…, the checkpoint's"
            f" manifest says {entry.sha256[:12]}…); the file is damaged. Use another checkpoint"
        )
    return None
