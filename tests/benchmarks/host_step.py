"""One optimizer step in host memory: bigft's native step beside DeepSpeed's and bitsandbytes'.

    python tests/benchmarks/host_step.py [--parameters 50e6] [--threads 2] [--rounds 7]

`bare`: DeepSpeedCPUAdam's update alone, fp32 gradients, masters and moments. `phase`: what ZeRO
stage 3 does around it as well, unscaling the gradient and writing the bf16 weights. bigft reads
bf16 gradients, unscales, updates and leaves bf16 weights behind in one pass; so its rows stand
against both. The ways take turns; medians of the rounds are printed, and the ratio is the median of
each round's ratio. Bytes are those that have to be read and written once; the bandwidth beside them
is what a copy of the same size reaches here.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any


def make_ours(
    size: int, weights: str, coded: bool, threads: int
) -> tuple[Callable[[int], None], float]:
    """bigft's step over one part, and its bytes per parameter."""
    import numpy as np

    from bigft.optim.native.binding import PART, load_native, number_blocks, pack_groups
    from bigft.optim.reference import Moments, Rates

    rng = np.random.default_rng(0)
    native = load_native()
    drawn = rng.standard_normal(size, np.float32) * np.float32(1e-3)
    gradients = (drawn.view(np.uint32) >> 16).astype(np.uint16)
    part = np.zeros(1, PART)
    keep: list[Any] = [gradients]
    part["size"], part["gradients"] = size, gradients.ctypes.data
    numbers = (rng.standard_normal(size, np.float32) * 0.02).astype(np.float32)
    if weights == "fp32":
        copy = np.zeros(size, np.uint16)
        keep += [numbers, copy]
        part["weights"], part["copy"] = numbers.ctypes.data, copy.ctypes.data
        moved = 4 + 4 + 2
    else:
        upper = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        rest = np.zeros(size, np.int16 if weights == "split_16" else np.int8)
        keep += [upper, rest]
        part["weights"], part["rest"] = upper.ctypes.data, rest.ctypes.data
        moved = 2 * (2 + rest.itemsize)
    if coded:
        moments = Moments.zeros(size)
        keep.append(moments)
        part["moment1"], part["moment2"] = moments.first.ctypes.data, moments.second.ctypes.data
        part["scale1"] = moments.first_scale.ctypes.data
        part["scale2"] = moments.second_scale.ctypes.data
        moved += 4 + 4 * 4 / 256
    else:
        pair = np.zeros((2, size), np.float32)
        keep.append(pair)
        part["moment1"], part["moment2"] = pair[0].ctypes.data, pair[1].ctypes.data
        moved += 16
    number_blocks(part)

    def step(number: int, _keep: Any = keep) -> None:
        rates = pack_groups([Rates(1e-4, (0.9, 0.999), 1e-8, 0.01, number)])
        native.step(part, rates, weights=weights, gradients="bfloat16", scale=0.5, threads=threads)

    return step, moved + 2


def make_deepspeed(size: int, phase: bool) -> tuple[Callable[[int], None], float]:
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    master = torch.randn(size) * 0.02
    master.grad = torch.randn(size) * 1e-3
    low = torch.empty(size, dtype=torch.bfloat16)
    optimizer = DeepSpeedCPUAdam([master], lr=1e-4, weight_decay=0.01, adamw_mode=True)

    def step(number: int) -> None:
        if phase:
            master.grad.mul_(0.9999)
        optimizer.step()
        if phase:
            low.copy_(master.data)

    return step, 16 + 12 + (8 + 6 if phase else 0)


def make_bitsandbytes(size: int) -> tuple[Callable[[int], None], float]:
    import torch
    from bitsandbytes.optim import AdamW8bit

    weights = torch.randn(size) * 0.02
    weights.grad = torch.randn(size) * 1e-3
    optimizer = AdamW8bit([weights], lr=1e-4, weight_decay=0.01)
    return lambda number: optimizer.step(), 4 + 8 + 4


def measure_bandwidth(size: int) -> float:
    """Bytes per second, read and written, of a copy."""
    import torch

    source = torch.ones(size * 2)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    # The target's lines are read before they are written.
    return 3 * source.numel() * 4 / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=50e6)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip", default="", help="ways to leave out, separated by commas")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    torch.set_num_threads(options.threads)
    size, threads = int(options.parameters), options.threads
    makers: dict[str, Callable[[], tuple[Callable[[int], None], float]]] = {
        "DeepSpeedCPUAdam, bare": lambda: make_deepspeed(size, phase=False),
        "DeepSpeedCPUAdam, phase": lambda: make_deepspeed(size, phase=True),
        "bitsandbytes 8-bit": lambda: make_bitsandbytes(size // 8),
        "bigft 8-bit, split 16": lambda: make_ours(size, "split_16", True, threads),
        "bigft 8-bit, split 8": lambda: make_ours(size, "split_8", True, threads),
        "bigft 8-bit, fp32 master": lambda: make_ours(size, "fp32", True, threads),
        "bigft fp32, split 16": lambda: make_ours(size, "split_16", False, threads),
        "bigft fp32, fp32 master": lambda: make_ours(size, "fp32", False, threads),
    }
    left_out = options.skip.split(",") if options.skip else []
    ways = {name: make() for name, make in makers.items() if name not in left_out}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, options.rounds + 2):
        for name, (step, _) in ways.items():
            count = size // 8 if name.startswith("bitsandbytes") else size
            started = time.perf_counter()
            step(number)
            if number > 1:
                rates[name].append(count / (time.perf_counter() - started))
    bandwidth = measure_bandwidth(size)
    bases = [name for name in ways if not name.startswith("bigft")]
    rows = {}
    for name, (_, moved) in ways.items():
        rate = statistics.median(rates[name])
        ratios = {
            base: statistics.median(a / b for a, b in zip(rates[name], rates[base], strict=True))
            for base in bases
        }
        rows[name] = {"rate": rate, "bytes": moved, "share": rate * moved / bandwidth, **ratios}
    if options.json:
        print(
            json.dumps(
                {"parameters": size, "threads": threads, "bandwidth": bandwidth, "ways": rows}
            )
        )
        return
    print(f"{size:,} parameters, {threads} threads, a copy moves {bandwidth / 1e9:.1f} GB/s")
    for name, row in rows.items():
        beside = ", ".join(f"{row[base]:.2f} of {base}" for base in bases if base != name)
        print(
            f"{name}: {row['rate'] / 1e6:,.0f} M/s, {row['bytes']:.2f} bytes,"
            f" {row['share']:.0%} of the bandwidth; {beside}"
        )


if __name__ == "__main__":
    main()
