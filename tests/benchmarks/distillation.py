"""Does a teacher help? The same small student, trained on the text alone and with a teacher.

    python tests/benchmarks/distillation.py [--seeds 3] [--steps 400] [--teacher_steps 1000]

First a teacher (`builtin`, 6.9M parameters) is trained on the built-in corpus; then, for each seed,
a student of 2 layers of 128 twice: with cross-entropy, and with `--task distillation`. Same data,
order, steps and learning rate; only the loss differs. Prints the students' evaluation loss on
held-out text. Exits with 1 unless the distilled student is better with every seed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STUDENT = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}


def train(folder: Path, threads: int, **settings: Any) -> float:
    """Run the real command; returns the last evaluation loss."""
    command = [sys.executable, "-m", "bigft", "train", "--config", "ds_configs/zero3.json"]
    command += ["--output_dir", str(folder), "--max_length", "256"]
    command += ["--per_device_train_batch_size", "4", "--activation_checkpointing", "none"]
    command += [
        "--optim.warmup_steps",
        "0.05",
        "--data.train_on",
        "all",
    ]
    command += ["--evaluation.per_device_eval_batch_size", "4"]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["eval_loss"] for row in rows if "eval_loss" in row][-1]


def main() -> None:
    """Train teacher and students, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--teacher_steps", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--teacher", type=Path, help="a trained one; absent: train it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        root = Path(parent)
        (root / "student.json").write_text(json.dumps(STUDENT))
        teacher = options.teacher
        if teacher is None:
            taught = train(
                root / "teacher",
                options.threads,
                max_steps=options.teacher_steps,
                learning_rate=1e-3,
            )
            print(f"teacher: evaluation loss {taught:.4f} after {options.teacher_steps} steps")
            teacher = root / "teacher/model"
        print(f"{'seed':>4}{'alone':>10}{'distilled':>12}{'difference':>13}", flush=True)
        differences = []
        for seed in range(1, options.seeds + 1):
            shared = {
                "model": root / "student.json",
                "max_steps": options.steps,
                "learning_rate": options.learning_rate,
                "seed": seed,
            }
            alone = train(root / f"alone{seed}", options.threads, **shared)
            distilled = train(
                root / f"distilled{seed}",
                options.threads,
                **shared,
                **{
                    "task": "distillation",
                    "task.distillation.teacher": teacher,
                    "task.distillation.temperature": options.temperature,
                    "task.distillation.weight": options.weight,
                },
            )
            differences.append(distilled - alone)
            print(f"{seed:>4}{alone:>10.4f}{distilled:>12.4f}{differences[-1]:>+13.4f}", flush=True)
        print(f"mean difference {sum(differences) / len(differences):+.4f}")
        sys.exit(0 if max(differences) < 0 else 1)


if __name__ == "__main__":
    main()
