"""The selftest passes where all is well, and finds a mistake wherever one is planted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]

WELL = ["zero2_offload/adamw/fp32/x2", "zero0/adamw/bf16/x2/resumed"]

PLANTED = [
    ("forget_accumulation", "zero2_offload/adamw/fp32/x2", "gradient norms"),
    ("lose_last_micro_batch", "zero3/adamw/fp32/x2", "losses"),
    ("lose_a_rank", "zero1/adamw/fp32/x1", "gradient norms"),
    ("average_over_ranks", "zero2/adamw/fp32/x1", "gradient norms"),
    ("clip_before_unscaling", "zero3_offload/adamw/fp32/x1", "weights"),
    ("decay_everything", "zero2/adamw/fp32/x1", "norm.weight"),
    ("be_a_step_ahead", "zero0/adamw/fp32/x1", "learning rates"),
    ("resume_without_moments", "zero2_offload/adamw/bf16/x2/resumed", "weights"),
    ("forget_moments", "zero2_offload/adamw/fp32/x1", "weights"),
    ("keep_bf16_masters", "zero2_offload/adamw/bf16/x2/resumed", "norm.weight"),
    ("run_another_optimizer", "zero1_offload/adamw_8bit/fp32/x1", "weights"),
    ("step_while_building", "zero0/adamw/bf16/x2/resumed", "weights"),
]
_IN_DEFAULT_TIER = ("average_over_ranks", "keep_bf16_masters")


@pytest.mark.parametrize(
    ("bug", "row", "what"),
    [
        pytest.param(*case, marks=() if case[0] in _IN_DEFAULT_TIER else pytest.mark.nightly)
        for case in PLANTED
    ],
)
def test_a_planted_bug_is_found(two_ranks, tmp_path, bug, row, what):
    found = two_ranks.run("selftest_runs:try_rows", str(tmp_path), [row], bug)[0]
    assert [one["row"] for one in found] == [row]
    assert found[0]["verdict"] == "differs"
    said = "; ".join(found[0]["problems"])
    assert what in said, said


@pytest.mark.nightly
@pytest.mark.parametrize("row", sorted({row for _, row, _ in PLANTED}))
def test_without_the_bug_it_is_not(two_ranks, tmp_path, row):
    found = two_ranks.run("selftest_runs:try_rows", str(tmp_path), [row])[0]
    assert [(one["row"], one["verdict"]) for one in found] == [(row, "agrees")]


def run_selftest(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bigft", "selftest", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )


def find_shared_buffers() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("deepspeed_*")}


def test_the_command_passes_and_leaves_nothing(tmp_path):
    before = find_shared_buffers()
    done = run_selftest(tmp_path, "--rows", ",".join(WELL), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"ok", "rows", "seconds"}
    assert found["ok"] is True
    assert [row["verdict"] for row in found["rows"]] == ["agrees"] * 2
    assert {row["row"] for row in found["rows"]} == set(WELL)
    assert f"2 of 2: {WELL[0]} agrees" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert find_shared_buffers() <= before


@pytest.mark.nightly
def test_a_rank_that_hangs_is_said_and_ended(tmp_path):
    done = run_selftest(tmp_path, "--rows", WELL[0], "--timeout", "1")
    assert done.returncode == 6
    assert "has not ended after" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert (
        str(tmp_path)
        not in subprocess.run(["ps", "-eo", "args"], capture_output=True).stdout.decode()
    )
