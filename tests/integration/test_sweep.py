"""Sweeps of real runs: killed and started again, a trial that breaks, one that is pruned."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import read_metrics, read_steps

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.distributed


class Sweep:
    """`bigft sweep` as a person types it, into one folder."""

    def __init__(self, folder: Path, shared: Path, *words: Any) -> None:
        self.folder = folder
        self._words = [
            "--config", ROOT / "ds_configs/zero3.json",
            "--model", shared / "model",
            "--data", shared / "chat.jsonl",
            "--data.loading.cache_dir", shared / "cache",
            "--data.eval_fraction", 0.1,
            "--max_length", 64,
            "--output_dir", folder,
            *words,
        ]  # fmt: skip

    def start(self, *words: Any) -> subprocess.Popen[str]:
        tools = str(Path(sys.executable).parent)
        return subprocess.Popen(
            [sys.executable, "-m", "bigft", "sweep", *map(str, [*self._words, *words])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
            },
        )

    def run(self, *words: Any) -> tuple[int, str, str]:
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=500)
        finally:
            process.kill()
        return process.returncode, out, err

    def trial(self, number: int) -> Path:
        return self.folder / f"trials/{number:04d}"

    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / "trials.csv").open()))


def wait_for(happens: Callable[[], bool], what: str, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"no {what} in {seconds} s"
        time.sleep(0.05)


def _steps(folder: Path) -> int:
    if not (folder / "metrics.jsonl").exists():
        return 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return max((row["step"] for row in rows), default=0)


def _processes_of(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (process / "cmdline").read_text():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_a_killed_sweep_goes_on_and_keeps_what_broke(tmp_path: Path, shared_folder: Path) -> None:
    sweep = Sweep(
        tmp_path / "sweep",
        shared_folder,
        "--search", "learning_rate=choice(1e-3,1e30)",
        "--sampler", "grid",
        "--max_steps", 40,
        "--trainer.max_skipped_in_a_row", 1,
        "--evaluation.max_eval_batches", 2,
    )  # fmt: skip
    killed = sweep.start()
    try:
        wait_for(lambda: _steps(sweep.trial(2)) >= 3, "steps of the second trial")
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    # The trial does not outlive its sweep, and commits before it goes.
    wait_for(lambda: not _processes_of(sweep.folder), "end of the trial", 60)
    first = (sweep.trial(1) / "metrics.jsonl").read_bytes()

    code, out, err = sweep.run("--json")

    assert code == 0, err
    answer = json.loads(out)
    states = {t["settings"]["optim.learning_rate"]: t["state"] for t in answer["trials"]}
    assert states == {"1e-05": "complete", "1e-3": "complete", "1e30": "failed"}
    assert answer["best"]["value"] < answer["baseline"]["value"]
    assert answer["trials"][-1]["exit_code"] == 7
    assert "not finite" in answer["trials"][-1]["reason"]
    # Trial 1 was not run again, and trial 2 went on where it was.
    assert (sweep.trial(1) / "metrics.jsonl").read_bytes() == first
    steps = [row["step"] for row in read_steps(sweep.trial(2))]
    assert steps == list(range(1, 41))
    assert [row["state"] for row in sweep.rows()] == ["complete", "complete", "failed"]
    _only_the_best_is_kept(sweep, 2)


def _only_the_best_is_kept(sweep: Sweep, best: int) -> None:
    for name in ("model", "checkpoints"):
        kept = [path.parent.name for path in sweep.folder.glob(f"trials/*/{name}")]
        assert kept == [f"{best:04d}"]


def _the_recipe_repeats_the_best_trial(sweep: Sweep, folder: Path, value: float) -> None:
    words = ["train", "--recipe", sweep.folder / "best.yaml", "--output_dir", folder]
    done = subprocess.run(
        [sys.executable, "-m", "bigft", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert read_metrics(folder)[-1]["eval_loss"] == value


@pytest.mark.nightly
def test_a_trial_that_is_behind_is_pruned(tmp_path: Path, shared_folder: Path) -> None:
    sweep = Sweep(
        tmp_path / "sweep",
        shared_folder,
        "--search", "learning_rate=choice(1e-3,1e-9)",
        "--learning_rate", 1e-3,
        "--sampler", "grid",
        "--pruner", "halving",
        "--max_steps", 120,
        "--eval_steps", 10,
        "--evaluation.max_eval_batches", 2,
    )  # fmt: skip
    code, out, err = sweep.run()
    assert code == 0, err
    assert [row["state"] for row in sweep.rows()] == ["complete", "pruned"]
    # It was stopped early, and committed what it had before that was removed.
    assert _steps(sweep.trial(2)) < 120
    assert "stopped by SIGTERM" in (sweep.trial(2) / "console.log").read_text()
    assert out.splitlines()[1].startswith("1 ")
    _only_the_best_is_kept(sweep, 1)
    best = float(sweep.rows()[0]["eval_loss"])
    _the_recipe_repeats_the_best_trial(sweep, tmp_path / "again", best)


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_of_two_ranks_goes_on(
    number: int, tmp_path: Path, shared_folder: Path
) -> None:
    sweep = Sweep(
        tmp_path / "sweep",
        shared_folder,
        "--search", "learning_rate=log(1e-5,1e-2)",
        "--trials", 2,
        "--num_gpus", 2,
        "--max_steps", 60,
    )  # fmt: skip
    stopped = sweep.start()
    wait_for(lambda: _steps(sweep.trial(1)) >= 3, "steps of the first trial")
    stopped.send_signal(number)
    out, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 75, err
    assert "Run the same command again" in err
    assert out == ""
    assert not _processes_of(sweep.folder)
    code, out, err = sweep.run()
    assert code == 0, err
    assert "goes on" in err
    assert [row["state"] for row in sweep.rows()] == ["complete", "complete"]
    assert [row["step"] for row in read_steps(sweep.trial(1))] == list(range(1, 61))


def test_two_sweeps_in_one_folder_are_kept_apart(tmp_path: Path, shared_folder: Path) -> None:
    words = ["--search", "learning_rate=log(1e-5,1e-2)", "--trials", 1, "--max_steps", 2]
    sweep = Sweep(tmp_path / "sweep", shared_folder, *words)
    first = sweep.start()
    try:
        wait_for(lambda: sweep.trial(1).exists(), "the first trial")
        code, _, err = sweep.run()
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
    assert code == 2
    assert "another sweep is writing there" in err
    assert first.returncode == 75


def test_a_sweep_refuses_what_is_wrong_before_it_starts(
    tmp_path: Path, shared_folder: Path
) -> None:
    sweep = Sweep(tmp_path / "sweep", shared_folder, "--search", "learning_rte=log(1,2);seed=1")
    code, out, err = sweep.run("--pruner", "median")
    assert (code, out) == (2, "")
    assert err.startswith("bigft: 3 problems:")
    assert "Traceback" not in err
    assert not sweep.folder.exists()
