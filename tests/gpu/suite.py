"""bigft on one or more GPUs, row by row: does it train, what does it cost, is the result right.

    bash tests/gpu/run.sh [WHEELS_FOLDER] [--size 1b|small|tiny] [--minutes 9] [--only zero3]

Every row is a real run in processes of its own with a time limit. At the end stands a table of
GPU memory (largest rank), host memory (all ranks), tokens/s and MFU. Leaves with 1 when a row
failed. `--size tiny` also works without a GPU, on DeepSpeed's CPU accelerator.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if importlib.util.find_spec("bigft") is None:
    sys.path.insert(0, str(ROOT))
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192,
    "initializer_range": 0.02, "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    "tiny": {
        **LLAMA, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096,
    },
    "small": {
        **LLAMA, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8192,
    },
    "1b": {  # the shape of Llama 3.2 1B: 1.24B parameters
        **LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    },
}  # fmt: skip
SHAPES = {"tiny": (128, 2, 4), "small": (512, 4, 6), "1b": (2048, 4, 6)}
"""Size -> tokens per sequence, sequences per micro-step, steps."""


@dataclass
class Row:
    """One line of the table."""

    name: str
    status: str = "not run"
    seconds: float = 0.0
    gpu_bytes: int | None = None
    host_bytes: int | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    loss: float | None = None
    note: str = ""
    losses: list[float] = field(default_factory=list)


class AbsentError(Exception):
    """This machine lacks what the row needs; the text says what."""


class FailedError(Exception):
    """The row went wrong."""


@dataclass
class Place:
    """Where and how rows run."""

    folder: Path
    size: str
    ranks: int
    on_cpu: bool
    row_seconds: float
    deadline: float

    def model(self, size: str | None = None) -> str:
        """A folder with only a config.json, so that bigft starts from random weights."""
        folder = self.folder / f"model-{size or self.size}"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(MODELS[size or self.size]))
        return str(folder)

    def spawn(self, name: str, command: list[str], ranks: int | None = None) -> str:
        """Run a command as `ranks` ranks (0: no rank variables); return rank 0's output."""
        limit = min(self.row_seconds, self.deadline - time.monotonic())
        count = self.ranks if ranks is None else ranks
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = self.folder / "logs" / name.replace(" ", "_").replace("/", "_")
        log.mkdir(parents=True, exist_ok=True)
        children: list[Any] = []
        for rank in range(max(count, 1)):
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            paths = [str(ROOT), os.environ.get("PYTHONPATH")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            if self.on_cpu:
                environment["DS_ACCELERATOR"] = "cpu"
                environment.setdefault("OMP_NUM_THREADS", "1")
            if count:
                environment |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                    "LOCAL_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                }  # fmt: skip
            with (
                (log / f"out_{rank}.log").open("a") as out,
                (log / f"err_{rank}.log").open("a") as err,
            ):
                children.append(
                    subprocess.Popen(
                        command, env=environment, stdout=out, stderr=err, start_new_session=True
                    )
                )
        codes = _wait(children, time.monotonic() + max(limit, 1))
        if any(code != 0 for code in codes):
            rank = next(number for number, code in enumerate(codes) if code != 0)
            text = (log / f"err_{rank}.log").read_text(errors="replace")
            lines = [line for line in text.strip().splitlines() if line.strip()]
            if codes[rank] is None:
                last = lines[-1][:120] if lines else ""
                raise FailedError(f"stopped after {limit:.0f} s; last: {last}")
            # bigft's own words first, else the last line of a traceback.
            own = [line for line in lines if line.startswith("bigft: ")]
            shown = (own or lines or ["no output"])[-1][:220]
            raise FailedError(f"exit {codes[rank]}: {shown} ({log})")
        return (log / "out_0.log").read_text(errors="replace")

    def train(self, name: str, config: str, settings: dict[str, Any], **options: Any) -> Path:
        """Run `bigft train`; `saved=True` also commits a checkpoint and exports."""
        saved, size = options.get("saved", False), options.get("size", self.size)
        length, batch, steps = SHAPES[size]
        folder = self.folder / "runs" / options.get("folder", name).replace(" ", "_")
        values = {
            "config": ROOT / "ds_configs" / f"{config}.json", "model": self.model(size),
            "output_dir": folder, "max_length": length, "max_steps": steps,
            "per_device_train_batch_size": batch, "learning_rate": 3e-4 if size == "1b" else 1e-3,
            "data.loading.cache_dir": self.folder / "cache", "data.eval_fraction": 0,
            "monitor.sinks": "[]", **settings,
        }  # fmt: skip
        words = [f"--{key}={value}" for key, value in values.items()]
        if options.get("launcher"):
            launcher = [sys.executable, "-m", "deepspeed.launcher.runner"]
            count = "--num_accelerators" if self.on_cpu else "--num_gpus"
            launcher += [count, str(self.ranks), str(ROOT / "launch_scripts/run.py")]
            self.spawn(name, [*launcher, *words], ranks=0)
        else:
            start = ["-m", "bigft", "train"] if saved else [str(HERE / "unsaved.py")]
            self.spawn(name, [sys.executable, *start, *words])
        return folder


def _wait(children: list[Any], until: float) -> list[int | None]:
    """Wait for all; when one fails or time is up, end the groups that this suite started."""
    try:
        while time.monotonic() < until:
            codes = [child.poll() for child in children]
            if all(code is not None for code in codes) or any(codes):
                break
            time.sleep(0.2)
        if any(child.poll() not in (None, 0) for child in children):
            time.sleep(2)  # The others report their own error.
        return [child.poll() for child in children]
    finally:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGTERM)
        time.sleep(1 if any(child.poll() is None for child in children) else 0)
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def fill(row: Row, folder: Path) -> None:
    """Take numbers from a run's metrics; the first two steps warm up."""
    steps = read_metrics(folder)
    late = steps[2:] or steps
    row.losses = [step["loss"] for step in steps]
    row.loss = row.losses[-1]
    row.gpu_bytes = max(step["device_peak_bytes"] for step in steps)
    row.host_bytes = max(step["host_rss_bytes"] for step in steps)
    row.tokens_per_second = statistics.median(step["tokens_per_second"] for step in late)
    rates = [step["mfu"] for step in late if step["mfu"] is not None]
    row.mfu = statistics.median(rates) if rates else None
    if not all(math.isfinite(loss) for loss in row.losses):
        raise FailedError(f"loss is not finite: {row.losses}")
    if row.losses[-1] >= row.losses[0]:
        raise FailedError(f"loss did not fall: {row.losses[0]:.4f} -> {row.losses[-1]:.4f}")


