"""Find what a run continues from, and put it back into the engine."""

from pathlib import Path
from typing import Any

from bigft.checkpoint.manifest import find_newest, read_manifest
from bigft.errors import CheckpointError, raise_together

# What must be the same for the state to fit and the data order to go on: key in the manifest,
# and the words for it. Ranks, ZeRO stage and offload may differ.
_BOUND = {
    "optimizer": "optimizer",
    "parameters": "number of parameters",
    "global_batch_size": "sequences per step",
    "data": "data, tokenizer or their settings",
    "seed": "seed",
}


def find_resume(resume: str, checkpoints: Path) -> Path | None:
    """Return the checkpoint to continue from, or None to start anew.

    Args:
        resume: `auto`, `never`, or a path to a checkpoint or a run folder.
        checkpoints: The run's own `checkpoints/` folder.

    Raises:
        CheckpointError: The path names no committed checkpoint.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return find_newest(checkpoints)
    given = Path(resume)
    if (given / "manifest.json").is_file():
        return given
    newest = find_newest(given / "checkpoints") or find_newest(given)
    if newest is None:
        raise CheckpointError(
            f"--resume {resume}: no committed checkpoint there; give a folder step_XXXXXXXX with a"
            " manifest.json, a run folder, or auto"
        )
    return newest


def check_fits(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint's manifest and compare it with this run.

    Returns:
        The manifest.

    Raises:
        CheckpointError: Names everything that differs, with both values.
    """
    manifest = read_manifest(folder)
    problems = [
        f"{words}: {manifest[key]!r} in the checkpoint, {facts[key]!r} now"
        for key, words in _BOUND.items()
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
