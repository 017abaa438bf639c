"""Consolidation against DeepSpeed's own converters, on the same checkpoint, side by side.

    python tests/benchmarks/consolidate.py [--layers 22] [--rounds 5] [--cache warm] [--json]

Writes a stage 3 checkpoint of a Llama of 1.1 billion parameters and two ranks with torch.save, in
DeepSpeed's layout, then runs in turn, each time in a fresh process:

    zero_to_fp32.py                   bigft consolidate --dtype float32
    zero_to_torch.py --dtype bf16     bigft consolidate --dtype bfloat16

Round 0 is not counted; its results are compared bit for bit. `warm`: the master weights are in the
page cache before each start; `cold`: nothing of the checkpoint is. Every run starts with no dirty
pages and without the result of an earlier one.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TAG = "global_step7"
WORLD_SIZE = 2
CHUNK = 1 << 24
STOCK = {"fp32": "stock_fp32", "bf16": "stock_bf16"}
WAYS = ("stock_fp32", "bigft_fp32", "stock_bf16", "bigft_bf16")


# --- the checkpoint ------------------------------------------------------------------------------


def list_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a TinyLlama: 22 layers have 1,100,048,384 elements."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, 2048)}
    for number in range(layers):
        layer = f"model.layers.{number}"
        for name, rows in (("q", 2048), ("k", 256), ("v", 256), ("o", 2048)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, 2048)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (5632, 2048)
        shapes[f"{layer}.mlp.up_proj.weight"] = (5632, 2048)
        shapes[f"{layer}.mlp.down_proj.weight"] = (2048, 5632)
        shapes[f"{layer}.input_layernorm.weight"] = (2048,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (2048,)
    return {**shapes, "model.norm.weight": (2048,), "lm_head.weight": (32000, 2048)}


def count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def write_rank(folder: Path, layers: int, rank: int) -> None:
    """Write one rank's two files as DeepSpeed 0.19.8 does: one sub-group, Adam's two moments.

    The values lie in mapped files, so that the writer needs little memory.
    """
    import numpy as np
    import torch

    shapes = list_shapes(layers)
    numel = sum(-(-count(shape) // WORLD_SIZE) for shape in shapes.values())
    tensors = []
    generator = np.random.default_rng(rank)
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        path = folder / f"{kind}.raw"
        with path.open("wb") as file:
            for start in range(0, numel, CHUNK):
                length = min(CHUNK, numel - start)
                values = generator.standard_normal(length, np.float32)
                (values * np.float32(0.02)).tofile(file)
        tensors.append(torch.from_file(str(path), shared=False, size=numel, dtype=torch.float32))
    master, exp_avg, exp_avg_sq = tensors
    state = {0: {"step": 7, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}}
    group = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    optimizer = {
        "zero_stage": 3,
        "loss_scaler": None,
        "dynamic_loss_scale": False,
        "overflow": False,
        "partition_count": WORLD_SIZE,
        "optimizer_state_dict": {"state": state, "param_groups": [group]},
        "fp32_flat_groups": [master],
    }
    config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
    common = {"ds_config": config, "ds_version": "0.19.8"}
    model = {
        "module": OrderedDict((name, torch.empty(0, dtype=torch.bfloat16)) for name in shapes),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, torch.Size(shape)) for name, shape in shapes.items())],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {},
        "lr_scheduler": None,
        "skipped_steps": 0,
        "global_steps": 7,
        "global_samples": 14,
        "dp_world_size": WORLD_SIZE,
        "mp_world_size": 1,
        **common,
    }
    prefix = f"zero_pp_rank_{rank}_mp_rank_00"
    torch.save(model, folder / TAG / f"{prefix}_model_states.pt")
    saved = {"optimizer_state_dict": optimizer, **common}
    torch.save(saved, folder / TAG / f"bf16_{prefix}_optim_states.pt")
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        (folder / f"{kind}.raw").unlink()


def make_checkpoint(folder: Path, layers: int) -> None:
    (folder / TAG).mkdir(parents=True)
    for rank in range(WORLD_SIZE):
        words = [sys.executable, __file__, "--write_rank", str(rank), "--layers", str(layers)]
        subprocess.run([*words, "--folder", str(folder)], check=True)
    (folder / "latest").write_text(TAG)
    os.sync()


# --- one run -------------------------------------------------------------------------------------

_WRAPPER = """
import json, runpy, sys, time
way, script, *words = sys.argv[1:]
started = time.perf_counter()
if way == "stock":
    import torch, deepspeed, deepspeed.utils.zero_to_fp32, huggingface_hub
    sys.path.insert(0, script.rpartition("/")[0])
