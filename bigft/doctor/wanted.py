"""What a run will use of a host: the question that the checks answer."""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bigft.data.cache import default_cache_dir
from bigft.doctor.need import Need
from bigft.engine.operators import HOST_OPERATORS, find_needed_operators
from bigft.engine.swap import find_swap_roots
from bigft.errors import ConfigError
from bigft.optim.build import plan_optimizer
from bigft.run.resolved import Resolved


@dataclass(frozen=True)
class Wanted:
    """What is asked of one host. Without a run: what most runs ask, and nothing insisted upon."""

    is_of_run: bool = False
    """Whether a DeepSpeed JSON says what is needed."""

    ranks: int = 1
    device: Literal["cuda", "cpu"] = "cpu"
    output_dir: Path = Path()
    nvme_paths: tuple[Path, ...] = ()
    cache_dir: Path = Path("~/.cache/bigft")
    builders: tuple[str, ...] = tuple(HOST_OPERATORS)
    """DeepSpeed's operators, by the names of their builders."""

    uses_cpu_adam: bool = False
    uses_native: bool = False
    """Whether bigft's own step runs, on this host's cores."""

    is_bf16: bool = True
    need: Need = Need()
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


def find_device(environ: Mapping[str, str]) -> Literal["cuda", "cpu"]:
    """Tell whether a run would be on NVIDIA GPUs, without asking torch, which takes seconds."""
    if environ.get("DS_ACCELERATOR") == "cpu":
        return "cpu"
    has_gpu = Path("/dev/nvidiactl").exists() or find_tool("nvidia-smi", environ) is not None
    return "cuda" if has_gpu else "cpu"


def find_visible(environ: Mapping[str, str]) -> tuple[int, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves to a run; empty: it says nothing.

    Raises:
        ConfigError: It leaves none, or has other names than numbers, which no launcher hands out.
    """
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None or find_device(environ) == "cpu":
        return ()
    names = [name.strip() for name in text.split(",")]
    if names[0] in ("", "-1"):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={text!r}: leaves no GPU; unset it, or set DS_ACCELERATOR=cpu"
        )
    if not all(name.isdecimal() for name in names):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={text[:80]!r}: write GPUs as numbers; `nvidia-smi -L` has both"
        )
    return tuple(map(int, names))


def count_gpus(environ: Mapping[str, str]) -> int:
    """Count the GPUs that ranks could be started on; 1 where there is none, for one rank."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if find_device(environ) == "cpu":
        return 1
    if visible is not None:
        return max(1, len([name for name in visible.split(",") if name.strip()]))
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def count_ranks(environ: Mapping[str, str]) -> int:
    """Return how many ranks a launcher has started in all; 1 where there is none."""
    text = environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdigit() else 1


def find_tool(name: str, environ: Mapping[str, str]) -> str | None:
    """Find a program as a run finds it: beside the interpreter first, as where it is activated."""
    folders = [str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]
    return shutil.which(name, path=os.pathsep.join(folders))


def plan_wanted(resolved: Resolved, ranks: int, environ: Mapping[str, str], need: Need) -> Wanted:
    """Read what a run will use in its settings.

    Args:
        resolved: With its output folder, so that no NVMe path is `"auto"`; without a JSON the host
            is looked at in general.
        ranks: On this host.
        environ: Environment variables of the run.
        need: Bytes, as far as they are known.
    """
    ds, run = resolved.ds, resolved.run
    device = find_device(environ)
    general = Wanted(
        ranks=ranks,
        device=device,
        output_dir=Path(run.output_dir).expanduser().absolute(),
        cache_dir=default_cache_dir(run.data.loading.cache_dir),
        need=need,
        environ=environ,
    )
    if not resolved.config:
        return general
    optimizer = plan_optimizer(run.optim, ds).class_name
    uses_cpu_adam = optimizer == "DeepSpeedCPUAdam"
    builders = find_needed_operators(ds, on_cpu=device == "cpu", uses_cpu_adam=uses_cpu_adam)
    return Wanted(
        is_of_run=True,
        ranks=ranks,
        device=device,
        output_dir=general.output_dir,
        nvme_paths=tuple(path.expanduser() for path in find_swap_roots(ds)),
        cache_dir=general.cache_dir,
        builders=tuple(builders),
        uses_cpu_adam=uses_cpu_adam,
        uses_native=optimizer == "HostAdamW",
        is_bf16=bool(ds.get("bf16", {}).get("enabled")),
        need=need,
        environ=environ,
    )
