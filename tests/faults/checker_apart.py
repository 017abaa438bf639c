"""Was anything lost on two storages, of ranks 0 and 1, and of ranks 2 and 3? As `checker`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from checker import Saved, _expected
from situations import Situation, find_checkpoints, save_in_threads

_KINDS = ("step_", ".tmp-step_", ".aside-step_")


def read_storages(run: Path) -> tuple[dict[tuple[int, str], dict[str, set[int]]], list[str]]:
    """Read what both storages hold.

    Returns:
        (step, mark) of each checkpoint -> kind of name -> the storages that hold their whole part
        under such a name; and what is wrong with folders that have a final name.
    """
    found: dict[tuple[int, str], dict[str, set[int]]] = {}
    problems = []
    for storage in (0, 1):
        checkpoints = find_checkpoints(run, storage)
        for path in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else ():
            kind = next((kind for kind in _KINDS if path.name.startswith(kind)), None)
            if kind is None:
                continue
            step, tag, wrong = _check_part(path, storage)
            if not wrong:
                found.setdefault((step, tag), {}).setdefault(kind, set()).add(storage)
            elif kind == "step_":
                problems.append(f"N2: storage {storage}: {path.name}: {wrong}")
    return found, problems


def _check_part(folder: Path, storage: int) -> tuple[int, str, str]:
    """Verify what a storage holds of one checkpoint: step, mark, and what is wrong."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        rest = {key: value for key, value in manifest.items() if key != "digest"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        if hashlib.sha256(text.encode()).hexdigest() != manifest["digest"]:
            return 0, "", "digest of the manifest"
        tag, step = str(manifest["tag"]), int(manifest["step"])
        listed = {entry["path"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]}
        mine = set(manifest["storages"][storage]["files"])
    except (OSError, ValueError, KeyError) as error:
        return 0, "", f"no readable manifest ({error})"
    wanted = _expected(tag, step)
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wrong = ""
    if set(listed) != set(wanted):
        wrong = f"lists {sorted(listed)}"
    elif f"step_{step:08d}" not in folder.name:
        wrong = f"manifest of step {step}"
    elif here != {*mine, "manifest.json"}:
        wrong = f"has {sorted(here)}, its part is {sorted(mine)}"
    for name in mine if not wrong else ():
        content = wanted[name]
        if (folder / name).read_bytes() != content:
            wrong = f"content of {name}"
        if listed[name] != (len(content), hashlib.sha256(content).hexdigest()):
            wrong = f"record of {name}"
    return step, tag, wrong


def _list_whole(found: dict[tuple[int, str], dict[str, set[int]]]) -> set[tuple[int, str]]:
    """Which checkpoints both storages can produce, the commit being decided."""
    return {
        key
        for key, kinds in found.items()
        if set().union(*kinds.values()) == {0, 1} and set(kinds) != {".tmp-step_"}
    }


def check_disks(
    run: Path, situation: Situation, saved: Saved, attempt: tuple[int, str], *, is_announced: bool
) -> tuple[list[str], set[tuple[int, str]]]:
    """Check what a fault left, before anything is started again.

    Returns:
        What is violated, and the whole checkpoints.
    """
    found, problems = read_storages(run)
    whole = _list_whole(found)
    if is_announced and found.get(attempt, {}).get("step_") != {0, 1}:
        problems.append(f"N1: step {attempt[0]} was announced and is not named everywhere")
    is_new = attempt in whole
    order = [old for old in saved.tags if old != attempt[0]] + [attempt[0]]
    for step, tag in saved.tags.items():
        if (step, tag) in whole or (is_new and step == attempt[0]):
            continue
        if not is_new:
            problems.append(f"N1: step {step} is not whole, and step {attempt[0]} neither")
        elif step == saved.protected or step in order[-saved.keep_last :]:
            problems.append(f"N7: step {step} is not whole and was to be kept")
    if len({step for step, _ in whole}) < min(saved.keep_last, len(saved.tags)):
        problems.append(f"N7: only {sorted(whole)} are whole")
    for storage in (0, 1):
        problems += _check_left(find_checkpoints(run, storage), situation)
    return problems, whole


