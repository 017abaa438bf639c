"""Writes `resolved/`: everything that is needed to repeat a run exactly.

    bigft train --config OUT/resolved/ds_config.json --recipe OUT/resolved/run.yaml

resolves to the same Run and the same JSON, in a new run folder.
"""

import importlib.metadata
import json
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import bigft
from bigft.redact import HIDDEN, redact_text, redact_value, redact_words
from bigft.run.choose import CHOICE_NAME, CHOSEN, describe_choice
from bigft.run.resolved import Resolved

_PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "bitsandbytes",
    "flash_attn",
    "accelerate",
    "numpy",
    "pyarrow",
    "pydantic",
    "fire",
)
# Named one by one or by a narrow family: tokens and keys must never end in a run folder.
_VARIABLES = re.compile(
    r"(RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|LOCAL_SIZE|MASTER_ADDR|MASTER_PORT"
    r"|CUDA_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|DS_ACCELERATOR|DS_PIN_MEMORY_BACKEND"
    r"|OMP_NUM_THREADS|MKL_NUM_THREADS|KMP_AFFINITY|HF_HOME|HF_HUB_OFFLINE|HF_DATASETS_OFFLINE"
    r"|PYTORCH_ALLOC_CONF|PYTORCH_CUDA_ALLOC_CONF|TORCH_EXTENSIONS_DIR|TORCH_CUDA_ARCH_LIST"
    r"|BIGFT_LOG_LEVEL|SLURM_JOB_ID|SLURM_JOB_NODELIST|SLURM_NNODES"
    r"|(NCCL|GLOO)_[A-Z0-9_]+)"
)


def record(resolved: Resolved, environ: Mapping[str, str], folder: Path) -> None:
    """Write `resolved/` into a run folder, without secrets; only rank 0 calls this."""
    target = folder / "resolved"
    target.mkdir(parents=True, exist_ok=True)
    (target / "run.yaml").write_text(render_run_yaml(resolved, folder), encoding="utf-8")
    (target / "ds_config.json").write_text(
        json.dumps(redact_value(resolved.ds), indent=2) + "\n", encoding="utf-8"
    )
    if resolved.config.startswith(CHOSEN):
        chosen = json.dumps(describe_choice(resolved), indent=2)
        (target / CHOICE_NAME).write_text(chosen + "\n", encoding="utf-8")
    environment = describe_environment(resolved, environ)
    (target / "environment.json").write_text(
        json.dumps(environment, indent=2) + "\n", encoding="utf-8"
    )


def render_run_yaml(resolved: Resolved, folder: Path) -> str:
    """Return the recipe that repeats a run, with the command on top."""
    settings = redact_value(resolved.run.model_dump(mode="json", exclude={"output_dir"}))
    if "optimizer" in resolved.ds:
        # The JSON owns these; written here too, they would count as a second answer.
        del settings["optim"]["name"]
    if "scheduler" in resolved.ds:
        del settings["optim"]["lr_scheduler_type"]
        del settings["optim"]["lr_scheduler_kwargs"]
    head = [
        "# Every setting of this run. To repeat it in a new folder:",
        f"#   {repeat_command(resolved, folder)}",
        f"# output_dir: {json.dumps(str(folder))}",
    ]
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if HIDDEN in text:
        head.append(f"# Where it says {HIDDEN}, a secret was left out: fill it in first.")
    return "\n".join([*head, "", text])


def repeat_command(resolved: Resolved, folder: Path) -> str:
    """Return the command line that repeats a run from its folder."""
    files = [
        "--config",
        folder / "resolved/ds_config.json",
        "--recipe",
        folder / "resolved/run.yaml",
    ]
    words = shlex.join(map(str, files))
    if resolved.world_size == 1:
        return f"bigft train {words}"
    return f"deepspeed launch_scripts/run.py {words}   # {resolved.world_size} ranks in all"


def describe_environment(resolved: Resolved, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return versions, machine and launch of a run; no secrets."""
    return {
        "bigft": bigft.__version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "world_size": resolved.world_size,
        "command": shlex.join(["bigft", *redact_words(resolved.request.argv)]),
        "executable": sys.executable,
        "working_directory": str(Path.cwd()),
        "config": resolved.config,
        "recipe": resolved.request.recipe,
        "environment": {
            name: redact_value(environ[name], name)
            for name in sorted(environ)
            if _VARIABLES.fullmatch(name)
        },
        "origin": {name: redact_text(origin) for name, origin in resolved.origin.items()},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of a source checkout; None when installed."""
    root = Path(bigft.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
