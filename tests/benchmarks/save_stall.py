"""How long training waits for a checkpoint: DeepSpeed's, bigft's, and bigft's in the background.

    python tests/benchmarks/save_stall.py [--size 35m] [--config zero3] [--ranks 2] [--saves 5]

Every round starts the launcher once for each of the three, which take turns. A run trains on random
tokens and saves after every fourth step. `stall` is the time that the loop spends in the call, on
the slowest rank; `step while writing` is the first step after it against the fastest one before
it, which tells what the writing in the background takes from training. bigft writes fp32 master
weights and moments, digests them, and syncs files and folders; DeepSpeed writes the low-precision
weights besides, and leaves the rest to the page cache. `durable` is the time until everything has
been synced.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from launching import ROOT, launch
from versus_hf_trainer import SIZES

WAYS = ("stock", "foreground", "background")
STEPS_BETWEEN = 4


def sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def drop_auto(value: Any) -> Any:
    """Leave to DeepSpeed what bigft would fill in."""
    if isinstance(value, dict):
        return {key: drop_auto(inner) for key, inner in value.items() if inner != "auto"}
    return value


def work(options: argparse.Namespace) -> None:
    """One rank of one run."""
    import deepspeed
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    deepspeed.init_distributed()
    torch.manual_seed(0)
    config = AutoConfig.for_model(**SIZES[options.size])
    model = AutoModelForCausalLM.from_config(config)
    ds = drop_auto(json.loads((ROOT / f"ds_configs/{options.config}.json").read_text()))
    ds["bf16"] = {"enabled": True}
    ds["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-5}}
    ds |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    engine, *_ = deepspeed.initialize(model=model, config=ds)
    rows = measure(engine, config.vocab_size, Path(options.folder), options.way, options.saves)
    if torch.distributed.get_rank() == 0:
        numel = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
        Path(options.result).write_text(json.dumps({"parameters": numel, "rows": rows}))
    torch.distributed.destroy_process_group()


def measure(engine: Any, entries: int, folder: Path, way: str, saves: int) -> list[dict[str, Any]]:
    """Train and save in turn; what each save has cost."""
    import torch

    from bigft.checkpoint.save import Checkpoints

    ours = Checkpoints(
        engine, folder / "checkpoints", lambda _: None, keep_last=1, timeout_seconds=600
    )
    calls = {
        "stock": lambda number: engine.save_checkpoint(str(folder), tag=f"step{number}"),
        "foreground": lambda number: ours.save(number, {}),
        "background": lambda number: ours.begin(number, {}),
    }

    def step() -> float:
        started = time.perf_counter()
        tokens = torch.randint(0, entries, (1, 256))
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
        torch.distributed.barrier()
        return time.perf_counter() - started

    rows = []
    for number in range(1, saves + 2):
        before = min(step() for _ in range(STEPS_BETWEEN))
        torch.distributed.barrier()
        started = time.perf_counter()
        calls[way](number)
        torch.distributed.barrier()
        stall = time.perf_counter() - started
        after = step()
        ours.wait()
        sync_tree(folder)
        torch.distributed.barrier()
        durable = time.perf_counter() - started
        # The first one also makes folders and reads code.
        if number > 1:
            rows.append({"stall": stall, "slower": after / before, "durable": durable})
        if torch.distributed.get_rank() == 0 and way == "stock":
            shutil.rmtree(folder / f"step{number}")
        torch.distributed.barrier()
    return rows


def run(way: str, options: argparse.Namespace, parent: Path) -> dict[str, Any]:
    folder = parent / way
    folder.mkdir()
    command = [
        __file__, "--folder", folder, "--size", options.size, "--config", options.config,
        "--saves", options.saves,
    ]  # fmt: skip
    found = launch(way, options.ranks, command, parent)
    shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="35m", choices=[size for size in SIZES if SIZES[size]])
    parser.add_argument("--config", default="zero3")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--saves", type=int, default=5, help="that count, per run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parent", type=Path, help="where the temporary folder is made")
    for name in ("--way", "--folder", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work(options)
        return
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=options.parent) as parent:
        for number in range(options.rounds):
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                found = run(way, options, Path(parent))
                rows[way] += found["rows"]
    print(f"{found['parameters']:,} parameters, {options.config}, {options.ranks} ranks")
    medians = {
        way: {key: statistics.median(row[key] for row in found) for key in found[0]}
        for way, found in rows.items()
    }
    for way, median in medians.items():
        ratio = median["stall"] / medians["stock"]["stall"]
        print(
            f"{way}: stall {median['stall']:.3f} s ({ratio:.2f} of stock), durable after"
            f" {median['durable']:.2f} s, step while writing {median['slower']:.2f}x"
        )


if __name__ == "__main__":
    main()
