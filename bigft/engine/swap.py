"""A private folder for each run's NVMe swap files.

DeepSpeed names its swap files by rank alone and empties the parameter folder when it starts, so
two jobs with one `nvme_path` destroy each other. Every run gets a folder of its own below the
given path, checked for space before the start and removed at the end.
"""

import copy
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from bigft.errors import ConfigError, PlanError, raise_together
from bigft.units import format_bytes, format_count

_PREFIX = "bigft-swap-"
_OWNER = "owner"
_OFFLOADS = ("offload_param", "offload_optimizer")

# bf16 or fp16 weights.
_PARAMETER_BYTES = 2


def find_swap_roots(ds: dict[str, Any]) -> list[Path]:
    """Return the distinct `nvme_path`s of a DeepSpeed JSON."""
    zero = ds["zero_optimization"]
    paths = [
        zero[part]["nvme_path"] for part in _OFFLOADS if zero.get(part, {}).get("device") == "nvme"
    ]
    return [Path(path) for path in dict.fromkeys(paths)]


def new_run_name() -> str:
    """Return a folder name that no other run uses."""
    return f"{_PREFIX}{uuid.uuid4().hex[:12]}"


def with_private_swap(ds: dict[str, Any], run_name: str) -> dict[str, Any]:
    """Return the JSON with every `nvme_path` moved into this run's own folder below it."""
    moved = copy.deepcopy(ds)
    for part in _OFFLOADS:
        section = moved["zero_optimization"].get(part, {})
        if section.get("device") == "nvme":
            section["nvme_path"] = str(Path(section["nvme_path"]) / run_name)
    return moved


def plan_swap_bytes(
    ds: dict[str, Any], optimizer_bytes: float, num_parameters: int, host_share: float
) -> int:
    """Bytes that the swap files of one host will take.

    Args:
        ds: Resolved DeepSpeed JSON.
        optimizer_bytes: Per parameter, of an optimizer on NVMe.
        num_parameters: Of the whole model.
        host_share: Part of all ranks that run on this host, 0 to 1.
    """
    zero = ds["zero_optimization"]
    per_parameter = 0.0
    if zero.get("offload_optimizer", {}).get("device") == "nvme":
        per_parameter += optimizer_bytes
    if zero.get("offload_param", {}).get("device") == "nvme":
        per_parameter += _PARAMETER_BYTES
    return int(per_parameter * num_parameters * host_share)


def open_swap(private: dict[str, Any], needed_bytes: int, num_parameters: int) -> None:
    """Make the private folders and check that the swap files will fit.

    Raises:
        ConfigError: A folder cannot be written.
        PlanError: Too little space is free.
    """
    problems = []
    for folder in find_swap_roots(private):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            close_swap(private)
            raise ConfigError(
                f"nvme_path={str(folder.parent)!r} cannot be written ({error.strerror}); name a"
                " writable folder on a local NVMe disk:"
                " --ds.zero_optimization.offload_optimizer.nvme_path=... (and offload_param)"
            ) from error
        free = shutil.disk_usage(folder).free
        if free < needed_bytes:
            problems.append(
                f"nvme_path={str(folder.parent)!r} has {format_bytes(free)} free, but the swap"
                f" files of {format_count(num_parameters)} parameters need about"
                f" {format_bytes(needed_bytes)}; free some space, name a larger disk, or offload"
                " to host memory with ds_configs/zero3_offload.json"
            )
    if problems:
        close_swap(private)
        raise_together(PlanError, problems)


def close_swap(private: dict[str, Any]) -> None:
    """Remove the private folders, whatever became of the run."""
    for folder in find_swap_roots(private):
        shutil.rmtree(folder, ignore_errors=True)


def find_orphans(root: Path) -> list[Path]:
    """Find private folders below an `nvme_path` whose runs on this host were killed."""
    owners = {folder: folder / _OWNER for folder in root.glob(f"{_PREFIX}*")}
    return [
        f for f, owner in owners.items() if owner.is_file() and not _is_alive(owner.read_text())
    ]


def remove_orphans(ds: dict[str, Any]) -> None:
    """Remove private folders of runs on this host that were killed before they could."""
    for root in find_swap_roots(ds):
        for folder in find_orphans(root):
            shutil.rmtree(folder, ignore_errors=True)


def sign_swap(private: dict[str, Any]) -> None:
    """Leave this process's identity in the private folders, so that orphans can be told."""
    for folder in find_swap_roots(private):
        (folder / _OWNER).write_text(f"{os.uname().nodename} {os.getpid()}")


def _is_alive(owner: str) -> bool:
    host, _, pid = owner.partition(" ")
    # Another host's process cannot be judged from here: count it as alive.
    return host != os.uname().nodename or Path(f"/proc/{pid}").exists()
