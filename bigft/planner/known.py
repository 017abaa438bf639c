"""What probes have measured on this machine, kept for later plans: one small file of numbers.

It is a cache: a file that cannot be read is as good as none, and is written anew by the next probe.
"""

import contextlib
import hashlib
import json
import logging
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bigft.planner.machine import SliceMeasurement

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True)
class KnownRates:
    """All that was measured on one machine with one set of versions."""

    rates: Mapping[str, float] = field(default_factory=dict)
    """Per second: `matrix_bf16`, `matrix_fp32` of all cores or one GPU, `device_memory`,
    `host_memory`, `pcie`, `step_adamw`, `step_adamw_8bit`, and `disk_read:N`, `disk_write:N` of the
    disk with the number N."""

    slices: Mapping[str, SliceMeasurement] = field(default_factory=dict)
    """By what was measured, as `name_slice` says it."""

    def find_disk(self, name: str, folder: Path) -> float | None:
        """Find `disk_read` or `disk_write` of the disk that a folder is on."""
        return self.rates.get(f"{name}:{number_disk(folder)}")


def number_disk(folder: Path) -> int:
    """Return the number of the device that holds an existing folder."""
    return folder.stat().st_dev


def find_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the file where measured rates are kept."""
    folder = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "bigft" / "rates.json"


def name_slice(settings: Mapping[str, Any]) -> str:
    """Name a slice by all that it was measured with."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def load_known(device_name: str, cores: int, file: Path | None = None) -> KnownRates:
    """Load what was measured here with these versions; nothing where there is none.

    Args:
        device_name: Of the GPUs or the CPU.
        cores: That the process may use.
        file: The cache; absent: the user's.
    """
    entry = _read(file or find_cache()).get(_name_machine(device_name, cores), {})
    try:
        rates = {str(name): float(rate) for name, rate in entry.get("rates", {}).items()}
        slices = {
            str(name): SliceMeasurement(**{key: float(value) for key, value in row.items()})
            for name, row in entry.get("slices", {}).items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        logger.warning("%s: not what a probe writes (%s): left out", file or find_cache(), error)
        return KnownRates()
    return KnownRates({name: rate for name, rate in rates.items() if rate > 0}, slices)


def save_known(device_name: str, cores: int, found: KnownRates, file: Path | None = None) -> None:
    """Add what was measured to what is known; a later measurement takes the place of an earlier.

    Raises:
        OSError: The file cannot be written.
    """
    file = file or find_cache()
    whole = _read(file)
    before = load_known(device_name, cores, file)
    slices = {**before.slices, **found.slices}
    whole[_name_machine(device_name, cores)] = {
        "rates": {**before.rates, **found.rates},
        "slices": {name: asdict(row) for name, row in slices.items()},
    }
    write_cache(file, {"format": _FORMAT, "machines": whole})


def write_cache(file: Path, whole: Mapping[str, Any]) -> None:
    """Write a file anew, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=f".{file.stem}-", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as opened:
            json.dump(whole, opened, indent=1)
        Path(draft).replace(file)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _read(file: Path) -> dict[str, Any]:
    try:
        whole = json.loads(file.read_text())
        machines = whole["machines"] if whole["format"] == _FORMAT else {}
        return machines if isinstance(machines, dict) else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("%s cannot be read (%s): measured rates are left out", file, error)
        return {}


def _name_machine(device_name: str, cores: int) -> str:
    # Another release of torch has other kernels.
    kernels = "none"
    with contextlib.suppress(PackageNotFoundError):
        kernels = version("torch")
    return f"{socket.gethostname()} | {device_name} | {cores} cores | torch {kernels}"
