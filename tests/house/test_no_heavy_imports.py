"""Settings are answered without torch: a wrong flag in under a second of CPU time."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "numpy", "optuna")


def python(*words):
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "module",
    [
        "bigft.cli",
        "bigft.run.resolve",
        "bigft.run.record",
        "bigft.run.report",
        "bigft.run.reference",
        "bigft.commands.explain",
        "bigft.commands.data",
        "bigft.commands.plan",
        "bigft.commands.sweep",
        "bigft.commands.doctor",
        "bigft.commands.compress",
        "bigft.models.facts",
        "bigft.config.deepspeed_check",
        "bigft.planner.architecture.build",
        "bigft.planner.hardware",
        "bigft.planner.time",
        "bigft.probe.slice",
    ],
)
def test_module_imports_nothing_heavy(module):
    done = python("-c", f"import sys, {module}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not set(HEAVY) & set(done.stdout.split())


def test_resolving_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from bigft.cli import parse\n"
        "from bigft.run.resolve import resolve\n"
        "resolve(parse(['train', '--config', 'ds_configs/zero3.json']), {})\n"
        "print(*sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert not set(HEAVY) & set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train", "--dry_run", "--config", "ds_configs/zero3.json", "--learnig_rate", "3"], 2),
        (["train", "--dry_run", "--config", "ds_configs/zero3.json"], 0),
        (["explain", "learning_rate"], 0),
    ],
)
def test_settings_answer_in_under_a_second(words, code):
    # CPU time, not wall time: the test machine may be busy with other tests.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("-m", "bigft", *words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"bigft {' '.join(words)}: {seconds:.2f} s of CPU time, {os.cpu_count()} cores")
    assert done.returncode == code, done.stderr
    assert seconds < 1.0
