"""What an optimizer costs in quality: the same runs with each, evaluation loss against the first.

    python tests/benchmarks/quality.py                          # 12 runs of 1,000 steps
    python tests/benchmarks/quality.py --steps 20 --seeds 1     # does it work at all?
    python tests/benchmarks/quality.py --optimizers adamw "adamw --optim.adam_beta1 0.900001"

Every run is the real command, in a process of its own: one rank, ZeRO-3 with everything in host
memory, bf16, a 3.6M-parameter Llama from random weights. An optimizer is what follows `--optim`;
further flags may follow its name. Nothing else differs: the loss of the untrained model and the
number of tokens of every step have to be equal, or the comparison is refused. The third line above
compares AdamW with itself after a change in the seventh digit of a setting, which tells how far
apart two runs end whose arithmetic is equally good.

Texts: `builtin` (documentation; questions and answers) and `code` (the source files of the running
Python's standard library, whole files held out). Neither needs a download.

Exits with 1 when the loss of any seed ends further than --limit percent from the first optimizer's.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "initializer_range": 0.02,
}
HELD_OUT_ONE_IN = 16
"""Of the source files; the evaluation reads the first 6,000 characters of each."""


@dataclass
class Curve:
    """What one run has left."""

    losses: dict[int, float]
    """Evaluation loss by step; 0 is the untrained model."""
    tokens: list[int]
    """Seen until each step."""
    state_bytes: float
    """Of the optimizer, per parameter."""
    seconds: float

    @property
    def end(self) -> float:
        return self.losses[max(self.losses)]


# --- Texts ---


def write_code(folder: Path) -> list[str]:
    """Write the modules of the standard library as rows; returns the flags that read them."""
    rows: dict[str, list[str]] = {"train": [], "eval": []}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        held_out = zlib.crc32(path.name.encode()) % HELD_OUT_ONE_IN == 0
        rows["eval" if held_out else "train"].append(text[:6000] if held_out else text)
    for name, texts in rows.items():
        lines = [json.dumps({"text": text}) + "\n" for text in texts if text.strip()]
        (folder / f"code_{name}.jsonl").write_text("".join(lines))
    return ["--data", f"{folder}/code_train.jsonl", "--eval_data", f"{folder}/code_eval.jsonl"]


TEXTS: dict[str, Callable[[Path], list[str]]] = {
    "builtin": lambda _: ["--data", "builtin", "--data.eval_fraction", "0.03"],
    "code": write_code,
}


# --- Runs ---


def train(data: list[str], optimizer: str, seed: int, options: argparse.Namespace) -> Curve:
    folder = options.work / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "deepspeed", "--num_gpus", 1, "--master_port", port, "launch_scripts/run.py",
        "--config", "ds_configs/zero3_offload.json", "--model", options.work / "model", *data,
        "--output_dir", folder, "--resume", "never", "--seed", seed,
        "--optim", *shlex.split(optimizer), "--learning_rate", options.learning_rate,
        "--optim.lr_scheduler_type", "cosine", "--optim.warmup_steps", 0.05,
        "--max_steps", options.steps, "--eval_steps", max(1, options.steps // 10),
        "--max_length", 256, "--per_device_train_batch_size", options.batch,
        "--evaluation.per_device_eval_batch_size", 4, "--activation_checkpointing", "none",
        "--data.loading.cache_dir", options.work / "cache",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "LOCAL_SIZE": "1",
        "OMP_NUM_THREADS": str(options.threads),
    }
    started = time.monotonic()
    done = subprocess.run(
        [str(word) for word in command], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{optimizer} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    bytes_text = re.search(r"([\d.]+) bytes of state per parameter", done.stdout + done.stderr)
    assert bytes_text, "the run does not say how large its optimizer is"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    tokens = [row["tokens"] for row in rows if "tokens" in row]
    return Curve(losses, tokens, float(bytes_text[1]), seconds)


def check_same_start(first: Curve, other: Curve, optimizer: str) -> None:
    if first.losses[0] != other.losses[0] or first.tokens != other.tokens:
        raise SystemExit(
            f"{optimizer}: not the same run, the loss before the first step is {other.losses[0]}"
            f" against {first.losses[0]}, the tokens are"
            f" {'equal' if first.tokens == other.tokens else 'others'}"
        )


# --- What is said ---


def say_curves(title: str, curves: dict[str, dict[int, float]]) -> None:
    """Print curves below each other, and how far each ends from the first."""
    width = max(len(name) for name in curves)
    first = next(iter(curves.values()))
    steps = [step for step in first if step]
    print(f"\n{title}\n{'step':>{width}} " + " ".join(f"{step:>7}" for step in steps))
    for name, losses in curves.items():
        end = "" if losses is first else f"  {percent(losses[steps[-1]], first[steps[-1]]):+.3f}%"
        print(f"{name:>{width}} " + " ".join(f"{losses[step]:7.4f}" for step in steps) + end)
    sys.stdout.flush()


def percent(value: float, of: float) -> float:
    return 100 * (value / of - 1)


def compare(text: str, options: argparse.Namespace) -> list[float]:
    """Train every seed with every optimizer; returns the differences at the end in percent."""
    data = TEXTS[text](options.work)
    found: dict[str, list[Curve]] = {name: [] for name in options.optimizers}
    for seed in range(1, options.seeds + 1):
        for name in options.optimizers:
            curve = train(data, name, seed, options)
            found[name].append(curve)
            check_same_start(found[options.optimizers[0]][-1], curve, name)
        say_curves(f"{text}, seed {seed}", {name: runs[-1].losses for name, runs in found.items()})
    means = {
        name: {step: statistics.fmean(run.losses[step] for run in runs) for step in runs[0].losses}
        for name, runs in found.items()
    }
    if options.seeds > 1:
        say_curves(f"{text}, mean of {options.seeds} seeds", means)

    first, *others = found.values()
    ends = [run.end for run in first]
    spread = percent(max(ends), min(ends))
    print(
        f"loss before training {first[0].losses[0]:.4f} (seed 1); {first[0].tokens[-1]:,} tokens"
        + (f"; {options.optimizers[0]} alone: {spread:.3f}% between seeds" if len(ends) > 1 else "")
    )
    differences = []
    for name, runs in found.items():
        told = f"{name}: {runs[0].state_bytes:.2f} bytes of state per parameter"
        if runs is not first:
            own = [percent(run.end, base.end) for run, base in zip(runs, first, strict=True)]
            told += "; at the end " + ", ".join(f"{value:+.3f}%" for value in own)
            told += f", mean {statistics.fmean(own):+.3f}%"
            differences += own
        print(f"{told}; {statistics.median(run.seconds for run in runs):.0f} s per run")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3, help="how many: 1, 2, ...")
    parser.add_argument("--texts", nargs="+", default=list(TEXTS), choices=TEXTS)
    parser.add_argument(
        "--optimizers", nargs="+", default=["adamw", "adamw_8bit"], help="the first is the measure"
    )
    parser.add_argument("--limit", type=float, default=0.5, help="percent")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=1, help="sequences of 256 tokens per step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    differences = []
    with tempfile.TemporaryDirectory(dir=options.parent) as work:
        options.work = Path(work)
        (options.work / "model").mkdir()
        (options.work / "model/config.json").write_text(json.dumps(MODEL))
        for text in options.texts:
            differences += compare(text, options)
    if not differences:
        return 0
    worst = max(differences, key=abs)
    is_good = abs(worst) <= options.limit
    print(f"\nfurthest from {options.optimizers[0]}: {worst:+.3f}%; limit {options.limit}%", end="")
    print("" if is_good else ": TOO FAR")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
