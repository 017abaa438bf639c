"""Was anything lost? What holds after any single fault, checked with nothing but the disk.

N1  the newest checkpoint that was announced, or a newer one, is what a restart continues from
N2  every folder with a final name is whole: manifest, sizes, digests, all shards of one save
N3  a damaged checkpoint is named and set aside, never deleted; the one before it is used
N7  no more than one temporary folder is left, the next start removes it, and the number of whole
    checkpoints never drops below what is to be kept

The manifest is read here by code of its own, so that a mistake of bigft's reader is not repeated.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from situations import (
    ASSETS,
    INDEX,
    WORLD_SIZE,
    Situation,
    make_content,
    save_in_threads,
    shard_name,
)

_STEP = re.compile(r"step_(\d{8})")


@dataclass
class Saved:
    """What is known before a save: marks of whole checkpoints by step, oldest commit first."""

    tags: dict[int, str]
    keep_last: int
    protected: int | None
    damaged: tuple[int, ...] = ()


def check_folder(folder: Path, step: int) -> tuple[str, list[str]]:
    """Verify one committed folder; returns its mark and what is wrong."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        rest = {key: value for key, value in manifest.items() if key != "digest"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        if hashlib.sha256(text.encode()).hexdigest() != manifest["digest"]:
            return "", [f"N2: {folder.name}: digest of the manifest"]
        tag = str(manifest["tag"])
        wanted = _expected(tag, step)
        listed = {entry["path"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]}
    except (OSError, ValueError, KeyError) as error:
        return "", [f"N2: {folder.name}: no readable manifest ({error})"]
    problems = []
    if manifest["step"] != step:
        problems.append(f"N2: {folder.name}: manifest of step {manifest['step']}")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if found != {*wanted, "manifest.json"} or set(listed) != set(wanted):
        problems.append(f"N2: {folder.name}: files {sorted(found)}, listed {sorted(listed)}")
    for name, content in wanted.items():
        if name not in found or (folder / name).read_bytes() != content:
            problems.append(f"N2: {folder.name}: content of {name}")
        if listed.get(name) != (len(content), hashlib.sha256(content).hexdigest()):
            problems.append(f"N2: {folder.name}: record of {name}")
    return tag, problems


def check_disk(
    checkpoints: Path,
    situation: Situation,
    saved: Saved,
    attempt: tuple[int, str],
    *,
    is_announced: bool,
) -> tuple[list[str], dict[int, str]]:
    """Check what a fault left, before anything is started again.

    Returns:
        What is violated, and the marks of the whole checkpoints.
    """
    step, tag = attempt
    found, problems = _read_all(checkpoints, saved.damaged)
    is_new = found.get(step) == tag
    if is_announced and not is_new:
        problems.append(f"N1: step {step} was announced and is not there")
    aside = _read_aside(checkpoints, found)
    if aside and situation.has_exchange and not situation.aside:
        problems.append(f"N1: {sorted(aside)} lost their names")
    # A name that is lent for the moment of a replacement comes back at the next start.
    now = {**found, **{key: value for key, value in aside.items() if key not in found}}
    for old, mark in saved.tags.items():
        is_replaced = is_new and old == step
        if now.get(old) != mark and not is_replaced:
            if not is_new:
                problems.append(f"N1: step {old} is gone, and step {step} is not there")
            elif old == saved.protected or old in _newest(saved, step):
                problems.append(f"N7: step {old} is gone and was to be kept")
    if len(now) < min(saved.keep_last, len(saved.tags)):
        problems.append(f"N7: only {len(now)} whole checkpoints are left")
    problems += _check_damaged(checkpoints, saved)
    problems += _check_latest(checkpoints, {*now, *saved.damaged})
    problems += _check_left(checkpoints, situation)
    return problems, now


def check_restart(
    checkpoints: Path, saved: Saved, whole: dict[int, str], attempt: tuple[int, str]
) -> list[str]:
    """Start again as a run does: clean up, choose, go on, save; then everything is tidy."""
    from bigft.checkpoint.choose import choose_whole
    from bigft.checkpoint.content import verify_files
    from bigft.checkpoint.folder import clean_up
    from bigft.checkpoint.manifest import find_candidates, read_manifest
    from bigft.errors import CheckpointError

    def check(folder: Path) -> str | None:
        try:
            verify_files(folder, read_manifest(folder), threads=1)
        except CheckpointError as error:
            return str(error)
        return None

    problems: list[str] = []
    step, tag = attempt
    is_new = whole.get(step) == tag
    clean_up(checkpoints)
    candidates = find_candidates(checkpoints)
    try:
        chosen, notes = choose_whole(candidates, check, is_rank_zero=True)
    except CheckpointError as error:
        return [f"N1: the restart stops: {error}"]
    expected = step if is_new else next(reversed(saved.tags), None)
    got = int(chosen.name.removeprefix("step_")) if chosen else None
    if got != expected:
        problems.append(f"N1: restart takes {got}, not {expected}")
    if got is not None and check_folder(chosen, got)[0] != whole.get(got):
        problems.append(f"N1: restart takes another save of step {got}")
    if (
        not is_new
        and saved.damaged
        and not all(_is_aside(checkpoints, old) for old in saved.damaged)
    ):
        problems.append("N3: the damaged checkpoint was not set aside")
    if not is_new and saved.damaged and not any("damaged-" in note for note in notes):
        problems.append("N3: the damaged checkpoint was not named")
    next_step = max((step, *saved.tags)) + 10
    results = save_in_threads(checkpoints, next_step, "restart", saved.keep_last, chosen)
    errors = [str(result) for result in results if isinstance(result, BaseException)]
    if errors:
        return [*problems, f"N7: the next save failed: {errors[0]}"]
    return problems + check_tidy(checkpoints, saved, (next_step, "restart"), kept=chosen)


