"""Seconds per token that a model writes during training, with and without gathering parameters.

    python tests/benchmarks/answers.py [--rows 8] [--tokens 32]

The built-in model (6.9M parameters, random weights, fp32), two ranks on the CPU. Every pass writes
a token of each row of a batch; under stage 3 it also gathers all parameters.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))


def main() -> None:
    """Measure and print a table."""
    from ranks import RankPool

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rows", type=int, default=8, help="in a batch, of which each rank has one"
    )
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    settings = {
        "model": "builtin",
        "data": "builtin/reading",
        "max_steps": 1,
        "max_length": 256,
        "eval_steps": 1,
        "evaluation.max_eval_batches": 1,
        "evaluation.metrics": "f1",
        "evaluation.generate_rows": 2 * options.rows,
        "evaluation.per_device_eval_batch_size": options.rows,
        "evaluation.max_new_tokens": options.tokens,
        "evaluation.generate_seconds": "none",
        "ds.bf16.enabled": "false",
    }
    pool = RankPool(2)
    print(f"{'config':<16}{'ms per pass':>12}{'passes':>8}")
    with tempfile.TemporaryDirectory() as parent:
        for name in ("zero2", "zero3", "zero3_offload"):
            config = str(ROOT / f"ds_configs/{name}.json")
            folder = str(Path(parent) / name)
            found = pool.run("answer_runs:time_passes", settings, folder, config)[0]
            best = min(found, key=lambda one: one[0] / one[1])
            print(f"{name:<16}{1000 * best[0] / best[1]:>12.1f}{best[1]:>8}", flush=True)
    pool.close()


if __name__ == "__main__":
    main()