# --- What rows need ---


def need_compiler(*operators: str) -> None:
    """Raise `AbsentError` with bigft's own reason when DeepSpeed cannot build operators here."""
    from bigft.engine.operators import check_build_tools
    from bigft.errors import LaunchError

    try:
        check_build_tools([f"{name}Builder" for name in operators])
    except LaunchError as error:
        raise AbsentError(str(error)) from None
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.cuda.is_available() and CUDA_HOME is None and "CPUAdam" in operators:
        raise AbsentError("no CUDA toolkit (nvcc); on a GPU host DeepSpeed's CPU Adam links to it")


def need_module(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise AbsentError(f"{name} is not installed")


def need_gpu(place: Place, why: str) -> None:
    if place.on_cpu:
        raise AbsentError(f"no GPU: {why}")


# --- Rows ---

Action = Callable[[Place, Row], None]


def training(config: str, *operators: str, size: str | None = None, **settings: Any) -> Action:
    """A row that trains and reads the numbers."""

    def act(place: Place, row: Row) -> None:
        if operators:
            need_compiler(*operators)
        values = {key.replace("__", "."): value for key, value in settings.items()}
        if values.get("optim") == "adamw_8bit":
            need_module("bitsandbytes")
        if values.get("activation_checkpointing") == "full_cpu_offload":
            need_gpu(place, "activations are in host memory already")
        chosen = place.size if size is None or place.size == "tiny" else size
        fill(row, place.train(row.name, config, values, size=chosen))
        if size is not None:
            row.note = f"model {chosen}"

    return act


def packing(attention: str) -> Action:
    """A row that holds packed against unpacked examples."""

    def act(place: Place, row: Row) -> None:
        if attention == "flash_attention_2":
            need_gpu(place, "FlashAttention runs on GPUs only")
            need_module("flash_attn")
        if attention == "flex_attention":
            need_gpu(place, "FlexAttention has no backward pass on a CPU")
        command = [sys.executable, str(HERE / "checks.py"), "packing", attention]
        out = place.spawn(row.name, command, 0)
        result = json.loads(out.strip().splitlines()[-1])
        row.loss, row.note = result["loss"], result["note"]

    return act


def export(place: Place, row: Row) -> None:
    """Train, save, export; then plain transformers against the engine. One rank reads back."""
    size = "tiny" if place.size == "tiny" else "small"
    folder = place.train(row.name, "zero3", {"data.eval_fraction": 0.02}, saved=True, size=size)
    fill(row, folder)
    if place.ranks > 1:
        row.note = "exported; reload is compared on one rank only"
        return
    out = place.spawn(row.name, [sys.executable, str(HERE / "checks.py"), "reload", str(folder)], 0)
    row.note = f"model {size}: {json.loads(out.strip().splitlines()[-1])['note']}"


def resume(place: Place, row: Row) -> None:
    """Four steps at once = two steps, then two after a restart."""
    size = "tiny" if place.size == "tiny" else "small"
    settings = {"max_steps": 4, "save_steps": 2, "ds.bf16.enabled": "false"}
    folder = place.train(row.name, "zero2", settings, saved=True, size=size, folder="resume")
    fill(row, folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000004")
    shutil.rmtree(folder / "model")
    (folder / "metrics.jsonl").unlink()
    place.train(row.name, "zero2", settings, saved=True, size=size, folder="resume")
    again = read_metrics(folder)
    if (numbers := [step["step"] for step in again]) != [3, 4]:
        raise FailedError(f"steps after the restart: {numbers}, not [3, 4]")
    worst = max(abs(a["loss"] - b) / b for a, b in zip(again, row.losses[2:], strict=True))
    if worst > 1e-4:
        raise FailedError(f"losses after the restart differ by {worst:.1e}")
    row.note = f"model {size}, fp32: losses after the restart differ by {worst:.1e}"


def save_large(place: Place, row: Row) -> None:
    """The whole road once at full size: train, commit, export, verify."""
    if place.size != "1b":
        raise AbsentError("only for --size 1b")
    started = time.monotonic()
    folder = place.train(row.name, "zero3", {}, saved=True)
    fill(row, folder)
    row.note = f"trained, committed and exported in {time.monotonic() - started:.0f} s"


def launcher(place: Place, row: Row) -> None:
    """Start through DeepSpeed's own launcher, as the README says."""
    fill(row, place.train(row.name, "zero3", {}, launcher=True, size="tiny"))
    row.note = "model tiny, through `deepspeed launch_scripts/run.py`"


ROWS: dict[str, Action] = {
    "zero3": training("zero3"),
    "packing sdpa": packing("sdpa"),
    "zero2": training("zero2"),
    "zero1": training("zero1"),
    "stage 0": training("zero1", ds__zero_optimization__stage=0),
    "zero3 keep activations": training("zero3", activation_checkpointing="none"),
    "zero3 activations in host": training("zero3", activation_checkpointing="full_cpu_offload"),
    "zero3 8-bit": training("zero3", optim="adamw_8bit"),
    "zero3 fp32": training("zero3", ds__bf16__enabled="false"),
    "export and reload": export,
    "resume": resume,
    "zero3 offload": training("zero3_offload", "CPUAdam"),
    "zero2 offload": training("zero2_offload", "CPUAdam"),
    "zero3 nvme": training("zero3_nvme", "CPUAdam", "AsyncIO"),
    "packing eager": packing("eager"),
    "packing flash_attention_2": packing("flash_attention_2"),
    "packing flex_attention": packing("flex_attention"),
    "zero3 eager": training("zero3", size="small", model__attention="eager"),
    "zero3 offload 8-bit": training("zero3_offload", size="small", optim="adamw_8bit"),
    "zero2 offload 8-bit": training("zero2_offload", size="small", optim="adamw_8bit"),
    "launcher": launcher,
    "zero3 save and export": save_large,
}  # fmt: skip
"""In the order of what one wants to know first: a short time budget cuts the end."""


def run_row(place: Place, name: str, action: Action) -> Row:
    row = Row(name)
    if place.deadline - time.monotonic() < 15:
        row.note = "out of time (--minutes)"
        return row
    started = time.monotonic()
    try:
        action(place, row)
        row.status = "ok"
    except AbsentError as reason:
        row.status, row.note = "absent", str(reason)
    except FailedError as reason:
        row.status, row.note = "FAILED", str(reason)
    except (OSError, ValueError, KeyError, IndexError) as error:
        row.status, row.note = "FAILED", f"{type(error).__name__}: {error}"
    row.seconds = time.monotonic() - started
    # A later row needs the disk; logs stay.
    shutil.rmtree(place.folder / "runs", ignore_errors=True)
    return row


def check_agreement(rows: list[Row]) -> None:
    """ZeRO's stages compute the same: their losses must not drift apart."""
    wanted = ("stage 0", "zero1", "zero2", "zero3", "zero2 offload", "zero3 offload", "zero3 nvme")
    same = [row for row in rows if row.name in wanted and row.status == "ok" and row.loss]
    if len(same) < 2:
        return
    middle = statistics.median(row.loss for row in same if row.loss)
    for row in same:
        distance = abs((row.loss or 0) - middle) / middle
        if distance > 0.03:
            row.status = "FAILED"
            row.note = f"loss {distance:.1%} away from the median of the stages, {middle:.4f}"


def describe_machine(on_cpu: bool) -> dict[str, Any]:
    versions = {}
    for name in ("torch", "deepspeed", "transformers", "bitsandbytes", "datasets", "flash_attn"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(),
        "device_bytes": None if on_cpu else torch.cuda.get_device_properties(0).total_memory,
        "devices": 0 if on_cpu else torch.cuda.device_count(),
        "cores": os.cpu_count(),
        "host_bytes": int(memory[1]) * 1024 if memory else None,
        "compiler": shutil.which("c++"),
        "nvcc": shutil.which("nvcc"),
        "python": sys.version.split()[0],
        **versions,
    }


def show(rows: list[Row]) -> str:
    def cell(value: float | None, unit: float, digits: int) -> str:
        return "-" if not value else f"{value / unit:,.{digits}f}"

    lines = [
        f"{'row':<27} {'status':<8} {'GPU GiB':>8} {'host GiB':>9} {'tokens/s':>10} {'MFU %':>6}"
        f" {'loss':>8} {'s':>5}  note"
    ]
    for row in rows:
        lines.append(
            f"{row.name:<27} {row.status:<8} {cell(row.gpu_bytes, 2**30, 2):>8}"
            f" {cell(row.host_bytes, 2**30, 2):>9} {cell(row.tokens_per_second, 1, 0):>10}"
            f" {cell(row.mfu, 0.01, 1):>6} {cell(row.loss, 1, 4):>8} {row.seconds:>5.0f}"
            f"  {row.note}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=MODELS, default=None, help="1b with a GPU, else tiny")
    parser.add_argument("--minutes", type=float, default=9.0, help="for the whole suite")
    parser.add_argument("--row_minutes", type=float, default=2.5, help="for one run of a row")
    parser.add_argument("--ranks", type=int, default=0, help="0: every GPU; 1 on a CPU")
    parser.add_argument("--only", default="", help="rows with this in the name; several: a,b")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--out", default=".", help="folder for the JSON")
    options = parser.parse_args()
    started = time.monotonic()
    on_cpu = options.device == "cpu" or not torch.cuda.is_available()
    folder = Path(tempfile.mkdtemp(prefix="bigft-gpu-"))
    place = Place(
        folder=folder, size=options.size or ("tiny" if on_cpu else "1b"),
        ranks=options.ranks or (1 if on_cpu else torch.cuda.device_count()), on_cpu=on_cpu,
        row_seconds=options.row_minutes * 60, deadline=started + options.minutes * 60,
    )  # fmt: skip
    machine = describe_machine(on_cpu)
    print(json.dumps(machine), flush=True)
    chosen = [word for word in options.only.split(",") if word]
    rows = []
    for name, action in ROWS.items():
        if chosen and not any(word in name for word in chosen):
            continue
        row = run_row(place, name, action)
        print(show([row]).splitlines()[1], flush=True)
        rows.append(row)
    check_agreement(rows)
    failed = [row for row in rows if row.status == "FAILED"]
    seconds = time.monotonic() - started
    print(f"\n{place.size} model, {place.ranks} rank(s) on {machine['device']}, {seconds:.0f} s")
    print(show(rows))
    result = {
        "machine": machine, "size": place.size, "ranks": place.ranks, "seconds": seconds,
        "shape": dict(zip(("max_length", "batch", "steps"), SHAPES[place.size], strict=True)),
        "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    file = Path(options.out) / "gpu_suite.json"
    file.write_text(json.dumps(result, indent=1))
    print(f"numbers in {file}" + (f"; logs of failed rows in {folder}/logs" if failed else ""))
    if not failed:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
