"""Tokens per second of each task: the real command on built-in models and data.

    python tests/benchmarks/tasks.py [--steps 30] [--tasks classification seq2seq] [--batch 8]

Each task is one process, one rank, ZeRO-3 with everything in host memory, bf16. The first fifth of
the steps warms up; the rest is the median. Models differ between tasks (`builtin` 6.9M,
`builtin/bert` 4.5M, `builtin/t5` 7.0M parameters), so that rows are not to be compared with each
other, but with the same row of another commit or machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("causal_lm", "classification", "regression", "seq2seq", "masked_lm")


def measure(task: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run one task; rates are medians over its steps."""
    command = [sys.executable, "-m", "bigft", "train", "--config", "ds_configs/zero3_offload.json"]
    command += ["--task", task, "--output_dir", str(folder), "--max_steps", str(options.steps)]
    command += ["--max_length", str(options.max_length), "--evaluation.eval_on_start", "false"]
    command += ["--per_device_train_batch_size", str(options.batch), "--data.eval_fraction", "0"]
    command += ["--activation_checkpointing", "none"]
    environment = {"OMP_NUM_THREADS": str(options.threads), "DS_ACCELERATOR": "cpu"}
    subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, **environment}
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "step_seconds" in row]
    rows = rows[len(rows) // 5 :]
    return {
        name: statistics.median(row[name] for row in rows)
        for name in ("tokens_per_second", "step_seconds", "optimizer_seconds", "data_seconds")
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{'task':<16}{'tokens/s':>10}{'s/step':>10}{'optimizer':>11}{'data':>9}")
    with tempfile.TemporaryDirectory() as parent:
        for task in options.tasks:
            found = measure(task, Path(parent) / task, options)
            print(
                f"{task:<16}{found['tokens_per_second']:>10,.0f}{found['step_seconds']:>10.3f}"
                f"{found['optimizer_seconds']:>11.3f}{found['data_seconds']:>9.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
