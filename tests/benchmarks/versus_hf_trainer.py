"""bigft against the Hugging Face Trainer: the same model, rows and DeepSpeed JSON, in turn.

    python tests/benchmarks/versus_hf_trainer.py --config zero3 --ranks 2

Every round trains once through each of the two, each time in fresh processes, and reads tokens/s
and the peak memory. The medians and their ratios bigft / Trainer are printed at the end.

What is equal: initial weights (one folder), packed rows and their order (exported once from
bigft's Loader), the resolved DeepSpeed JSON, AdamW and its schedule, activation checkpointing, the
attention implementation, threads per rank, one logged row per step to TensorBoard. Neither side
evaluates or saves. The clock runs from the end of the last warm-up step to the end of the last
step; memory is read at that end (CPU: VmHWM, summed over ranks; GPU: max_memory_allocated, the
largest rank). CPU s/step is the processor time of all ranks: on a machine shared with others it is
the steadier measure of speed.

Needs accelerate, which bigft itself does not: `pip install -e '.[bench]'`.
"""

import argparse
import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("hf_trainer", "bigft")
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
}
SIZES: dict[str, dict[str, Any]] = {
    "builtin": {},  # bigft's own 6M model
    "35m": {
        **LLAMA,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "1b": {  # the shape of Llama 3.2 1B
        **LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}


@dataclass
class Job:
    """What one training run of either side needs to know."""

    work: str
    config: str
    model: str
    ranks: int
    batch: int
    accumulation: int
    max_length: int
    steps: int
    warmup: int
    activation_checkpointing: str
    attention: str
    threads: int
    learning_rate: float = 1e-3
    seed: int = 42

    def words(self, config: str, folder: str) -> list[str]:
        """The command line of the bigft run."""
        return [
            "train", "--config", config, "--model", self.model, "--output_dir", folder,
            "--max_length", str(self.max_length), "--max_steps", str(self.steps),
            "--per_device_train_batch_size", str(self.batch),
            "--gradient_accumulation_steps", str(self.accumulation),
            "--learning_rate", str(self.learning_rate), "--seed", str(self.seed),
            "--activation_checkpointing", self.activation_checkpointing,
            "--model.attention", self.attention, "--data.eval_fraction", "0", "--resume", "never",
        ]  # fmt: skip


# --- Once: model, rows and JSON for both sides ---


def prepare(job: Job) -> None:
    """Write `model/`, `rows.pt`, `ds.json` and `tokens.json` into the work folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from bigft.cli import parse
    from bigft.data.build import build_data
    from bigft.data.loading.loader import Share
    from bigft.data.order.cursor import Cursor
    from bigft.data.tokens.builtin import default_cache_dir, load_builtin_tokenizer
    from bigft.models.facts import BUILTIN_CONFIG
    from bigft.run.resolve import resolve

    work = Path(job.work)
    tokenizer = load_builtin_tokenizer(default_cache_dir(None))
    values = dict(SIZES[Path(job.model).name.partition("-")[2]] or BUILTIN_CONFIG)
    torch.manual_seed(job.seed)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config)
    environ = {"WORLD_SIZE": str(job.ranks)}
    shutil.rmtree(job.model, ignore_errors=True)
    Path(job.model).mkdir(parents=True)
    model.config.save_pretrained(job.model)
    resolved = resolve(parse(job.words(job.config, str(work / "unused"))), environ)
    dtype = torch.bfloat16 if resolved.ds.get("bf16", {}).get("enabled") else torch.float32
    model.to(dtype).save_pretrained(job.model)
    tokenizer.save_pretrained(job.model)

    data = build_data(
        resolved.run.data,
        tokenizer=tokenizer,
        share=Share(1, gradient_accumulation_steps=job.ranks * job.batch * job.accumulation),
        local_rank=0,
        eval_batch_size=1,
        seed=job.seed,
        barrier=lambda: None,
    )
    rows, tokens = [], []
    steps = data.train.steps_from(Cursor())
    for _ in range(job.steps):
        step = next(steps)
        tokens.append(step.tokens)
        rows += [
            {"input_ids": b.input_ids[0], "labels": b.labels[0], "position_ids": b.position_ids[0]}
            for b in step.micro_batches
        ]
    torch.save(rows, work / "rows.pt")
    (work / "tokens.json").write_text(json.dumps(tokens))
    (work / "ds.json").write_text(json.dumps(resolved.ds, indent=1))


# --- One run of one side, on every rank ---


class Watch:
    """Reads the clock after the warm-up, and clock and memory after the last step."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.seconds = self.cpu_seconds = 0.0
        self.peak = 0

    def step_done(self, step: int) -> None:
        import torch

        # Trainer logs once more at its end, with the last step's number.
        if step not in (self.job.warmup, self.job.steps) or self.peak:
            return
        on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
        if on_gpu:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.seconds
        self.cpu_seconds = time.process_time() - self.cpu_seconds
        if step == self.job.steps:
            self.peak = self.gpu_peak if on_gpu else _read_peak_rss()

    def started(self) -> None:
        """Count device memory over the whole life of the engine, whoever resets the counter."""
        import torch

        self.gpu_peak = 0
        torch_read = torch.accelerator.max_memory_allocated

        def read(*args: Any) -> int:
            value = int(torch_read(*args))
            self.gpu_peak = max(self.gpu_peak, value)
            return value

        # bigft reads and resets the peak at every step; Trainer never does.
        torch.accelerator.max_memory_allocated = read


def _read_peak_rss() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def run_bigft(job: Job, folder: Path, watch: Watch) -> list[float]:
    """Train through bigft's own straight line; the last step's checkpoint is left out."""
    from bigft.cli import parse
    from bigft.distributed.world import close_world, open_world
    from bigft.log import output_to_log
    from bigft.run.resolve import resolve, with_output_dir

    request = parse(job.words(str(Path(job.work) / "ds.json"), str(folder)))
    resolved = with_output_dir(resolve(request, os.environ), str(folder))
    world = open_world()
    log = folder / "log" / f"rank_{world.rank}.log"
    with output_to_log(log, is_rank_zero=world.is_rank_zero) as console:
        from bigft.commands import training

        class InsteadOfSaver:
            def __init__(self, *_: Any) -> None:
                pass

            def started(self, *_: Any) -> None:
                watch.started()

            def stepped(self, state: Any, report: Any) -> None:
                watch.step_done(state.step)

            def finished(self, state: Any) -> None:
                pass

        training.Saver = InsteadOfSaver  # type: ignore[assignment,misc]
        training._must_exist = lambda checkpoint: folder
        training.train(resolved, folder, world, console)
    close_world()
    lines = (folder / "metrics.jsonl").read_text().splitlines() if world.is_rank_zero else []
    return [json.loads(line)["loss"] for line in lines]


def run_hf_trainer(job: Job, folder: Path, watch: Watch) -> list[float]:
    """Train as a user of the Trainer would: arguments, model, rows, a five-line collator."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    ds = json.loads((Path(job.work) / "ds.json").read_text())
    bf16 = bool(ds.get("bf16", {}).get("enabled"))
    recomputes = job.activation_checkpointing == "full"
    name = "activation" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient"
    checkpointing = {
        f"{name}_checkpointing": recomputes,
        f"{name}_checkpointing_kwargs": {"use_reentrant": False} if recomputes else None,
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        deepspeed=ds,
        use_cpu=on_cpu,
        bf16=bf16,
        max_steps=job.steps,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.accumulation,
        learning_rate=job.learning_rate,
        lr_scheduler_type="linear",
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        seed=job.seed,
        logging_steps=1,
        report_to=["tensorboard"],
        save_strategy="no",
        remove_unused_columns=False,
        **checkpointing,
    )
    if on_cpu:
        # With use_cpu transformers opens torch's group, but DeepSpeed has not adopted it yet.
        import deepspeed

        from bigft.engine.communication import unlink_shared_buffers

        arguments.device  # noqa: B018 - opens the group
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        unlink_shared_buffers()
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        attn_implementation=job.attention,
        use_cache=False,
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": 0, "labels": -100, "position_ids": 0}

        def padded(row: dict[str, Any], key: str) -> Any:
            return torch.nn.functional.pad(row[key], (0, width - len(row[key])), value=fill[key])

        return {key: torch.stack([padded(row, key) for row in rows]) for key in fill}

    class Callback(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.started()

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # After the loss was read and the loggers have written: where bigft's hook stands too.
            watch.step_done(state.global_step)

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    rows = torch.load(Path(job.work) / "rows.pt", weights_only=True)
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collate,
        callbacks=[Callback()],
    )
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DeepSpeedEngine", "DeepSpeed did not run"
    if not on_cpu:
        watch.gpu_peak = watch.peak = torch.cuda.max_memory_allocated()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return losses


def run_rank(side: str, job: Job, folder: Path) -> None:
    import torch

    torch.set_num_threads(job.threads)
    rank = int(os.environ["RANK"])
    watch = Watch(job)
    losses = (run_bigft if side == "bigft" else run_hf_trainer)(job, folder, watch)
    result = {
        "seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds, "peak_bytes": watch.peak,
        "losses": losses,
    }  # fmt: skip
    (folder / f"result_{rank}.json").write_text(json.dumps(result))


# --- The parent ---


def start(words: list[str], job: Job, log: Path, ranks: int, *, on_cpu: bool) -> None:
    """Run this file `ranks` times as the ranks of one group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, *words, "--job", json.dumps(asdict(job))]
    children = []
    for rank in range(ranks):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "LOCAL_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(job.threads),
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }  # fmt: skip
        if on_cpu:
            environment["DS_ACCELERATOR"] = "cpu"
        with (log / f"output_{rank}.log").open("w") as file:
            children.append(
                subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            )
    try:
        failed = [rank for rank, child in enumerate(children) if child.wait(1800)]
    finally:
        for child in children:
            child.kill()
    if failed:
        tail = (log / f"output_{failed[0]}.log").read_text(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(words[:2])} failed on rank {failed[0]}:\n{tail}")


