"""Seconds per step: the planner's forecast beside what real runs take, on the CPUs of this host.

    python tests/benchmarks/step_time.py [--steps 8] [--cases 5m-stage3 35m-offload-8bit]
    python tests/benchmarks/step_time.py --clock processor     # others use this machine too

The rates of this machine are measured once (typical ones stand in for them with
`--clock processor`), layers of each model right before its run. Each run is
the real command on a model with random weights, one thread per rank; the first two steps warm up.
`counted` is the forecast from rates alone, `calibrated` that with measured layers; a ratio is
forecast / measured. With `--clock processor` the seconds that were computed count, of the layers
and of the runs: who waits for a core, a disk or another rank does not. `load` is how many
processes wanted to run.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from bigft.planner.hardware import read_machine, use_known  # noqa: E402
from bigft.planner.known import KnownRates  # noqa: E402
from bigft.planner.machine import Machine  # noqa: E402
from bigft.planner.time import StepTime, time_step  # noqa: E402
from bigft.planner.work import Layout, Update, build_work  # noqa: E402
from bigft.probe.measure import probe  # noqa: E402
from bigft.probe.slice import SliceJob, measure_slice  # noqa: E402
from tests.support.plan_models import make_llama  # noqa: E402

SIZES = {
    "5m": {"hidden": 256, "inner": 704, "layers": 4, "heads": 4, "vocabulary": 4096},
    "35m": {"hidden": 512, "inner": 1408, "layers": 9, "heads": 8, "vocabulary": 4096},
    "150m": {"hidden": 1024, "inner": 2816, "layers": 11, "heads": 16, "vocabulary": 4096},
}

STOCK = Update("adamw", "AdamW", 8.0)
OURS = Update("adamw", "HostAdamW", 8.0, 4.0, 10.0)
OURS_8BIT = Update("adamw_8bit", "HostAdamW", 2.03, 4.0, 4.03)


@dataclass(frozen=True)
class Case:
    """One run."""

    size: str
    config: str
    update: Update
    layout: Layout


def _lay_out(stage: int, ranks: int = 1, place: str = "none", **changes: object) -> Layout:
    fields = {"rows": 2, "length": 256, "offload_optimizer": place, "checkpointing": "full"}
    fields |= {"offload_param": place if stage == 3 else "none", "is_packed": True}
    return Layout(stage=stage, ranks=ranks, **{**fields, **changes})


CASES = {
    "5m-stage1": Case("5m", "zero1", STOCK, _lay_out(1, rows=4)),
    "5m-stage3": Case("5m", "zero3", STOCK, _lay_out(3, rows=4)),
    "5m-stage3-2-ranks": Case("5m", "zero3", STOCK, _lay_out(3, 2, rows=2)),
    "35m-stage2-offload": Case("35m", "zero2_offload", OURS, _lay_out(2, place="cpu")),
    "35m-offload-8bit": Case("35m", "zero3_offload", OURS_8BIT, _lay_out(3, place="cpu")),
    "35m-offload-2-ranks": Case("35m", "zero3_offload", OURS, _lay_out(3, 2, "cpu", rows=1)),
    "35m-accumulated": Case(
        "35m",
        "zero3_offload",
        OURS,
        _lay_out(3, place="cpu", micro_batches=3, checkpointing="none"),
    ),
    "35m-nvme": Case(
        "35m", "zero3_nvme", OURS_8BIT, _lay_out(3, place="nvme", offload_param="cpu")
    ),
    "150m-offload-8bit": Case("150m", "zero3_offload", OURS_8BIT, _lay_out(3, place="cpu")),
}


def make_config(size: str) -> dict[str, object]:
    """The config.json of a size."""
    sizes = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["inner"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["heads"],
        "vocab_size": sizes["vocabulary"],
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    }


def run(case: Case, folder: Path, steps: int, clock: str) -> float:
    """Train; seconds of a step of one rank, once warm: of the wall the median, else the mean."""
    layout, model, output = case.layout, folder / "model", folder / "run"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(make_config(case.size)))
    launcher = [sys.executable, "-m", "bigft", "train"]
    if layout.ranks > 1:
        launcher = ["deepspeed", "--num_gpus", str(layout.ranks), "launch_scripts/run.py"]
    command = [*launcher, "--config", f"ds_configs/{case.config}.json", "--model", str(model)]
    command += ["--model.tokenizer", "builtin", "--output_dir", str(output)]
    command += ["--optim", case.update.name, "--max_steps", str(steps)]
    command += ["--max_length", str(layout.length), "--save_steps", "0"]
    command += ["--per_device_train_batch_size", str(layout.rows)]
    command += ["--gradient_accumulation_steps", str(layout.micro_batches)]
    command += ["--activation_checkpointing", layout.checkpointing]
    command += ["--data.eval_fraction", "0", "--evaluation.eval_on_start", "false"]
    if "nvme" in case.config:
        swap = folder / "swap"
        swap.mkdir()
        command += ["--ds.zero_optimization.offload_optimizer.nvme_path", str(swap)]
        # DeepSpeed 0.19.8 runs out of swap buffers for so small a model's weights.
        command += ["--ds.zero_optimization.offload_param.device", layout.offload_param]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        "LOCAL_SIZE": str(layout.ranks),
    }
    log = folder / "said.txt"
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=environment)
        stamps = watch(process, output / "metrics.jsonl")
    if process.returncode:
        raise SystemExit(f"{command} failed:\n{log.read_text()[-4000:]}")
    if clock == "processor":
        return (stamps[-1] - stamps[1]) / (len(stamps) - 2) / layout.ranks
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["step_seconds"] for row in rows if "step_seconds" in row]
    return statistics.median(seconds[2:])


def watch(process: "subprocess.Popen[bytes]", metrics: Path) -> list[float]:
    """Seconds of processor that all ranks had used when each step was written."""
    stamps: list[float] = []
    while process.poll() is None:
        text = metrics.read_text() if metrics.is_file() else ""
        steps = sum("step_seconds" in line for line in text.splitlines())
        if steps > len(stamps):
            used = 0.0
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                for one in [parent, *parent.children(recursive=True)]:
                    times = one.cpu_times()
                    used += times.user + times.system
            stamps += [used] * (steps - len(stamps))
        time.sleep(0.02)
    return stamps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--json", action="store_true", help="an object per run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        place = Path(parent)
        rates = {} if options.clock == "processor" else measure(place)
        if not options.json:
            print("| run | measured s | calibrated | ratio | counted | ratio | parts | load |")
            print("|---|--:|--:|--:|--:|--:|---|--:|")
        for name in options.cases:
            case = CASES[name]
            layout = case.layout
            machine = read_machine(output_dir=place, ranks=layout.ranks)
            machine = use_known(machine, KnownRates(rates), place, "bf16")
            machine = leave_cores(machine, layout.ranks)
            job = SliceJob(
                make_config(case.size),
                "causal_lm",
                layout.length,
                layout.rows,
                layout.checkpointing,
                parameters=make_llama(**SIZES[case.size]).parameters,
                clock=options.clock,
            )
            layers = measure_slice(job)
            seconds = run(case, place / name, options.steps, options.clock)
            load = os.getloadavg()[0]
            shutil.rmtree(place / name)
            work = build_work(make_llama(**SIZES[case.size]), layout, case.update, machine)
            close = time_step(work, machine, layers)
            if options.json:
                print(json.dumps({"run": name, "seconds": seconds, **vars(close)}), flush=True)
            else:
                show(name, seconds, close, time_step(work, machine), load)


def measure(folder: Path) -> dict[str, float]:
    """Rates of this machine."""
    cache = folder / "rates.json"
    found = probe(output_dir=folder, cache=cache, report=lambda text: print(text, file=sys.stderr))
    return dict(found.known.rates)


def leave_cores(machine: Machine, cores: int) -> Machine:
    """The same machine with fewer cores."""
    share, rates = cores / machine.cores, machine.rates
    slower = {
        name: replace(rate, per_second=rate.per_second * share)
        for name in ("matrix", "device_memory", "host_memory", "pcie")
        for rate in [getattr(rates, name)]
    }
    steps = {
        name: replace(rate, per_second=rate.per_second * share)
        for name, rate in rates.host_steps.items()
    }
    return replace(machine, cores=cores, rates=replace(rates, host_steps=steps, **slower))


def show(name: str, seconds: float, close: StepTime, far: StepTime, load: float) -> None:
    """Print a row of the table."""
    parts = ("compute", "pcie", "host_optimizer", "nvme", "network", "overhead")
    shown = ", ".join(f"{part} {getattr(close, part):.2f}" for part in parts)
    print(
        f"| {name} | {seconds:.2f} | {close.total:.2f} | {close.total / seconds:.2f}"
        f" | {far.total:.2f} | {far.total / seconds:.2f} | {shown} | {load:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