else:
    import bigft.cli, bigft.commands.consolidate
loaded = time.perf_counter()
sys.argv[1:] = words
if way == "stock":
    sys.argv[0] = script
    runpy.run_path(script, run_name="__main__")
else:
    bigft.cli.main(words)
ended = time.perf_counter()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
facts = {"work": ended - loaded, "imports": loaded - started, "rss": int(peak.split()[1]) * 1024}
sys.stderr.write("\\n" + json.dumps(facts) + "\\n")
"""


def make_command(way: str, checkpoint: Path, out: Path) -> list[str]:
    tool, dtype = way.split("_")
    words = [sys.executable, "-c", _WRAPPER, tool]
    if tool == "bigft":
        name = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
        return [
            *words,
            "",
            "consolidate",
            str(checkpoint),
            f"--output_dir={out}",
            f"--dtype={name}",
        ]
    import importlib.util

    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    utils = Path(spec.origin).parent / "utils"
    if dtype == "fp32":
        return [*words, str(utils / "zero_to_fp32.py"), str(checkpoint), str(out)]
    return [*words, str(utils / "zero_to_torch.py"), str(checkpoint), str(out), "--dtype", "bf16"]


def run(way: str, checkpoint: Path, out: Path) -> dict[str, float]:
    """Run one tool; seconds of the whole process, of its work, and until the result is on disk."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    command = make_command(way, checkpoint, out)
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # Both pipes stay far below their capacity of 64 KiB.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{way} failed:\n{errors[-2000:]}")
    for path in out.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    facts = json.loads(errors.strip().splitlines()[-1])
    return {
        "seconds": seconds,
        "work_seconds": facts["work"],
        "durable_seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss": facts["rss"],
    }


def find_masters(checkpoint: Path) -> list[tuple[Path, int, int]]:
    """Byte ranges of the master weights, which both tools read."""
    sys.path.insert(0, str(ROOT))
    from bigft.checkpoint.stock_layout import read_stock_layout

    tensors = read_stock_layout(checkpoint / TAG).tensors
    return [(s.path, s.offset, 4 * s.numel) for tensor in tensors for s in tensor.slices]


def set_cache(checkpoint: Path, cache: str) -> None:
    os.sync()
    for path in (checkpoint / TAG).iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    if cache == "warm":
        buffer = bytearray(CHUNK)
        for path, offset, length in find_masters(checkpoint):
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                rest = length
                while rest > 0:
                    rest -= file.readinto(memoryview(buffer)[: min(CHUNK, rest)])


# --- equality ------------------------------------------------------------------------------------


