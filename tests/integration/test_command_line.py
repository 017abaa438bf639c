"""The commands as a person types them: real launcher, real processes, exit codes and words."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import read_steps

from bigft.distributed.claim import claimed

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
# A launch takes half a minute; the others train in test_training.py, and are launched every night.
LAUNCHED_ALWAYS = ("zero3", "zero3_nvme")
SMALL = ["--max_length", "64", "--evaluation.max_eval_batches", "2"]
pytestmark = pytest.mark.distributed


def _environment(**changes: str) -> dict[str, str]:
    tools = str(Path(sys.executable).parent)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {**environment, **changes}


def launch(
    ranks: int, *words: Any, cwd: Path = ROOT, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Start through the deepspeed launcher, as the README says."""
    script = str(ROOT / "launch_scripts/run.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # The launcher's default port is one for the whole machine.
        port = str(probe.getsockname()[1])
    command = ["deepspeed", "--num_gpus", str(ranks), "--master_port", port, script]
    command += map(str, words)
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=_environment(LOCAL_SIZE=str(ranks), **changes),
    )


def bigft(*words: Any, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run one bigft process."""
    return subprocess.run(
        [sys.executable, "-m", "bigft", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=_environment(**changes),
        cwd=ROOT,
    )


def config(name: str) -> Path:
    return ROOT / "ds_configs" / f"{name}.json"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in LAUNCHED_ALWAYS else [pytest.mark.nightly])
        for name in CONFIGS
    ],
)
def test_every_shipped_config_trains_unchanged_on_two_ranks(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = launch(2, "--config", config(name), "--max_steps", 5, "--output_dir", folder, *SMALL)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert str(folder / "model") in result.stdout
    assert [row["step"] for row in read_steps(folder)] == [1, 2, 3, 4, 5]
    assert (folder / "model/model.safetensors").is_file()
    assert (folder / "checkpoints/step_00000005/manifest.json").is_file()
    assert (folder / "resolved/run.yaml").is_file()
    assert not (folder / "nvme").exists()
    if name == "zero3":
        _use_the_result(folder)
        _warnings_stay_in_the_log(result, folder)


def _use_the_result(folder: Path) -> None:
    spoken = bigft("generate", folder / "model", "--prompt", "hi", "--max_new_tokens", 4, "--json")
    assert spoken.returncode == 0, spoken.stderr
    assert json.loads(spoken.stdout)["prompt"] == "hi"
    (folder / "few.jsonl").write_text('{"text": "some words to score"}\n')
    scored = bigft("evaluate", folder / "model", "--data", folder / "few.jsonl", "--json")
    assert scored.returncode == 0, scored.stderr
    scores = json.loads(scored.stdout)
    assert 1 < scores["loss"] < 20
    assert {"perplexity", "token_accuracy"} <= scores.keys()
    joined = bigft(
        "consolidate", folder, "--output_dir", folder / "fp32", "--dtype", "float32", "--json"
    )
    assert joined.returncode == 0, joined.stderr
    assert json.loads(joined.stdout)["verified"] is True


def _warnings_stay_in_the_log(result: subprocess.CompletedProcess[str], folder: Path) -> None:
    own = [line for line in result.stderr.splitlines() if line and not line.startswith("[20")]
    assert len(own) < 25, result.stderr
    assert "Warning" not in result.stderr
    assert (folder / "log/rank_00.log").stat().st_size > 1000
    assert (folder / "log/rank_01.log").is_file()


def test_one_process_trains_without_a_launcher(tmp_path: Path, shared_folder: Path) -> None:
    result = bigft(
        "train",
        "--config",
        config("zero3"),
        "--model",
        shared_folder / "model",
        "--data",
        shared_folder / "chat.jsonl",
        "--max_steps",
        2,
        "--output_dir",
        tmp_path / "run",
        "--max_length",
        64,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "run/model")


def test_two_runs_in_one_folder_are_kept_apart(tmp_path: Path) -> None:
    words = [
        "train",
        "--config",
        config("zero3"),
        "--output_dir",
        tmp_path / "run",
        "--max_steps",
        500,
        *SMALL,
    ]
    first = subprocess.Popen(
        [sys.executable, "-m", "bigft", *map(str, words)],
        env=_environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        waited = time.monotonic()
        while not (tmp_path / "run/log/rank_00.log").exists():
            assert time.monotonic() - waited < 60
            time.sleep(0.1)
        second = bigft(*words)
    finally:
        first.terminate()
        code = first.wait(60)
    assert second.returncode == 2
    assert "another run is writing there" in second.stderr
    assert "Traceback" not in second.stderr
    assert code != 0
    # The lock goes with its process: the folder is free again.
    with claimed(tmp_path / "run"):
        pass


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Path:
    """Inputs that people get wrong."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty.jsonl").write_text("")
    (folder / "odd.jsonl").write_text('{"foo": 1}\n')
    (folder / "typo.json").write_text('{"zero_optimisation": {"stage": 3}}')
    (folder / "bare").mkdir()
    (folder / "torn").mkdir()
    (folder / "torn/config.json").write_text((shared_folder / "model/config.json").read_text())
    (folder / "torn/model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )
    (folder / "shape").mkdir()
    for file in (shared_folder / "model").iterdir():
        (folder / "shape" / file.name).write_bytes(file.read_bytes())
    changed = json.loads((folder / "shape/config.json").read_text())
    changed["intermediate_size"] += 4
    (folder / "shape/config.json").write_text(json.dumps(changed))
    (folder / "file").write_text("")
    return folder


WRONG = {
    "unknown flag": (2, ["--learnig_rate", "3"], "--learning_rate"),
    "misspelt JSON key": (2, ["--config", "{wrong}/typo.json"], "did you mean zero_optimization"),
    "contradictory values": (
        2,
        ["--ds.gradient_clipping=0.5", "--optim.max_grad_norm=1.5"],
        "gradient_clipping",
    ),
    "missing JSON": (2, ["--config", "{wrong}/none.json"], "no such file"),
    "missing data": (3, ["--data", "{wrong}/none.jsonl"], "none.jsonl"),
    "empty data": (3, ["--data", "{wrong}/empty.jsonl"], "empty"),
    "unknown format": (3, ["--data", "{wrong}/odd.jsonl"], "messages"),
    "bare folder": (2, ["--model", "{wrong}/bare"], "empty"),
    "missing shards": (5, ["--model", "{wrong}/torn"], "model-00001-of-00002.safetensors"),
    "shape mismatch": (5, ["--model", "{wrong}/shape"], "mlp.up_proj.weight"),
    "output not writable": (2, ["--output_dir", "{wrong}/file/run"], "cannot be written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_answered_in_plain_words(case: str, wrong: Path, tmp_path: Path) -> None:
    code, words, expected = WRONG[case]
    words = [word.replace("{wrong}", str(wrong)) for word in words]
    given = {word for word in words if word.startswith("--")}
    if "--config" not in given:
        words += ["--config", str(config("zero3"))]
    if "--output_dir" not in given:
        words += ["--output_dir", str(tmp_path / "run")]
    result = bigft("train", *words, "--max_steps", 1)
    assert result.returncode == code, result.stderr
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_host_without_compiler_is_told_what_to_install(tmp_path: Path) -> None:
    result = bigft(
        "train",
        "--config",
        config("zero3_offload"),
        "--output_dir",
        tmp_path / "run",
        CXX="no-such-compiler",
    )
    assert result.returncode == 6, result.stderr
    assert "apt-get install g++" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_host_without_libaio_is_told_what_to_install(tmp_path: Path) -> None:
    """A compiler that cannot find libaio, as on a host where it is not installed."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-laio*) exit 1;; esac\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    result = bigft(
        "train",
        "--config",
        config("zero3_nvme"),
        "--output_dir",
        tmp_path / "run",
        CXX=str(compiler),
    )
    assert result.returncode == 6, result.stderr
    assert "libaio-dev" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_full_disk_is_found_before_the_start(tmp_path: Path) -> None:
    """A model far too large for any disk here: the plan says so at once."""
    huge = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 65536,
        "num_hidden_layers": 200,
        "num_attention_heads": 64,
        "intermediate_size": 262144,
        "vocab_size": 4096,
    }
    (tmp_path / "config.json").write_text(json.dumps(huge))
    result = bigft(
        "train",
        "--config",
        config("zero3_nvme"),
        "--model",
        tmp_path,
        "--max_steps",
        1,
        "--output_dir",
        tmp_path / "run",
        *SMALL,
    )
    assert result.returncode == 4, result.stderr
    assert "TiB" in result.stderr
    assert not (tmp_path / "run/nvme").exists()


def test_a_failing_rank_takes_the_run_down_with_its_words(
    tmp_path: Path, wrong: Path, shared_folder: Path
) -> None:
    result = launch(
        2,
        "--config",
        config("zero3"),
        "--model",
        wrong / "shape",
        "--data",
        shared_folder / "chat.jsonl",
        "--output_dir",
        tmp_path / "run",
    )
    assert result.returncode != 0
    assert result.stderr.count("do not fit the architecture") == 1
    assert "Traceback" not in result.stderr
