"""Twelve planted secrets: none is found in a run's folder, on the terminal or in the model card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "HF_TOKEN": "hf_" + "aB3dE6gH9j" * 3,
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    # Recorded by name, as all of NCCL's are.
    "NCCL_CONF_FILE": "https://nccl:envpw4711@host/conf",
}
IN_URL = "envpw4711"
FLAG = "flag-secret-0815"
JSON = "xoxb-2024-jsonsecret-abcdef"
RECIPE = "sk-proj-recipe0secret1abcdefgh"
IN_FILE = "hf_" + "Zz9Yy8Xx7W" * 3
IN_DATA_URL = "datapw0042"
DATA_URL = f"https://me:{IN_DATA_URL}@host/x.jsonl"
TWICE = "first-of-two-secrets"
UNKNOWN = "unknown-flag-secret"


def secrets() -> list[str]:
    own = [value for value in ENVIRONMENT.values() if "://" not in value]
    return [*own, IN_URL, FLAG, JSON, RECIPE, IN_FILE, IN_DATA_URL, TWICE, UNKNOWN]


def bigft(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    home = tmp_path / "hf_home"
    home.mkdir(exist_ok=True)
    (home / "token").write_text(IN_FILE)
    changes = {"HF_HOME": str(home), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "bigft", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, **ENVIRONMENT, **changes},
    )


def find_hits(*texts: bytes | str) -> list[str]:
    joined = b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts)
    return [secret for secret in secrets() if secret.encode() in joined]


def test_there_are_twelve() -> None:
    assert len(set(secrets())) == 12
    assert find_hits(*secrets()) == secrets()


def test_run_leaves_none(shared_folder: Path, tmp_path: Path) -> None:
    config = json.loads((ROOT / "ds_configs/zero2.json").read_text())
    config["wandb"] = {"enabled": False, "team": JSON, "project": "x"}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    recipe = {"monitor": {"project": RECIPE}, "max_steps": 2, "max_length": 32}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "run"
    done = bigft(
        tmp_path,
        "train",
        f"--config={tmp_path / 'ds.json'}",
        f"--recipe={tmp_path / 'recipe.yaml'}",
        f"--model={shared_folder / 'model'}",
        f"--data={shared_folder / 'chat.jsonl'}",
        f"--output_dir={out}",
        f"--ds.comet.api_key={FLAG}",
        "--ds.comet.enabled=false",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    names = {path.relative_to(out).as_posix() for path in files}
    assert {"resolved/run.yaml", "log/rank_00.log", "model/README.md"} <= names
    for path, content in files.items():
        assert find_hits(content, str(path)) == [], path
    assert find_hits(done.stdout, done.stderr) == []
    # The record says where something was left out, and keeps the rest.
    environment = json.loads((out / "resolved/environment.json").read_text())
    assert environment["environment"]["NCCL_CONF_FILE"] == "https://***@host/conf"
    assert "--ds.comet.api_key=***" in environment["command"]
    assert f"--model={shared_folder / 'model'}" in environment["command"]
    ds = json.loads((out / "resolved/ds_config.json").read_text())
    assert ds["comet"] == {"api_key": "***", "enabled": False}
    assert ds["wandb"]["project"] == "x"
    recorded = (out / "resolved/run.yaml").read_text()
    assert "fill it in first" in recorded
    assert yaml.safe_load(recorded)["monitor"]["project"] == "***"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train", "--config=ds_configs/zero2.json", f"--hub_token={UNKNOWN}"], 2),
        (["train", "--config=ds_configs/zero2.json", "--hub_token", UNKNOWN], 2),
        (["train", f"--data={DATA_URL}", "--config=ds_configs/zero2.json"], 3),
        (["data", DATA_URL], 3),
        (["train", f"--x.api_key={TWICE}", f"--x.api_key={FLAG}"], 2),
        (["explain", "monitor.project", f"--monitor.project={RECIPE}"], 0),
        (["train", "--config=ds_configs/zero2.json", f"--monitor.project={JSON}", "--dry_run"], 0),
        (["consolidate", f"https://me:{IN_DATA_URL}@host/x", "--output_dir=/tmp/none"], 5),
    ],
)  # fmt: skip
def test_messages_echo_none(tmp_path: Path, words: list[str], code: int) -> None:
    done = bigft(tmp_path, *words)
    assert done.returncode == code, done.stderr
    assert done.stdout or done.stderr
    assert find_hits(done.stdout, done.stderr) == []
