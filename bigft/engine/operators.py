"""DeepSpeed's native operators: which ones a run needs, and whether this host can build them."""

import os
import shutil
import subprocess
from typing import Any

from bigft.errors import LaunchError, raise_together

_LIBAIO_PROBE = "#include <libaio.h>\nint main() { return io_queue_init(1, 0); }\n"


def find_needed_operators(ds: dict[str, Any], *, on_cpu: bool, uses_cpu_adam: bool) -> list[str]:
    """Name the DeepSpeed builders that this run will ask for."""
    zero = ds["zero_optimization"]
    devices = {zero.get(part, {}).get("device") for part in ("offload_param", "offload_optimizer")}
    builders = []
    if uses_cpu_adam:
        builders.append("CPUAdamBuilder")
    if "nvme" in devices:
        builders.append("AsyncIOBuilder")
    if on_cpu:
        builders.append("ShareMemCommBuilder")
    return builders


def check_build_tools(builders: list[str]) -> None:
    """Find out before anything expensive starts whether the operators can be built.

    torch looks for the compiler and ninja at every load, also when the build is cached.

    Raises:
        LaunchError: A tool or library is missing; says what to install.
    """
    if not builders:
        return
    problems = []
    compiler = os.environ.get("CXX", "c++")
    needs = ", ".join(name.removesuffix("Builder") for name in builders)
    compiler_found = shutil.which(compiler) is not None
    if not compiler_found:
        problems.append(
            f"no C++ compiler ({compiler!r} is not on PATH), but DeepSpeed builds {needs} here;"
            " install one (Debian, Ubuntu: apt-get install g++) or set CXX"
        )
    if shutil.which("ninja") is None:
        problems.append(
            f"no ninja on PATH, but DeepSpeed builds {needs} with it; pip install ninja"
        )
    uses_aio = "AsyncIOBuilder" in builders
    if compiler_found and uses_aio and not _links(compiler, _LIBAIO_PROBE):
        problems.append(
            "libaio is missing, but offload to NVMe is asked for; install it (Debian, Ubuntu:"
            ' apt-get install libaio-dev) or offload to host memory: device "cpu"'
        )
    if problems:
        raise_together(LaunchError, problems)


def _links(compiler: str, source: str) -> bool:
    command = [compiler, "-x", "c++", "-", "-laio", "-o", os.devnull]
    return subprocess.run(command, input=source.encode(), capture_output=True).returncode == 0


def build_operators(builders: list[str]) -> None:
    """Build (or load from the cache) the operators; call it on one rank of each host first.

    Raises:
        LaunchError: The compiler failed; its output is in the log.
    """
    from deepspeed.accelerator import get_accelerator

    for name in builders:
        builder = get_accelerator().create_op_builder(name)
        try:
            builder.load(verbose=False)
        except (RuntimeError, ImportError, OSError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise LaunchError(
                f"DeepSpeed's {name.removesuffix('Builder')} operator could not be built:"
                f" {first_line}; the compiler's output is in this rank's log file. If the build"
                " cache is stale, remove the folder TORCH_EXTENSIONS_DIR"
                " (default ~/.cache/torch_extensions)"
            ) from error
