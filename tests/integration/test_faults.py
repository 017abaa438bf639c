"""What goes wrong inside a run: numbers that are not finite, disks that fail, saves that fail."""

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from small_runs import ds_config, read_metrics, read_steps, small_settings

pytestmark = pytest.mark.distributed


def _settings(shared: Path, **changes: Any) -> dict[str, Any]:
    return small_settings(
        shared,
        **{
            "evaluation.eval_on_start": "false",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            **changes,
        },
    )


def _read_events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log/events.jsonl").read_text().splitlines()]


# Numbers that are not finite.

STAGES = {
    "0": ("zero1", {"ds.zero_optimization.stage": 0}),
    "1": ("zero1", {}),
    "2": ("zero2", {}),
    "2_offload": ("zero2_offload", {}),
    "3": ("zero3", {}),
    "3_offload": ("zero3_offload", {}),
    "3_nvme": ("zero3_nvme", {"ds.zero_optimization.sub_group_size": 1_000_000}),
}
DTYPES = {
    "fp32": {"ds.bf16.enabled": "false"},
    "bf16": {"ds.bf16.enabled": "true"},
    "fp16": {"ds.bf16.enabled": "false", "ds.fp16.enabled": "true"},
}
# fp16 begins with a loss scale that overflows a few times by itself.
CALM_FP16 = {"ds.fp16.initial_scale_power": 4}
ALWAYS = {("0", "fp32"), ("1", "bf16"), ("2_offload", "bf16"), ("3", "bf16"), ("3_nvme", "bf16")}


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        pytest.param(stage, dtype, marks=[] if (stage, dtype) in ALWAYS else pytest.mark.nightly)
        for stage in STAGES
        for dtype in DTYPES
    ],
)
def test_nothing_that_is_not_finite_reaches_the_state(
    two_ranks, shared_folder, wide_model, tmp_path, stage, dtype
):
    config, changes = STAGES[stage]
    settings = _settings(shared_folder, max_steps=6, **changes, **DTYPES[dtype])
    if stage == "3_nvme":
        settings["model"] = wide_model
    if dtype == "fp16":
        settings |= CALM_FP16
    # In the first of two micro-batches, on the other rank than the one that speaks.
    plan = {
        2: ("gradient", 1, math.inf),
        4: ("gradient", 1, math.nan),
        5: ("loss", 1, math.inf),
    }
    folder = tmp_path / "run"
    arguments = (settings, str(folder), ds_config(config), plan)
    for result in two_ranks.run("fault_runs:poison", *arguments):
        steps = result["steps"]
        assert [step["skipped"] for step in steps[1:]] == [False, True, False, True, True, False]
        assert all(step["finite"] for step in steps)
        expected = {"weight", "master"} if stage != "0" else {"weight", "exp_avg", "exp_avg_sq"}
        if stage == "3_nvme":
            expected = {"swap"} if dtype == "fp16" else {"weight", "kept"}
        assert expected <= set(steps[-1]["kinds"])
        for number in (2, 4, 5):
            before, after = steps[number - 1], steps[number]
            assert after["digest"] == before["digest"], f"step {number} left something behind"
            assert after["counters"] == before["counters"]
        for number in (1, 3, 6):
            assert steps[number]["digest"] != steps[number - 1]["digest"]
        # The schedule did not move on either.
        assert steps[3]["lr"] == steps[2]["lr"]
    rows = read_steps(folder)
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 2, 3, 3]
    assert [row["loss"] is None for row in rows] == [False, True, False, True, True, False]
    # Of the loss we know which rank and micro-batch it was, of a gradient only the step.
    events = _read_events(folder)
    assert [(event["step"], event["reason"]) for event in events] == [
        (2, "gradient"),
        (4, "gradient"),
        (5, "loss"),
    ]
    assert [event["micro_batches"] for event in events] == [[], [], [[1, 0]]]
    assert set(events[2]["samples"]) < {f"{shared_folder}/chat.jsonl:{n}" for n in range(1, 65)}
    assert len(events[2]["samples"]) < min(len(event["samples"]) for event in events[:2])
    for event in events:
        assert all(name.startswith(f"{shared_folder}/chat.jsonl:") for name in event["samples"])


