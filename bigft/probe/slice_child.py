"""The process that measures a slice: a job as JSON comes in, a measurement goes out."""

import contextlib
import json
import statistics
import sys
import time
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bigft.data.loading.collate import Batch
from bigft.distributed.memory import read_available_bytes
from bigft.engine.host_memory import fix_malloc_limits
from bigft.models.load import pick_attention
from bigft.models.savers import save_activations
from bigft.planner.machine import SliceMeasurement
from bigft.probe.slice import SliceJob, shrink
from bigft.tasks.causal_lm import CausalLM
from bigft.tasks.cross_entropy import PLAIN
from bigft.tasks.tokens import pick_labels, sum_losses

_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "distillation": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
}

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_LEAST_ROUNDS = 3
_MASKED_SHARE = 0.15


class Slice:
    """A model with a few layers, and its micro-batch."""

    def __init__(self, job: SliceJob, layers: int, device: torch.device) -> None:
        """Build it with random weights."""
        self._job, self._device = job, device
        self._module = _build(job, layers, device)
        self.bytes = sum(p.numel() * p.element_size() for p in self._module.parameters())
        self._batch = _make_batch(job, self._module.config, device)
        self._task = CausalLM()

    def step(self) -> float:
        """Go forward and backward once; returns seconds."""
        clock = time.process_time if self._job.clock == "processor" else time.perf_counter
        _wait(self._device)
        started = clock()
        self._find_loss().backward()
        _wait(self._device)
        return clock() - started

    def _find_loss(self) -> torch.Tensor:
        job, batch, module = self._job, self._batch, self._module
        if job.task in ("causal_lm", "distillation"):
            return self._task.loss(module, batch).total
        inputs: dict[str, Any] = {"attention_mask": batch.attention_mask}
        if job.task == "seq2seq":
            shifted = module.prepare_decoder_input_ids_from_labels(labels=batch.labels)
            inputs |= {"decoder_input_ids": shifted, "use_cache": False}
        logits = module(input_ids=batch.input_ids, **inputs).logits
        if job.task in ("classification", "regression"):
            total: torch.Tensor = logits.float().square().sum()
            return total
        return sum_losses(pick_labels(logits, batch), PLAIN).total


def measure(job: SliceJob) -> SliceMeasurement:
    """Measure both slices in turn, so that a machine that others use too is as busy for both.

    Raises:
        ValueError: There is no such model for the task, or it would not fit.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    torch.set_num_threads(job.threads)
    if device.type == "cpu":
        fix_malloc_limits(job.parameters)
    check_room(job, device)
    one, two = Slice(job, 1, device), Slice(job, 2, device)
    for model in (one, two):
        model.step()
    rounds: list[tuple[float, float]] = []
    end = time.perf_counter() + job.seconds
    while len(rounds) < _LEAST_ROUNDS or time.perf_counter() < end:
        rounds.append((one.step(), two.step()))
    added = statistics.median(second - first for first, second in rounds)
    alone = statistics.median(first for first, _ in rounds)
    # Noise may be larger than a small layer; then all of it is shared out by the layers there are.
    layer = added if added > 0 else statistics.median(second for _, second in rounds) / 2
    peaks = [_measure_peak(model, device) for model in (one, two)]
    kept = max(0, peaks[1] - peaks[0])
    return SliceMeasurement(layer, max(0.0, alone - layer), kept, max(0, peaks[0] - kept))


def _build(job: SliceJob, layers: int, device: torch.device | str) -> Any:
    import transformers

    if job.task not in _CLASSES:
        raise ValueError(f"no slices of {job.task}")
    dtype = _DTYPES[job.precision]
    rest = {key: value for key, value in job.config.items() if key != "model_type"}
    whole = transformers.AutoConfig.for_model(job.config["model_type"], **rest)
    config = type(whole).from_dict(shrink(whole.to_dict(), layers))
    config.use_cache = False
    attention = pick_attention(job.attention, torch.device(device), dtype)
    with torch.device(device):
        module: Any = getattr(transformers, _CLASSES[job.task]).from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    module.train()
    save_activations(module, job.checkpointing, torch.device(device))
    return module


def check_room(job: SliceJob, device: torch.device) -> None:
    """Refuse a model whose slices would fill the memory: embeddings alone may be gigabytes."""
    needed = 0
    for layers in (1, 2):
        skeleton = _build(job, layers, "meta")
        needed += 2 * sum(p.numel() * p.element_size() for p in skeleton.parameters())
    free = read_available_bytes()
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    if needed > 0.7 * free:
        raise ValueError(f"two slices take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _make_batch(job: SliceJob, config: Any, device: torch.device) -> Batch:
    text = config.get_text_config()
    shape = (job.rows, job.length)
    ids = torch.randint(3, text.vocab_size, shape)
    labels, mask, positions = ids.clone(), torch.ones_like(ids), None
    if job.task == "seq2seq":
        labels = torch.randint(3, text.vocab_size, (job.rows, job.target_length or job.length))
    elif job.task == "masked_lm":
        labels[torch.rand(shape) >= _MASKED_SHARE] = -100
    elif job.is_packed:
        # Two examples: whoever takes care of that does so.
        positions = (torch.arange(job.length) % max(1, job.length // 2)).expand(shape)
    packed = positions is not None and job.task in ("causal_lm", "distillation")
    return Batch(ids, labels, positions, None if packed else mask).to(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measure_peak(model: Slice, device: torch.device) -> int:
    """Bytes that a micro-batch takes at its peak, over weights and gradients."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model.step()
        return int(torch.cuda.max_memory_allocated(device)) - before
    # Resident memory also has what the C library keeps, and differs from round to round by more
    # than a layer; these are the tensors alone, to the byte.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model.step()
    found: Any = profiler.profiler
    events = [one for one in found.kineto_results.events() if one.name() == "[memory]"]
    events.sort(key=lambda one: one.start_ns())
    return max(accumulate(one.nbytes() for one in events), default=0)


def main() -> None:
    """Read a job from stdin and write what was measured to stdout."""
    job = SliceJob(**json.load(sys.stdin))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = measure(job)
    except (ValueError, RuntimeError, OSError, KeyError, ImportError) as error:
        raise SystemExit((str(error).strip() or repr(error)).splitlines()[0]) from None
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