def check_tidy(
    checkpoints: Path, saved: Saved, attempt: tuple[int, str], kept: Path | None = None
) -> list[str]:
    """Check a folder after a save without a fault."""
    step, tag = attempt
    found, problems = _read_all(checkpoints, saved.damaged)
    left = [
        path.name for path in checkpoints.iterdir() if path.name.startswith((".tmp-", ".aside-"))
    ]
    if left:
        problems.append(f"N7: {left} outlive the next save")
    if found.get(step) != tag:
        problems.append(f"N1: the save of step {step} is not there")
    if kept is not None and not kept.is_dir():
        problems.append(f"N7: {kept.name} was resumed from and is gone")
    if len(found) < min(saved.keep_last, len(saved.tags) + 1):
        problems.append(f"N7: only {sorted(found)} are left of {saved.keep_last}")
    latest = (checkpoints / "latest").read_text()
    if latest != f"step_{step:08d}\n":
        problems.append(f"latest says {latest!r}")
    return problems + _check_damaged(checkpoints, saved)


def check_survivors(outcomes: Sequence[dict[str, Any] | None], victim: int) -> list[str]:
    """Check what the ranks say that were not killed: saved, or who is missing."""
    problems = []
    for rank, outcome in enumerate(outcomes):
        if outcome is None or "path" in outcome:
            continue
        text = outcome["error"]
        # A machine that is busy may make others late, too.
        late = re.search(r"ranks? ([\d, ]+) did not report within", text)
        named = [int(word) for word in late[1].split(", ")] if late else []
        if "rank 0 did not answer" in text:
            named.append(0)
        if outcome["kind"] != "CheckpointError" or victim not in named:
            problems.append(f"N8: rank {rank} says: {text}")
    return problems


def check_answers(
    outcomes: Sequence[dict[str, Any]], answer: str, named: Sequence[str]
) -> list[str]:
    """Check that all ranks say the same after an error, and what they say."""
    texts = {outcome.get("error") for outcome in outcomes}
    if len(texts) > 1:
        return [f"the ranks disagree: {sorted(map(str, texts))}"]
    text = texts.pop()
    if answer == "saved":
        return [] if text is None else [f"failed without need: {text}"]
    if text is None and answer == "either":
        return []
    if text is None:
        return ["an error went unnoticed"]
    kinds = {(outcome["kind"], outcome["is_shared"]) for outcome in outcomes}
    if kinds != {("CheckpointError", True)}:
        return [f"not an error of all ranks: {kinds}"]
    words = (*named, " free there", "Older checkpoints are untouched")
    return [f"{word!r} is not in: {text}" for word in words if word not in text]


def _expected(tag: str, step: int) -> dict[str, bytes]:
    wanted = {
        shard_name(rank): b"".join(make_content(tag, rank, step)) for rank in range(WORLD_SIZE)
    }
    wanted[INDEX] = f"{tag}\n".encode()
    return wanted | {name: f'{{"tag": "{tag}"}}'.encode() for name in ASSETS}


def _read_all(checkpoints: Path, damaged: tuple[int, ...]) -> tuple[dict[int, str], list[str]]:
    found, problems = {}, []
    for path in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else ():
        match = _STEP.fullmatch(path.name)
        if match and int(match[1]) not in damaged:
            tag, wrong = check_folder(path, int(match[1]))
            problems += wrong
            if not wrong:
                found[int(match[1])] = tag
    return found, problems


def _read_aside(checkpoints: Path, found: dict[int, str]) -> dict[int, str]:
    aside = {}
    for path in checkpoints.glob(".aside-step_*"):
        step = int(path.name[-8:])
        tag, wrong = check_folder(path, step)
        if not wrong and step not in found:
            aside[step] = tag
    return aside


def _check_left(checkpoints: Path, situation: Situation) -> list[str]:
    given = {*situation.debris, *(f".aside-step_{step:08d}" for step in situation.aside)}
    left = [
        path.name
        for path in (checkpoints.iterdir() if checkpoints.is_dir() else ())
        if path.is_dir() and path.name.startswith(".") and path.name not in given
    ]
    # A checkpoint with a lent name is none of the temporary ones.
    temporary = [name for name in left if not name.startswith(".aside-")]
    if len(temporary) > 1 or len(left) > 2:
        return [f"N7: {left} are left by one save"]
    return []


def _newest(saved: Saved, step: int) -> list[int]:
    """The steps that a rotation after a commit of `step` leaves."""
    order = [old for old in saved.tags if old != step] + [step]
    return order[-saved.keep_last :]


def _check_damaged(checkpoints: Path, saved: Saved) -> list[str]:
    return [
        f"N3: the damaged step {old} is gone"
        for old in saved.damaged
        if not (checkpoints / f"step_{old:08d}").is_dir() and not _is_aside(checkpoints, old)
    ]


def _is_aside(checkpoints: Path, step: int) -> bool:
    return (checkpoints / f"damaged-step_{step:08d}").is_dir()


def _check_latest(checkpoints: Path, now: set[int]) -> list[str]:
    latest = checkpoints / "latest"
    if not latest.exists():
        return []
    match = _STEP.fullmatch(latest.read_text().strip())
    if match is None or int(match[1]) not in now:
        return [f"latest says {latest.read_text()!r}, and {sorted(now)} are there"]
    return []
