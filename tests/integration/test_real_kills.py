"""Real runs, killed at random again and again while they save: nothing that was committed is lost.

One run folder goes through all kills. Every start resumes what the kill before has left, and the
checkpoint at the end has to equal that of a run that nobody disturbed, byte for byte.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resume_runs import digest_state

from bigft.checkpoint.content import verify_files
from bigft.checkpoint.manifest import find_committed, read_manifest

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("BIGFT_KILLS", "300"))
# Each kill takes a start of two ranks, 10 to 20 s; all of them an hour or more.
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.nightly,
    pytest.mark.timeout(600 + 60 * KILLS),
]
SEED = int(os.environ.get("BIGFT_SEED", "0"))
_MARK = "BIGFT_TEST_RUN"
_ORPHAN_SECONDS = 60


def _start(folder: Path, mark: str, max_steps: int, shared: Path) -> subprocess.Popen[bytes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tools = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "LOCAL_SIZE": "2",
        _MARK: mark,
    }
    words = [
        "deepspeed", "--num_gpus", "2", "--master_port", port, ROOT / "launch_scripts/run.py",
        "--config", ROOT / "ds_configs/zero3.json", "--model", shared / "model",
        "--data", shared / "chat.jsonl", "--data.loading.cache_dir", shared / "cache",
        "--max_length", 64, "--data.eval_fraction", 0, "--per_device_train_batch_size", 2,
        "--max_steps", max_steps, "--save_steps", 1, "--output_dir", folder,
        "--optim.lr_scheduler_type", "constant",
    ]  # fmt: skip
    log = (folder.parent / f"{folder.name}.log").open("ab")
    return subprocess.Popen(
        [str(word) for word in words],
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
    )


def _find_processes(mark: str) -> dict[int, str]:
    """Find the processes of a trial and their command lines, by a variable that all inherit."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if words and state != "Z":
                    found[int(folder.name)] = words
        except OSError:
            continue
    return found


def _wait(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    return None


def _newest_step(checkpoints: Path) -> int:
    names = [path.name for path in checkpoints.glob("step_*")] if checkpoints.is_dir() else []
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def _kill(kind: str, mark: str) -> None:
    processes = _find_processes(mark)
    ranks = {pid for pid, words in processes.items() if "--local_rank=" in words}
    one = {pid for pid in ranks if f"--local_rank={0 if kind == 'rank 0' else 1}" in processes[pid]}
    launcher = {pid for pid, words in processes.items() if "deepspeed.launcher.launch" in words}
    for pid in {"all ranks": ranks, "launcher": launcher}.get(kind, one):
        os.kill(pid, signal.SIGKILL)


def _check_folder(checkpoints: Path) -> int:
    """Every folder with a final name is whole; returns the newest step."""
    folders = sorted(checkpoints.glob("step_*"))
    for folder in folders:
        verify_files(folder, read_manifest(folder))
    assert len(find_committed(checkpoints)) == len(folders)
    return _newest_step(checkpoints)


def test_random_kills_lose_nothing(shared_folder, tmp_path):
    chance = random.Random(SEED)
    run = tmp_path / "run"
    checkpoints = run / "checkpoints"
    counts: dict[str, int] = {}
    for trial in range(KILLS):
        mark, before = uuid.uuid4().hex, _newest_step(checkpoints)
        process = _start(run, mark, 100_000, shared_folder)
        try:
            moved = _wait(lambda before=before: _newest_step(checkpoints) > before, 300)
            assert moved, (tmp_path / "run.log").read_text(errors="replace")[-3000:]
            time.sleep(chance.random() * 0.6)
            kind = chance.choice(["rank 0", "rank 1", "all ranks", "launcher"])
            newest = _newest_step(checkpoints)
            _kill(kind, mark)
            # No orphan, and an exit code that says so; but DeepSpeed's runner leaves with 0 when
            # the launcher below it dies by a signal.
            gone = _wait(lambda mark=mark: not _find_processes(mark), _ORPHAN_SECONDS)
            assert gone, (trial, kind, _find_processes(mark))
            assert process.wait(10) != 0 or kind == "launcher"
        finally:
            for pid in _find_processes(mark):
                os.kill(pid, signal.SIGKILL)
        assert _check_folder(checkpoints) >= newest, (trial, kind)
        counts[kind] = counts.get(kind, 0) + 1
    last = _newest_step(checkpoints)
    print(json.dumps({"seed": SEED, "kills": counts, "steps": last}))
    whole = tmp_path / "whole"
    assert _start(whole, uuid.uuid4().hex, last, shared_folder).wait(900) == 0
    name = f"checkpoints/step_{last:08d}"
    assert digest_state(run / name) == digest_state(whole / name)