def compare(stock: Path, ours: Path) -> bool:
    """Whether both folders hold the same names, shapes, formats and bytes."""
    import torch
    from safetensors import safe_open

    wanted: dict[str, Any] = {}
    for path in sorted(stock.glob("*.bin")):
        wanted |= torch.load(path, mmap=True, weights_only=True)
    names: set[str] = set()
    for path in sorted(ours.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                names.add(name)
                one, other = wanted[name], file.get_tensor(name)
                if one.dtype != other.dtype or one.shape != other.shape:
                    return False
                if not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
                    return False
    return names == set(wanted)


# --- the comparison ------------------------------------------------------------------------------


def run_rounds(
    checkpoint: Path, caches: list[str], rounds: int
) -> Iterator[tuple[str, int, str, dict[str, float]]]:
    for cache in caches:
        for number in range(1, rounds + 1):
            for way in WAYS if number % 2 else WAYS[::-1]:
                set_cache(checkpoint, cache)
                out = checkpoint / "out"
                row = run(way, checkpoint, out)
                shutil.rmtree(out)
                load = os.getloadavg()[0]
                print(
                    f"{cache} {number} {way}: {row['work_seconds']:.2f} s of work,"
                    f" {row['seconds']:.2f} s in all, {row['durable_seconds']:.2f} s until on disk,"
                    f" {row['cpu_seconds']:.1f} s processor, {row['peak_rss'] / 2**20:,.0f} MiB,"
                    f" load {load:.1f}",
                    file=sys.stderr,
                )
                yield cache, number, way, row


def check_equal(checkpoint: Path) -> dict[str, bool]:
    """Round 0: the results of both tools, bit for bit."""
    equal = {}
    for dtype, stock in STOCK.items():
        outs = {way: checkpoint / way for way in (stock, f"bigft_{dtype}")}
        for way, out in outs.items():
            run(way, checkpoint, out)
        equal[dtype] = compare(*outs.values())
        for out in outs.values():
            shutil.rmtree(out)
    return equal


PAIRS = {
    "fp32 against zero_to_fp32.py": ("stock_fp32", "bigft_fp32"),
    "bf16 against zero_to_fp32.py": ("stock_fp32", "bigft_bf16"),
    "bf16 against zero_to_torch.py": ("stock_bf16", "bigft_bf16"),
}


def summarise(rows: list[tuple[str, int, str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians over the rounds of each round's ratio, stock / bigft."""
    found: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for cache, number, way, row in rows:
        found.setdefault((cache, number), {})[way] = row
    summary = []
    for cache in dict.fromkeys(cache for cache, _ in found):
        rounds = [ways for (kind, _), ways in found.items() if kind == cache]
        for title, (stock, ours) in PAIRS.items():
            keys = rounds[0][stock]
            ratios = {
                key: statistics.median(r[stock][key] / r[ours][key] for r in rounds) for key in keys
            }
            medians = {
                way: {key: statistics.median(r[way][key] for r in rounds) for key in keys}
                for way in (stock, ours)
            }
            summary.append({"cache": cache, "pair": title, "ratios": ratios, **medians})
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", choices=("warm", "cold", "both"), default="both")
    parser.add_argument("--folder", type=Path, help="an existing checkpoint of an earlier run")
    parser.add_argument("--parent", type=Path, help="where the temporary folder is made")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint there")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--write_rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_rank is not None:
        write_rank(options.folder, options.layers, options.write_rank)
        return
    parameters = sum(map(count, list_shapes(options.layers).values()))
    folder = options.folder or Path(tempfile.mkdtemp(prefix="consolidate-", dir=options.parent))
    try:
        if not options.folder:
            needed, free = 21 * parameters, shutil.disk_usage(folder).free
            if free < needed:
                raise SystemExit(f"{folder}: {free:,} bytes free, {needed:,} are needed")
            make_checkpoint(folder, options.layers)
        equal = check_equal(folder)
        caches = ["warm", "cold"] if options.cache == "both" else [options.cache]
        rows = list(run_rounds(folder, caches, options.rounds))
    finally:
        if options.keep:
            print(f"the checkpoint is left in {folder}", file=sys.stderr)
        elif not options.folder:
            shutil.rmtree(folder)
    summary = summarise(rows)
    if options.json:
        print(json.dumps({"parameters": parameters, "equal": equal, "summary": summary}))
        return
    print(f"{parameters:,} parameters, {WORLD_SIZE} ranks, medians of {options.rounds} rounds")
    print(f"bit-equal: {equal}")
    for row in summary:
        ratio = row["ratios"]
        print(
            f"{row['cache']} {row['pair']}: work {ratio['work_seconds']:.2f}x,"
            f" process {ratio['seconds']:.2f}x, until on disk {ratio['durable_seconds']:.2f}x,"
            f" processor {ratio['cpu_seconds']:.2f}x, peak memory {ratio['peak_rss']:.1f}x"
        )


if __name__ == "__main__":
    main()
