"""One micro-batch through a model of the run's widths with one and with two layers.

What the second layer adds, in time and memory, is a layer; the rest is embeddings, head and loss.
It runs in a process of its own: the peak of memory is a process's, and a GPU that is left to the
run afterwards must be empty.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bigft.distributed.children import leave_launcher
from bigft.planner.known import name_slice
from bigft.planner.machine import SliceMeasurement

_TIMEOUT_SECONDS = 180.0


@dataclass(frozen=True)
class SliceJob:
    """What is measured; plain numbers and texts, so that it can go to another process."""

    config: dict[str, Any]
    """The model's `config.json`."""

    task: str
    length: int
    rows: int
    """Sequences of a micro-batch."""

    checkpointing: str
    attention: str = "auto"
    precision: str = "bf16"
    is_packed: bool = True
    target_length: int = 0
    """Of what a decoder behind an encoder writes; 0: `length`."""

    parameters: int = 0
    """Of the whole model: what the C library keeps depends on it."""

    threads: int = 1
    clock: Literal["wall", "processor"] = "wall"
    """`processor`: what one thread computes, on a machine that others use too."""

    seconds: float = 3.0
    """Limit of the rounds, after warming up."""

    @property
    def name(self) -> str:
        """Name it among all that was measured on a machine."""
        return name_slice({k: v for k, v in asdict(self).items() if k != "seconds"})


class SliceError(Exception):
    """A slice could not be measured; says why in one line."""


def measure_slice(job: SliceJob, environ: Mapping[str, str] = os.environ) -> SliceMeasurement:
    """Measure a slice in a child process.

    Raises:
        SliceError: It failed, took too long, or would not fit.
    """
    environment = leave_launcher(environ)
    environment["OMP_NUM_THREADS"] = str(job.threads)
    command = [sys.executable, "-m", "bigft.probe.slice_child"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise SliceError(f"took longer than {_TIMEOUT_SECONDS:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SliceError(lines[-1])
    return SliceMeasurement(**json.loads(done.stdout.strip().splitlines()[-1]))


_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
    *("encoder_layers", "decoder_layers"),
)


def shrink(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return a model's config with so many layers in each stack.

    Args:
        config: A complete one, defaults included.
        layers: At most as many as the model has.
    """
    result = dict(config)
    counts = {config[name] for name in _COUNTS if isinstance(config.get(name), int)}
    for name in _COUNTS:
        if isinstance(config.get(name), int):
            result[name] = layers
    for name, value in config.items():
        # Kinds of layers, one by one.
        if isinstance(value, list) and len(value) in counts and name.startswith("layer"):
            result[name] = value[:layers]
        elif name == "text_config" and isinstance(value, dict):
            result[name] = shrink(value, layers)
    return result
