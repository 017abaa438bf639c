"""What the data path costs: tokenising, packing, starting, memory, and what packing is worth.

    python tests/benchmarks/data.py                                  # everything
    python tests/benchmarks/data.py --throughput --megabytes 100     # one part of it
    python tests/benchmarks/data.py --memory --gigabytes 1

The texts are words drawn from the documentation of Python's standard library, the tokenizer is the
built-in one. Everything that is measured runs in a fresh process; imports, tokenizer and first use
are not counted. MB are of the texts that the tokenizer gets, 10^6 bytes each.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PARTS = ("throughput", "utilisation", "start", "memory", "training")
KINDS = ("text", "chat")
MAX_LENGTH = 1024
# Packing, order, and what they are called.
WAYS = {
    "packed": ("best_fit", "shuffled", "packed"),
    "sorted": ("none", "by_length", "padded, similar lengths together (--packing none)"),
    "random": ("none", "shuffled", "padded, in random order"),
}
# What a bare loop over texts would take at once; the library's threads share them.
BARE_TEXTS = 1000


# Generated data.


class Writer:
    """Writes what looks like English about Python: words and line breaks as often as there."""

    def __init__(self, seed: int) -> None:
        from bigft.data.sources.corpus import read_corpus

        self.chance = random.Random(seed)
        texts: list[str] = []
        for _, record in read_corpus():
            messages = record.get("messages", ())
            texts += [record["text"]] if "text" in record else [m["content"] for m in messages]
        words = re.findall(r"\s*\S+", "\n".join(texts))
        # A single space but at line ends; indentation would fill a third of the text.
        self.words = [("\n" if "\n" in word else " ") + word.strip() for word in words]

    def write(self, length: int) -> str:
        """Write about so many characters."""
        words = self.chance.choices(self.words, k=1 + length // 7)
        return "".join(words).strip()

    def record(self, kind: str) -> dict[str, Any]:
        """Write one row: a text of 0.5 to 4 kB, a short chat, or a prompt of any length."""
        draw = self.chance
        if kind == "text":
            return {"text": self.write(draw.randint(500, 4000))}
        if kind == "mixed":  # Log-normal: most rows are short, a few reach 512 tokens.
            length = int(min(draw.lognormvariate(6.0, 0.9), 2000))
            return {"prompt": self.write(length // 3), "response": self.write(length)}
        turns = [
            {"role": role, "content": self.write(draw.randint(20, longest))}
            for _ in range(draw.randint(1, 3))
            for role, longest in (("user", 120), ("assistant", 400))
        ]
        return {"messages": turns}


def write_rows(path: Path, kind: str, size_bytes: int) -> None:
    writer = Writer(seed=0)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size_bytes:
            written += file.write(json.dumps(writer.record(kind)) + "\n")


# Work in fresh processes. Each prints one JSON object.


def build_section(path: Path, **changes: Any) -> Any:
    from bigft.data.section import DataSection, LoadingSection

    loading = LoadingSection(
        cache_dir=str(path.parent / "cache"), num_proc=changes.pop("num_proc", None)
    )
    settings = {"train": str(path), "max_length": MAX_LENGTH, "loading": loading, **changes}
    return DataSection(**settings)


def load_tokenizer(path: Path) -> Any:
    from bigft.data.tokens.builtin import load_builtin_tokenizer

    tokenizer = load_builtin_tokenizer(path.parent / "tokenizer")
    tokenizer.backend_tokenizer.encode_batch(["Some words"])
    return tokenizer


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Take seconds, and processor seconds of this process and of those it waited for."""

    def read_cpu() -> float:
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    found: dict[str, float] = {}
    cpu, wall = read_cpu(), time.perf_counter()
    yield found
    found |= {"seconds": time.perf_counter() - wall, "cpu_seconds": read_cpu() - cpu}


