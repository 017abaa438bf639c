"""What a user may point at to name a checkpoint, resolved to a folder of shards."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigft.checkpoint.manifest import MANIFEST_NAME, find_newest, read_manifest
from bigft.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A folder of DeepSpeed shards and what is known about it."""

    shards: Path
    assets: Path | None = None
    """Folder with `config.json` and the tokenizer, where the checkpoint has one."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The manifest; empty for a stock DeepSpeed checkpoint."""


def find_shards(source: Path) -> Source:
    """Find the shards of a run folder, a committed checkpoint or a stock DeepSpeed folder.

    Of a run folder the newest committed checkpoint is taken.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
    """
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such folder; give a run folder or a checkpoint folder")
    if (source / MANIFEST_NAME).is_file():
        return _open_step(source)
    # Before DeepSpeed's `latest`: a run's checkpoints/ has a file of that name too, as a hint.
    checkpoints = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    if newest := find_newest(checkpoints):
        logger.info("taking the newest committed checkpoint, %s", newest)
        return _open_step(newest)
    if any(source.glob("*_model_states.pt")) or (source / "latest").is_file():
        return Source(_find_stock(source))
    raise CheckpointError(
        f"{source}: no committed checkpoint (a folder step_XXXXXXXX with {MANIFEST_NAME}) and no "
        "DeepSpeed checkpoint (*_model_states.pt, or a file `latest`) in it"
    )


def _open_step(step_dir: Path) -> Source:
    facts = read_manifest(step_dir)
    shards = step_dir / "shards"
    if not shards.is_dir():
        raise CheckpointError(f"{step_dir}: no folder shards/ in it; the checkpoint is incomplete")
    assets = step_dir / "hf"
    return Source(_find_stock(shards), assets if assets.is_dir() else None, facts)


def _find_stock(folder: Path) -> Path:
    """Follow DeepSpeed's file `latest`, which holds the name of a folder beside it."""
    if any(folder.glob("*_model_states.pt")):
        return folder
    latest = folder / "latest"
    if not latest.is_file():
        raise CheckpointError(f"{folder}: neither *_model_states.pt nor a file `latest` in it")
    tag = latest.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[^/\\\0]+", tag) or tag in (".", ".."):
        raise CheckpointError(f"{latest}: {tag!r} is not the name of a folder beside it")
    if not (folder / tag).is_dir():
        raise CheckpointError(
            f"{latest}: names {tag!r}, but there is no such folder; give the checkpoint's folder"
        )
    return folder / tag