def measure(job: Job, rounds: int, *, on_cpu: bool, say: Any) -> dict[str, Any]:
    """Run both sides in turn; return every round's numbers, the medians and the ratios."""
    work = Path(job.work)
    tokens = sum(json.loads((work / "tokens.json").read_text())[job.warmup :])
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(rounds):
        # The order turns round by round: neither side always follows the other.
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            folder = work / f"{side}_{number}"
            start(["--side", side, "--folder", str(folder)], job, folder, job.ranks, on_cpu=on_cpu)
            files = [folder / f"result_{rank}.json" for rank in range(job.ranks)]
            ranks = [json.loads(file.read_text()) for file in files]
            peaks = [rank["peak_bytes"] for rank in ranks]
            losses = ranks[0]["losses"]
            row = {
                "tokens_per_second": tokens / ranks[0]["seconds"],
                "peak_bytes": sum(peaks) if on_cpu else max(peaks),
                "cpu_seconds_per_step": sum(rank["cpu_seconds"] for rank in ranks)
                / (job.steps - job.warmup),
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "losses": losses,
            }
            found[side].append(row)
            say(
                f"round {number + 1} {side:>10}: {row['tokens_per_second']:9,.0f} tokens/s,"
                f" {row['cpu_seconds_per_step']:.3f} CPU s/step,"
                f" peak {row['peak_bytes'] / 2**20:8,.0f} MiB, loss {row['first_loss']:.4f} ->"
                f" {row['last_loss']:.4f}"
            )
    medians = {
        side: {
            key: statistics.median(row[key] for row in rows)
            for key in ("tokens_per_second", "cpu_seconds_per_step", "peak_bytes", "last_loss")
        }
        for side, rows in found.items()
    }
    ours, theirs = medians["bigft"], medians["hf_trainer"]
    pairs = zip(found["bigft"][0]["losses"], found["hf_trainer"][0]["losses"], strict=True)
    return {
        "medians": medians,
        "speed_ratio": ours["tokens_per_second"] / theirs["tokens_per_second"],
        "cpu_ratio": ours["cpu_seconds_per_step"] / theirs["cpu_seconds_per_step"],
        "memory_ratio": ours["peak_bytes"] / theirs["peak_bytes"],
        "largest_loss_difference": max(abs(a - b) / b for a, b in pairs),
        "rounds": found,
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="zero3", help="name in ds_configs/, or a path")
    parser.add_argument("--size", choices=SIZES, default="builtin")
    parser.add_argument("--fp32", action="store_true", help="train in fp32 instead of bf16")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1, help="sequences per rank and micro-step")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup", type=int, default=4, help="steps before the clock starts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="per rank; 0: cores / ranks")
    parser.add_argument("--activation_checkpointing", choices=("none", "full"), default="full")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--work", help="folder to keep; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    for hidden in ("--side", "--folder", "--job", "--prepare"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def build_job(options: argparse.Namespace, work: Path) -> Job:
    config = options.config
    if not Path(config).is_file():
        config = str(ROOT / "ds_configs" / f"{config}.json")
    if options.fp32:
        values = json.loads(Path(config).read_text())
        config = str(work / "fp32.json")
        Path(config).write_text(json.dumps({**values, "bf16": {"enabled": False}}))
    return Job(
        work=str(work), config=config, model=str(work / f"model-{options.size}"),
        ranks=options.ranks, batch=options.batch, accumulation=options.accumulation,
        max_length=options.max_length, steps=options.steps, warmup=options.warmup,
        activation_checkpointing=options.activation_checkpointing, attention=options.attention,
        threads=options.threads or max(1, (os.cpu_count() or 1) // options.ranks),
    )  # fmt: skip


def render(result: dict[str, Any], options: argparse.Namespace) -> str:
    keys = ("tokens_per_second", "cpu_seconds_per_step", "peak_bytes", "last_loss")
    lines = [
        f"{options.size}, {Path(options.config).stem}, {result['ranks']} rank(s) x"
        f" {result['threads']} thread(s), {options.max_length} tokens x {options.batch} x"
        f" {options.accumulation}, medians of {options.rounds} on {result['device']}",
        f"{'':>12} {'tokens/s':>10} {'CPU s/step':>10} {'peak MiB':>10} {'last loss':>10}",
    ]
    for side in SIDES:
        rate, cpu, peak, loss = (result["medians"][side][key] for key in keys)
        lines.append(f"{side:>12} {rate:>10,.0f} {cpu:>10.3f} {peak / 2**20:>10,.0f} {loss:>10.4f}")
    lines.append(
        f"{'ratio':>12} {result['speed_ratio']:>10.3f} {result['cpu_ratio']:>10.3f}"
        f" {result['memory_ratio']:>10.3f}   losses differ by at most"
        f" {result['largest_loss_difference']:.1e}"
    )
    return "\n".join(lines)


def main() -> None:
    options = parse_options()
    if options.job:
        job = Job(**json.loads(options.job))
        if options.prepare:
            prepare(job)
        else:
            run_rank(options.side, job, Path(options.folder))
        return
    if importlib.util.find_spec("accelerate") is None:
        raise SystemExit(
            "this benchmark runs the Hugging Face Trainer, which needs accelerate: pip install -e"
            " '.[bench]', or put a folder with it on PYTHONPATH"
        )
    import torch

    on_cpu = options.device == "cpu" or not torch.cuda.is_available()
    work = Path(options.work or tempfile.mkdtemp(prefix="bigft-versus-")).absolute()
    work.mkdir(parents=True, exist_ok=True)
    job = build_job(options, work)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        start(["--prepare", "yes"], job, work / "prepare", 1, on_cpu=on_cpu)
        result = measure(job, options.rounds, on_cpu=on_cpu, say=say)
    finally:
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)
    result = {"device": "cpu" if on_cpu else torch.cuda.get_device_name(), **asdict(job), **result}
    print(json.dumps(result) if options.json else render(result, options))


if __name__ == "__main__":
    main()
