"""What the loss costs: bigft's summed cross-entropy against torch's on fp32 logits.

    python tests/benchmarks/loss_memory.py [--tokens 1024] [--vocabulary 128256] [--device cuda]
    python tests/benchmarks/loss_memory.py --forms      # smoothing, z-loss and focal loss as well

Both start from the same bf16 logits and run forward and backward, each in fresh processes and in
turn. Memory is what comes on top of the logits themselves: CPU peak RSS, GPU peak allocation.
Ratios are bigft / torch: below 1, bigft takes less.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("torch", "bigft")
FORMS: dict[str, dict[str, float]] = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-4},
    "focal": {"focal_gamma": 2.0},
}


def torch_loss(logits: Any, targets: Any, form: dict[str, float]) -> Any:
    """Compute the loss as it is commonly written, on fp32 logits; only the terms of the form."""
    import torch
    from torch.nn import functional

    logits = logits.float()
    smoothing = form.get("label_smoothing", 0.0)
    if gamma := form.get("focal_gamma"):
        losses = functional.cross_entropy(logits, targets, reduction="none")
        loss = (losses * (1 - torch.exp(-losses)) ** gamma).sum()
    else:
        loss = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    if z_loss := form.get("z_loss"):
        loss = loss + z_loss * torch.logsumexp(logits, -1).square().sum()
    return loss


def measure(
    way: str, form: str, tokens: int, vocabulary: int, device: str, repeats: int
) -> dict[str, Any]:
    """Run one way in this process; seconds are the median after one warm-up."""
    import torch

    sys.path.insert(0, str(ROOT))
    from bigft.tasks.cross_entropy import LossForm, sum_cross_entropy

    on_gpu = device != "cpu"
    generator = torch.Generator(device).manual_seed(0)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator, device=device)
    leaf = torch.empty(tokens, vocabulary, dtype=torch.bfloat16, device=device, requires_grad=True)

    def run() -> tuple[float, float]:
        with torch.no_grad():
            leaf.normal_(generator=generator)
        leaf.grad = None
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        # A view stands for the head's output: the leaf itself may not be overwritten.
        logits = leaf.view_as(leaf)
        if way == "bigft":
            loss = sum_cross_entropy(logits, targets, None, LossForm(**FORMS[form]))
        else:
            loss = torch_loss(logits, targets, FORMS[form])
        (gradient,) = torch.autograd.grad(loss, leaf)
        result = float(loss) + 0 * float(gradient[0, 0])
        return result, time.perf_counter() - started

    def read_peak() -> int:
        if on_gpu:
            return int(torch.cuda.max_memory_allocated())
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no VmHWM")

    with torch.no_grad():
        leaf.normal_(generator=generator)
    tiny = sum_cross_entropy(torch.zeros(2, 8, requires_grad=True).clone(), torch.zeros(2).long())
    tiny.backward()
    before = read_peak()
    if on_gpu:
        before = int(torch.cuda.memory_allocated())
    generator.manual_seed(1)
    results = [run() for _ in range(repeats + 1)]
    return {
        "loss": results[0][0],
        "seconds": statistics.median(seconds for _, seconds in results[1:]),
        "extra_bytes": read_peak() - before,
    }


def compare(form: str, rounds: int) -> dict[str, dict[str, float]]:
    """Run both ways in turn, each in a process of its own; medians over the rounds."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--form", form]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[way].append(json.loads(text.splitlines()[-1]))
    return {
        way: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for way, rows in found.items()
    }


def show(form: str, ways: dict[str, dict[str, float]]) -> None:
    """Print the two ways of one form, and their ratios."""
    for way, row in ways.items():
        print(
            f"{form:>15} {way}: {row['extra_bytes'] / 2**20:8,.0f} MiB on top,"
            f" {row['seconds']:.3f} s, loss {row['loss']:.1f}"
        )
    memory, seconds = (
        ways["bigft"][key] / ways["torch"][key] for key in ("extra_bytes", "seconds")
    )
    print(f"{form:>15} ratio: {memory:.3f} of the memory, {seconds:.3f} of the time")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", action="store_true", help="every form, not the plain one alone")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = (options.tokens, options.vocabulary, options.device, options.repeats)
    if options.way:
        print(json.dumps(measure(options.way, options.form, *shape)))
        return
    logits = options.tokens * options.vocabulary * 2
    if not options.json:
        shown = f"{options.tokens} x {options.vocabulary} bf16 logits, {logits / 2**20:,.0f} MiB"
        print(f"{shown}, {options.device}, medians of {options.rounds}", flush=True)
    found = {}
    for form in FORMS if options.forms else ("plain",):
        found[form] = compare(form, options.rounds)
        if not options.json:
            show(form, found[form])
    if options.json:
        print(json.dumps({"logits_bytes": logits, **found.pop("plain"), **found}))


if __name__ == "__main__":
    main()