@pytest.mark.parametrize(
    "switch", ["ds.bf16.check_grad_overflow", "ds.zero_optimization.compute_grad_norm"]
)
def test_switches_that_turn_the_check_off_do_not(two_ranks, shared_folder, tmp_path, switch):
    settings = _settings(shared_folder, **{switch: "false", "ds.gradient_clipping": 0})
    plan = {2: ("gradient", 0, math.nan)}
    arguments = (settings, str(tmp_path / "run"), ds_config("zero2"), plan)
    for result in two_ranks.run("fault_runs:poison", *arguments):
        steps = result["steps"]
        assert [step["skipped"] for step in steps[1:]] == [False, True, False, False]
        assert all(step["finite"] for step in steps)
        assert steps[2]["digest"] == steps[1]["digest"]


def test_a_spike_is_named_and_its_past_survives_a_resume(two_ranks, shared_folder, tmp_path):
    settings = _settings(shared_folder, max_steps=90, save_steps=80, gradient_accumulation_steps=1)
    settings["learning_rate"] = 1e-5
    folder = tmp_path / "run"
    arguments = (str(folder), ds_config("zero1"), {70: ("scaled_loss", 0, 300.0)})
    two_ranks.run("fault_runs:poison", settings, *arguments)
    # The gradient is 300 times as large; the loss that the ranks report is not.
    (event,) = [event for event in _read_events(folder) if event["event"] == "spike"]
    assert (event["step"], event["of"]) == (70, "grad_norm")
    assert event["value"] > event["mean"] + 6 * event["sigma"]
    assert len(event["samples"]) >= 2
    manifest = json.loads((folder / "checkpoints/step_00000080/manifest.json").read_text())
    past = manifest["state"]["spikes"]
    # Steps of few tokens, as the last one of an epoch may be, are no measure of the others.
    counts = past["supervised_tokens"]
    assert len(counts) == 80
    usual = [i for i, n in enumerate(counts) if i == 0 or n >= 0.5 * median(counts[:i])]
    norms = [row["grad_norm"] for row in read_steps(folder)[:80]]
    assert past["grad_norm"] == [norms[i] for i in usual]
    assert 70 < len(usual) < 80


# Swap files.


def _nvme(wide_model: Path, shared: Path, nvme: Path, **changes: Any) -> dict[str, Any]:
    settings = _settings(shared, model=wide_model, save_steps=1, **changes)
    settings["ds.zero_optimization.sub_group_size"] = 1_000_000
    for part in ("offload_param", "offload_optimizer"):
        settings[f"ds.zero_optimization.{part}.nvme_path"] = nvme
    return settings


OWN, DEEPSPEEDS = "bigft_states/rank{}/piece_00000.swp", "optimizer/rank{}/exp_avg-"
LOST_WRITES = [
    ("bf16", OWN, "lose_a_write", "what was read is not what was written"),
    ("bf16", OWN, "truncate", "shorter than what was written"),
    ("bf16", OWN, "remove", "No such file"),
    ("fp16", DEEPSPEEDS, "lose_a_write", "what was read is not what was written"),
    ("fp16", DEEPSPEEDS, "truncate", "bytes,"),
    ("fp16", DEEPSPEEDS, "remove", "has 0 bytes"),
]


@pytest.mark.parametrize(
    ("dtype", "file", "how", "words"),
    [
        pytest.param(*row, marks=[] if row[0] == "bf16" else pytest.mark.nightly)
        for row in LOST_WRITES
    ],
)
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_a_swap_file_that_lost_something_ends_the_run_before_the_next_save(
    two_ranks, shared_folder, wide_model, tmp_path, dtype, file, how, words, rank
):
    changes = {**DTYPES[dtype], **(CALM_FP16 if dtype == "fp16" else {})}
    settings = _nvme(wide_model, shared_folder, tmp_path / "nvme", max_steps=5, **changes)
    folder = tmp_path / "run"
    arguments = (settings, str(folder), ds_config("zero3_nvme"), how, rank, 2)
    failed = two_ranks.run("fault_runs:damage_swap", *arguments)
    assert failed[0] == failed[1]
    kind, text, code = failed[0]
    assert (kind, code) == ("TrainingError", 7)
    # The state of step 2 was damaged before it was saved: that was refused, and step 3 as well.
    (event,) = _read_events(folder)
    assert (event["step"], event["event"]) == (2, "save_failed")
    for said in (text, event["error"]):
        assert words in said
        assert file.format(rank) in said
    names = [path.parent.name for path in folder.glob("checkpoints/step_*/manifest.json")]
    assert names == ["step_00000001"]
    assert not list((tmp_path / "nvme").iterdir())