def render(path: Path, tokenizer: Any) -> list[str]:
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        record["text"]
        if "text" in record
        else tokenizer.apply_chat_template(record["messages"], tokenize=False)
        for record in records
    ]


def run_bare(path: Path, _: argparse.Namespace) -> dict[str, Any]:
    """Only the library: texts in memory to tokens, none of which is kept."""
    tokenizer = load_tokenizer(path)
    texts = render(path, tokenizer)
    backend, tokens = tokenizer.backend_tokenizer, 0
    with stopwatch() as taken:
        for start in range(0, len(texts), BARE_TEXTS):
            encoded = backend.encode_batch(texts[start : start + BARE_TEXTS])
            tokens += sum(len(one.ids) for one in encoded)
    return {**taken, "tokens": tokens, "bytes": sum(len(text.encode()) for text in texts)}


def open_and_pack(
    path: Path, options: argparse.Namespace, **changes: Any
) -> tuple[dict[str, float], Any, Any, Any]:
    """Read, parse, recognise, render, tokenise, write, choose, pack."""
    from bigft.data.order.select import open_selection
    from bigft.data.sources.find import find_sources
    from bigft.data.store.prepare import open_store
    from bigft.data.store.rows import Rows

    section = build_section(path, num_proc=options.num_proc, **changes)
    tokenizer = load_tokenizer(path)
    with stopwatch() as taken:
        (part,) = find_sources(section.train)
        rows = Rows([open_store(part, section, tokenizer)])
        selection = open_selection(rows, rows, [None], section, seed=0)
    return taken, section, rows, selection


