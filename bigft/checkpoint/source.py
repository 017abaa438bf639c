"""What a user may point at to name a checkpoint, resolved to a folder of files."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigft.checkpoint.content import verify_files
from bigft.checkpoint.elsewhere import PartsElsewhereError
from bigft.checkpoint.manifest import MANIFEST_NAME, find_candidates, find_newest, read_manifest
from bigft.errors import CheckpointError
from bigft.files.paths import find_escape

logger = logging.getLogger(__name__)

_MAX_TAG_BYTES = 4096


@dataclass(frozen=True)
class Source:
    """A folder with the files of a checkpoint, and what is known about it."""

    folder: Path
    """Of bigft's state files, or of those that DeepSpeed wrote."""
    assets: Path | None = None
    """Folder with `config.json` and the tokenizer, where the checkpoint has one."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The manifest; empty for a stock DeepSpeed checkpoint."""
    name: str = ""
    """What the files are called where they are kept, if that is not `folder`."""


def find_source(source: Path, *, is_digest_checked: bool = True) -> Source:
    """Find the files of a run folder, a committed checkpoint or a stock DeepSpeed folder.

    Of a run folder the newest committed checkpoint is taken.

    Args:
        source: What the user gave.
        is_digest_checked: Whether the content of a committed checkpoint is read and compared with
            the manifest's digests. Stock checkpoints have none.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
    """
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such folder; give a run folder or a checkpoint folder")
    if (source / MANIFEST_NAME).is_file():
        return _open_step(source, is_digest_checked)
    # Before DeepSpeed's `latest`: a run's checkpoints/ has a file of that name too, as a hint.
    checkpoints = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    candidates = find_candidates(checkpoints)
    if candidates and (other := _find_elsewhere(candidates[0])):
        raise other
    if newest := find_newest(checkpoints):
        is_newest = newest == candidates[0]
        # What was left out has been said, and then what is taken instead is news.
        level = logging.INFO if is_newest else logging.WARNING
        logger.log(level, "taking the newest checkpoint that is whole, %s", newest)
        return _open_step(newest, is_digest_checked)
    if any(source.glob("*_model_states.pt")) or (source / "latest").is_file():
        return Source(_find_stock(source))
    raise CheckpointError(
        f"{source}: no committed checkpoint (a folder step_XXXXXXXX with {MANIFEST_NAME}) and no "
        "DeepSpeed checkpoint (*_model_states.pt, or a file `latest`) in it; give a run folder, a "
        "checkpoint of one, or a folder that DeepSpeed wrote"
    )


def _find_elsewhere(newest: Path) -> PartsElsewhereError | None:
    """Say what is on other hosts of a checkpoint: it is not damaged, and none is taken instead."""
    try:
        read_manifest(newest)
    except PartsElsewhereError as error:
        return error
    except CheckpointError:
        pass
    return None


def _open_step(step_dir: Path, is_digest_checked: bool) -> Source:
    facts = read_manifest(step_dir)
    if is_digest_checked:
        verify_files(step_dir, facts)
    state, shards, assets = step_dir / "state", step_dir / "shards", step_dir / "hf"
    if not state.is_dir() and not shards.is_dir():
        raise CheckpointError(f"{step_dir}: no folder state/ in it; the checkpoint is incomplete")
    folder = state if state.is_dir() else _find_stock(shards)
    return Source(folder, assets if assets.is_dir() else None, facts)


def _find_stock(folder: Path) -> Path:
    """Follow DeepSpeed's file `latest`, which holds the name of a folder beside it."""
    if any(folder.glob("*_model_states.pt")):
        return folder
    latest = folder / "latest"
    if not latest.is_file():
        raise CheckpointError(f"{folder}: neither *_model_states.pt nor a file `latest` in it")
    # No tag is longer than a file name.
    with latest.open("rb") as file:
        tag = file.read(_MAX_TAG_BYTES).decode(errors="replace").strip()
    if not re.fullmatch(r"[^/\\\0]+", tag) or tag in (".", ".."):
        raise CheckpointError(f"{latest}: {tag!r:.80} is not the name of a folder beside it")
    found = folder / tag
    try:
        is_there = found.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        is_there = False
    if not is_there:
        raise CheckpointError(
            f"{latest}: names {tag!r:.80}, but there is no such folder; give the checkpoint's"
            " folder"
        )
    if place := find_escape(found, folder):
        raise CheckpointError(
            f"{latest}: {tag!r:.80} leads out of this folder, to {place}; give that folder, if you"
            " trust it"
        )
    return found