def _check_left(checkpoints: Path, situation: Situation) -> list[str]:
    given = {*situation.debris, *(f".tmp-step_{step:08d}-dead" for step in situation.half_named)}
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    left = [name for name in names if name.startswith((".tmp-s", ".tmp-t")) and name not in given]
    return [f"N7: {left} are left by one save"] if len(left) > 1 else []


def check_restart(
    run: Path,
    situation: Situation,
    saved: Saved,
    whole: set[tuple[int, str]],
    attempt: tuple[int, str],
) -> list[str]:
    """Start again as a run does: settle, choose, clear up, go on, save; then all is tidy."""
    from bigft.checkpoint.content import verify_files
    from bigft.checkpoint.folder import clean_up
    from bigft.checkpoint.holdings import Commit, finish, settle, survey
    from bigft.checkpoint.manifest import read_own_manifest
    from bigft.checkpoint.resume_apart import choose_commit
    from bigft.errors import CheckpointError

    folders = [find_checkpoints(run, storage) for storage in (0, 1)]

    def check(commit: Commit) -> str | None:
        if not commit.is_whole:
            return f"step {commit.step} lacks files"
        try:
            for storage, one in commit.held_finally().items():
                folder = folders[storage] / one.name
                verify_files(folder, read_own_manifest(folder), one.present, threads=1)
        except CheckpointError as error:
            return str(error)
        return None

    unfinished = settle([survey(folder) for folder in folders])
    for folder in folders:
        finish(folder, unfinished)
    try:
        commit, places, _ = choose_commit([survey(folder) for folder in folders], check)
    except CheckpointError as error:
        return [f"N1: the restart stops: {error}"]
    for folder in folders:
        clean_up(folder)
    problems = [f"N3: {name} of storage {number} counts as damaged" for number, name in places]
    step = attempt[0] if attempt in whole else next(reversed(saved.tags), None)
    got = commit.step if commit else None
    if got != step:
        problems.append(f"N1: restart takes {got}, not {step}")
    next_step = max((attempt[0], *saved.tags)) + 10
    chosen = folders[0] / f"step_{got:08d}" if commit else None
    results = save_in_threads(
        folders[0], next_step, "restart", saved.keep_last, chosen, situation=situation
    )
    errors = [str(result) for result in results if isinstance(result, BaseException)]
    if errors:
        return [*problems, f"N7: the next save failed: {errors[0]}"]
    return problems + check_tidy(run, saved, (next_step, "restart"), kept=got)


def check_tidy(
    run: Path, saved: Saved, attempt: tuple[int, str], kept: int | None = None
) -> list[str]:
    """Check both storages after a save without a fault."""
    found, problems = read_storages(run)
    odd = {key: kinds for key, kinds in found.items() if kinds != {"step_": {0, 1}}}
    if odd:
        problems.append(f"N7: {odd} outlive the next save")
    steps = {step for step, _ in found}
    if attempt not in found or kept not in {None, *steps}:
        problems.append(f"N1: {attempt} or {kept} is not in {sorted(found)}")
    if len(steps) < min(saved.keep_last, len(saved.tags) + 1):
        problems.append(f"N7: only {sorted(found)} are left of {saved.keep_last}")
    for storage in (0, 1):
        checkpoints = find_checkpoints(run, storage)
        left = [
            one.name for one in checkpoints.iterdir() if one.name.startswith((".tmp", ".aside"))
        ]
        if left:
            problems.append(f"N7: {left} outlive the next save on storage {storage}")
        latest = (checkpoints / "latest").read_text()
        if latest != f"step_{attempt[0]:08d}\n":
            problems.append(f"latest says {latest!r}")
    return problems


def check_survivors(outcomes: list[dict[str, Any] | None], victim: int) -> list[str]:
    """Check what the ranks say that were not killed: saved, or an error of the checkpoint."""
    return [
        f"N8: rank {rank} says: {outcome['error']}"
        for rank, outcome in enumerate(outcomes)
        if outcome and "path" not in outcome and outcome["kind"] != "CheckpointError"
    ]