def run_bigft(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    from bigft.data.order.select import describe_selection

    taken, section, rows, selection = open_and_pack(path, options)
    info = describe_selection(selection, selection.train, rows, section.max_length)
    return {
        **taken,
        "tokens": sum(store.info.tokens for store in rows.stores),
        "utilisation": info["packing_utilisation"],
    }


def build(tokenizer: Any, section: Any, share: Any) -> Any:
    from bigft.data.build import build_data

    return build_data(
        section, tokenizer=tokenizer, share=share, local_rank=0, eval_batch_size=4, seed=0,
        barrier=lambda: None,
    )  # fmt: skip


def run_start(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    import bigft.data.build  # noqa: F401 - with torch, before the clock starts
    from bigft.data.loading.loader import Share
    from bigft.data.order.cursor import Cursor

    section, share = build_section(path, num_proc=options.num_proc), Share(4)
    tokenizer = load_tokenizer(path)
    with stopwatch() as taken:
        data = build(tokenizer, section, share)
        next(data.train.steps_from(Cursor()))
    return {**taken, "rows": data.info["rows"]}


def run_memory(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    taken, _, rows, _ = open_and_pack(path, options)
    return {**taken, "rows": len(rows), "tokens": int(rows.lengths.sum())}


def run_training(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward of the built-in model over one epoch of the same rows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from bigft.data.loading.collate import collate_packed, collate_padded
    from bigft.data.loading.loader import Share, StoreLoader
    from bigft.data.order.cursor import Cursor
    from bigft.models.facts import BUILTIN_CONFIG
    from bigft.tasks.causal_lm import CausalLM

    torch.manual_seed(0)
    values = dict(BUILTIN_CONFIG)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    task = CausalLM()
    packing, order, _ = WAYS[options.way]
    _, section, rows, selection = open_and_pack(
        path, options, max_length=512, packing=packing, eval_fraction=0
    )
    collate = collate_padded if packing == "none" else collate_packed
    loader = StoreLoader(
        rows, selection.build_plan(rows, section, seed=0), Share(4), seed=0, order=order,
        collate=partial(collate, pad_id=0, max_length=512),
    )  # fmt: skip
    steps = list(islice(loader.steps_from(Cursor()), loader.steps_per_epoch))

    def train(step: Any) -> None:
        for batch in step.micro_batches:
            task.loss(model, batch).total.backward()

    train(steps[0])
    with stopwatch() as taken:
        for step in steps:
            train(step)
    tokens = sum(step.tokens for step in steps)
    places = sum(batch.input_ids.numel() for step in steps for batch in step.micro_batches)
    return {**taken, "tokens": tokens, "fullness": tokens / places, "steps": len(steps)}


JOBS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "bare": run_bare,
    "bigft": run_bigft,
    "start": run_start,
    "memory": run_memory,
    "training": run_training,
}


def start_job(job: str, path: Path, options: argparse.Namespace, *more: str) -> Any:
    words = ["--job", job, "--path", str(path), *more]
    if options.num_proc is not None:
        words += ["--num_proc", str(options.num_proc)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    return subprocess.Popen(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, env=environment
    )


def run_job(job: str, path: Path, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    process = start_job(job, path, options, *more)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{job} failed with {process.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


# The parts.


def clear_cache(path: Path) -> None:
    for name in ("tokens", "plans"):
        shutil.rmtree(path.parent / "cache" / name, ignore_errors=True)


def measure_throughput(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    results = {}
    for kind in KINDS:
        path = work / f"{kind}.jsonl"
        write_rows(path, kind, int(options.megabytes * 1e6))
        found: dict[str, list[dict[str, Any]]] = {"bare": [], "bigft": []}
        for number in range(options.rounds):
            for job in ("bare", "bigft") if number % 2 == 0 else ("bigft", "bare"):
                clear_cache(path)
                found[job].append(run_job(job, path, options))
        row = summarise_throughput(found)
        results[kind] = row
        print(
            f"tokenise and pack, {kind} rows, {row['megabytes']:.0f} MB: bigft"
            f" {row['bigft_MB_per_second']:.2f} MB/s on {row['bigft_cores']:.2f} cores, tokenizers"
            f" alone {row['bare_MB_per_second']:.2f} MB/s on {row['bare_cores']:.2f}, ratio"
            f" {row['ratio_seconds']:.2f}; per processor second"
            f" {row['bigft_MB_per_cpu_second']:.2f} and {row['bare_MB_per_cpu_second']:.2f}, ratio"
            f" {row['ratio_cpu_seconds']:.2f}"
        )
    return results


def summarise_throughput(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Take medians; ratios are of the two runs of one round, which saw nearly the same machine."""
    megabytes = found["bare"][0]["bytes"] / 1e6
    row: dict[str, Any] = {"megabytes": megabytes, "rounds": found}
    for clock in ("seconds", "cpu_seconds"):
        for job, runs in found.items():
            middle = statistics.median(one[clock] for one in runs)
            row[f"{job}_MB_per_{clock[:-1]}"] = megabytes / middle
        pairs = zip(found["bare"], found["bigft"], strict=True)
        row[f"ratio_{clock}"] = statistics.median(one[clock] / other[clock] for one, other in pairs)
    for job, runs in found.items():
        row[f"{job}_cores"] = statistics.median(r["cpu_seconds"] / r["seconds"] for r in runs)
    return row


def measure_utilisation(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    results = {}
    for kind in (*KINDS, "mixed"):
        path = work / f"{kind}-small.jsonl"
        write_rows(path, kind, 10_000_000)
        clear_cache(path)
        results[kind] = run_job("bigft", path, options)["utilisation"]
        print(
            f"packing, {kind} rows of 10 MB: sequences of {MAX_LENGTH} tokens are"
            f" {results[kind]:.2%} full"
        )
    return results


def measure_start(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    path = work / "large.jsonl"
    if not path.exists():
        path = work / "text.jsonl"
        if not path.exists():
            write_rows(path, "text", int(options.megabytes * 1e6))
        run_job("bigft", path, options)
    found = [run_job("start", path, options) for _ in range(options.rounds)]
    middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
    print(
        f"start with tokenised data, {path.stat().st_size / 1e6:,.0f} MB, {middle['rows']:,.0f}"
        f" rows: {middle['seconds']:.2f} s to the first batch"
    )
    return middle


def measure_memory(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    path = work / "large.jsonl"
    write_rows(path, "text", int(options.gigabytes * 1e9))
    clear_cache(path)
    process = start_job("memory", path, options)
    peak = _Peak(process.pid)
    sampling = threading.Thread(target=peak.watch, daemon=True)
    sampling.start()
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"memory failed with {process.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    found |= {"peak_bytes": peak.bytes, "processes": peak.processes}
    print(
        f"tokenise and pack {path.stat().st_size / 1e9:.2f} GB of text: peak"
        f" {peak.bytes / 1e9:.2f} GB over {peak.processes} processes, {found['seconds']:.0f} s,"
        f" {found['cpu_seconds']:.0f} processor seconds"
    )
    return found


class _Peak:
    """The largest sum of proportional set sizes of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        self.bytes = self.processes = 0
        self._pid = pid

    def watch(self) -> None:
        while Path(f"/proc/{self._pid}").exists():
            sizes = [_read_pss(pid) for pid in _find_family(self._pid)]
            if sum(sizes) > self.bytes:
                self.bytes, self.processes = sum(sizes), len(sizes)
            time.sleep(0.5)


def _find_family(pid: int) -> Iterator[int]:
    yield pid
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return
    for child in " ".join(lists).split():
        yield from _find_family(int(child))


def _read_pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def measure_training(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    path = work / "mixed.jsonl"
    write_rows(path, "mixed", int(options.training_megabytes * 1e6))
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way in list(WAYS) if number % 2 == 0 else list(WAYS)[::-1]:
            found[way].append(run_job("training", path, options, "--way", way))
    tokens = {runs[0]["tokens"] for runs in found.values()}
    if len(tokens) != 1:
        raise SystemExit(f"the ways saw unequal numbers of tokens: {tokens}")
    results: dict[str, Any] = {"rounds": found}
    print(f"training on {tokens.pop():,} tokens, batches of 4, at most 512 tokens each:")
    for way, runs in found.items():
        for clock in ("seconds", "cpu_seconds"):
            speed = statistics.median(one["tokens"] / one[clock] for one in runs)
            pairs = zip(found["packed"], runs, strict=True)
            ratio = statistics.median(other[clock] / one[clock] for one, other in pairs)
            results[f"{way}_tokens_per_{clock[:-1]}"] = speed
            results[f"packed_to_{way}_{clock}"] = ratio
        print(
            f"  {WAYS[way][2]}: {results[f'{way}_tokens_per_second']:,.0f} tokens/s,"
            f" {runs[0]['fullness']:.0%} full, {runs[0]['steps']} steps; packed is"
            f" {results[f'packed_to_{way}_seconds']:.2f} times as fast, per processor second"
            f" {results[f'packed_to_{way}_cpu_seconds']:.2f}"
        )
    return results


MEASURES = {
    "throughput": measure_throughput,
    "utilisation": measure_utilisation,
    "memory": measure_memory,
    "start": measure_start,  # After `memory`, whose large data it starts with.
    "training": measure_training,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true", help="only this part (repeatable)")
    parser.add_argument("--megabytes", type=float, default=50, help="per kind of row")
    parser.add_argument("--gigabytes", type=float, default=1, help="for the memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--training_megabytes", type=float, default=0.25)
    parser.add_argument("--num_proc", type=int, help="as --data.loading.num_proc")
    parser.add_argument("--work", type=Path, help="folder to keep generated data in")
    parser.add_argument("--json", action="store_true", help="end with one object on stdout")
    for hidden in ("--job", "--path", "--way"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(JOBS[options.job](Path(options.path), options)))
        return
    chosen = [part for part in MEASURES if getattr(options, part)] or list(MEASURES)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        results = {part: MEASURES[part](Path(folder), options) for part in chosen}
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
