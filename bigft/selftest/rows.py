"""What is tried: every way of laying a run out, and the settings of its tiny run."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import bigft
from bigft.errors import ConfigError

STEPS = 3
RESUMED_AT = 2
"""Of runs that stop there and go on from their checkpoint."""

SEED = 7
VOCABULARY = 256
MAX_LENGTH = 48
ROWS_PER_RANK = 4

LEARNING_RATES = {"fp32": 1e-2, "bf16": 1e-3}
"""In bf16 so small that steps of norms, weights near 1, would be lost without fp32 masters."""

WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
EPSILON = 1e-3
"""As large as clipped gradients are: Adam would hide a wrong factor before them otherwise."""
MAX_GRAD_NORM = 0.3
"""Below the norm of every step."""

_ZERO = "ds.zero_optimization"


@dataclass(frozen=True)
class Placement:
    """One of the shipped DeepSpeed JSONs, and what is changed of it."""

    config: str
    changes: tuple[tuple[str, str], ...] = ()
    uses_nvme: bool = False


PLACEMENTS: Mapping[str, Placement] = {
    "zero0": Placement("zero1", ((f"{_ZERO}.stage", "0"),)),
    "zero1": Placement("zero1"),
    "zero1_offload": Placement("zero2_offload", ((f"{_ZERO}.stage", "1"),)),
    "zero2": Placement("zero2"),
    "zero2_offload": Placement("zero2_offload"),
    "zero3": Placement("zero3"),
    "zero3_offload_optimizer": Placement(
        "zero3_offload", ((f"{_ZERO}.offload_param.device", "none"),)
    ),
    "zero3_offload": Placement("zero3_offload"),
    "zero3_nvme": Placement("zero3_nvme", uses_nvme=True),
}


@dataclass(frozen=True)
class Row:
    """One run."""

    placement: str
    optim: str
    accumulation: int
    precision: str
    resumed: bool = False

    @property
    def name(self) -> str:
        """By which `--rows` and reports know it."""
        words = [self.placement, self.optim, self.precision, f"x{self.accumulation}"]
        return "/".join([*words, *(["resumed"] if self.resumed else [])])

    @property
    def uses_nvme(self) -> bool:
        """Whether parameters and optimizer are on NVMe."""
        return PLACEMENTS[self.placement].uses_nvme

    def to_dict(self) -> dict[str, Any]:
        """Return what `Row(**...)` takes."""
        return asdict(self)


def list_rows() -> list[Row]:
    """Return all rows, those of one placement together."""
    return [row for placement in PLACEMENTS for row in _rows_of(placement)]


def _rows_of(placement: str) -> Iterator[Row]:
    for optim in ("adamw", "adamw_8bit"):
        for accumulation in (1, 2):
            yield Row(placement, optim, accumulation, "fp32")
        # What most runs are; goes through a checkpoint on its way.
        yield Row(placement, optim, 2, "bf16", resumed=True)


def select_rows(patterns: Sequence[str]) -> list[Row]:
    """Return the rows that any pattern names, wholly or by its first words; all without one.

    Raises:
        ConfigError: A pattern names none.
    """
    rows = list_rows()
    if not patterns:
        return rows
    for pattern in patterns:
        if not any(_matches(row, pattern) for row in rows):
            raise ConfigError(
                f"--rows {pattern}: names none; a row is called like {rows[0].name}, and the first"
                f" word is one of {', '.join(PLACEMENTS)}"
            )
    return [row for row in rows if any(_matches(row, pattern) for pattern in patterns)]


def _matches(row: Row, pattern: str) -> bool:
    return fnmatch(row.name, pattern) or fnmatch(row.name, f"{pattern}/*")


def choose_hidden_size(ranks: int) -> int:
    """Return a width that lets all ranks' parts of a matrix consist of whole 8-bit blocks.

    A block of 256 elements that is cut between ranks has one scale on each; a reference that does
    not know the cuts could not say what comes out.
    """
    return 16 * ranks * math.ceil(4 / ranks)


def find_config(name: str) -> Path:
    """Return the path of a DeepSpeed JSON that bigft comes with.

    Raises:
        ConfigError: It is not there.
    """
    package = Path(bigft.__file__).resolve().parent
    # Of a checkout, and of an installation.
    folders = [package.parent / "ds_configs", Path(sys.prefix) / "share/bigft/ds_configs"]
    for folder in folders:
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    raise ConfigError(
        f"ds_configs/{name}.json: not found in {' or '.join(map(str, folders))}; run the selftest"
        " from a checkout, or install bigft again"
    )


def make_settings(row: Row, folder: Path, ranks: int, nvme_path: str | None) -> dict[str, str]:
    """Return the flags of a row's run.

    Args:
        row: The row.
        folder: Of the selftest, with `model/` and `rows.jsonl`.
        ranks: That train.
        nvme_path: Where swap files go; None: into the run folder.
    """
    beta1, beta2 = BETAS
    settings = {
        "model": str(folder / "model"),
        "data": str(folder / "rows.jsonl"),
        "data.eval_fraction": "0",
        "data.loading.cache_dir": str(folder / "cache"),
        "max_length": str(MAX_LENGTH),
        "packing": "none",
        "optim": row.optim,
        "learning_rate": str(LEARNING_RATES[row.precision]),
        "optim.weight_decay": str(WEIGHT_DECAY),
        "optim.adam_beta1": str(beta1),
        "optim.adam_beta2": str(beta2),
        "optim.adam_epsilon": str(EPSILON),
        "optim.max_grad_norm": str(MAX_GRAD_NORM),
        # Another rate in every step, whatever the length of the run is.
        "optim.lr_scheduler_type": "inverse_sqrt",
        "optim.lr_scheduler_kwargs.timescale": "1",
        "per_device_train_batch_size": str(ROWS_PER_RANK // row.accumulation),
        "gradient_accumulation_steps": str(row.accumulation),
        "ds.bf16.enabled": str(row.precision == "bf16").lower(),
        "checkpoint.export_dtype": "float32",
        "seed": str(SEED),
    }
    if row.uses_nvme and nvme_path:
        settings |= {
            f"{_ZERO}.offload_{part}.nvme_path": nvme_path for part in ("param", "optimizer")
        }
    return {**settings, **dict(PLACEMENTS[row.placement].changes)}