def _may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN, and there are loop devices."""
    status = Path("/proc/self/status").read_text()
    rights = int(re.search(r"CapEff:\s*(\w+)", status)[1], 16)
    return bool(rights >> 21 & 1) and Path("/dev/loop-control").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 96 MB, mounted through a loop device."""
    image, mounted = tmp_path / "disk.img", tmp_path / "disk"
    mounted.mkdir()
    image.touch()
    os.truncate(image, 96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.skipif(
    not _may_mount() or shutil.which("mkfs.ext4") is None,
    reason="a disk of its own needs root, loop devices and mkfs.ext4 (e2fsprogs)",
)
def test_a_disk_that_fills_up_is_found_before_the_first_step(
    two_ranks, shared_folder, wide_model, small_disk, tmp_path
):
    """There is room when the run looks; somebody else takes it while the model is loaded."""
    settings = _nvme(wide_model, shared_folder, small_disk)
    taken = small_disk / "others"
    arguments = (settings, str(tmp_path / "run"), ds_config("zero3_nvme"))
    failed = two_ranks.run("fault_runs:fill_disk", *arguments, str(taken))
    for kind, text, code in failed:
        assert (kind, code) == ("PlanError", 4), text
        assert "No space left on device" in text
        assert str(small_disk) in text
    assert not (tmp_path / "run/metrics.jsonl").exists()
    taken.unlink()
    # With the space back the same command trains, and its swap files leave nothing behind.
    two_ranks.run("runs:train", *arguments)
    assert len(read_steps(tmp_path / "run")) == 4
    assert [path.name for path in small_disk.iterdir()] == ["lost+found"]


# Saves.


def test_training_goes_on_after_a_failed_save(two_ranks, shared_folder, tmp_path):
    settings = _settings(shared_folder, save_steps=1)
    folder = tmp_path / "run"
    arguments = (settings, str(folder), ds_config("zero3"))
    said = two_ranks.run("fault_runs:fail_saves", *arguments, [1, 2])[0]["said"]
    assert said.count("Training goes on") == 2
    assert "warning: step 2 is not saved" in said
    assert "No space left on device" in said
    assert [row["step"] for row in read_steps(folder)] == [1, 2, 3, 4]
    assert [event["event"] for event in _read_events(folder)] == ["save_failed"] * 2
    names = sorted(path.name for path in (folder / "checkpoints").glob("[!.]*"))
    assert names == ["latest", "step_00000003", "step_00000004"]


# Stopping.


@pytest.mark.parametrize("rank", [0, 1])
def test_a_request_in_an_evaluation_stops_it_and_the_next_run_makes_up_for_it(
    two_ranks, shared_folder, tmp_path, rank
):
    settings = _settings(shared_folder, eval_steps=2, gradient_accumulation_steps=1)
    settings |= {"packing": "none", "data.eval_fraction": 0.4}
    settings["evaluation.per_device_eval_batch_size"] = 1
    whole, folder = tmp_path / "whole", tmp_path / "run"
    two_ranks.run("runs:train", settings, str(whole), ds_config("zero3"))
    arguments = (settings, str(folder), ds_config("zero3"))
    stopped = two_ranks.run("fault_runs:stop_in_evaluation", *arguments, rank, 2)
    kinds, texts, scored = zip(*stopped, strict=True)
    assert kinds == ("StoppedError",) * 2
    assert all("stopped by SIGUSR1 at step 2 of 4, committed" in text for text in texts)
    # The request came in the second batch; the answer is one batch late, on both ranks.
    assert scored == (3, 3)
    two_ranks.run("runs:train", *arguments)

    def read(run: Path) -> list[Any]:
        names = ("step", "loss", "grad_norm", "eval_loss")
        return [{name: row[name] for name in names if name in row} for row in read_metrics(run)]

    assert read(folder) == read(whole)
