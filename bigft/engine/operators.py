"""DeepSpeed's native operators: which ones a run needs, and whether this host can build them."""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigft.errors import LaunchError, raise_together

logger = logging.getLogger(__name__)

HOST_OPERATORS = ["CPUAdamBuilder", "AsyncIOBuilder", "ShareMemCommBuilder"]
"""Builders of all operators that work on a host's memory, disk and cores."""

_STALE_SECONDS = 900.0
"""No operator takes this long to build."""

_STALE = (
    "If an earlier build was broken off or is of another machine, remove the folder"
    " TORCH_EXTENSIONS_DIR (default ~/.cache/torch_extensions)"
)

_GCC = "Debian, Ubuntu: apt-get install g++"
# The first that fits counts.
_BUILD_FAILURES = (
    (
        r"Killed signal terminated program|virtual memory exhausted|cc1plus: out of memory",
        "The compiler ran out of host memory: set MAX_JOBS=1, or give the build more memory",
    ),
    (r"No space left on device", "Free space where TORCH_EXTENSIONS_DIR and TMPDIR are"),
    (r"libaio\.h|cannot find -laio|libaio\.so", "Debian, Ubuntu: apt-get install libaio-dev"),
    (r"Python\.h: No such file", "Debian, Ubuntu: apt-get install python3-dev"),
    (
        r"cuda_runtime(_api)?\.h: No such file|nvcc.*not found|CUDA_HOME|unable to compile CUDA",
        "Install the CUDA toolkit of torch.version.cuda and set CUDA_HOME",
    ),
    (
        r"unsupported GNU version|compiler version .* is not supported",
        "The CUDA toolkit needs an older compiler: set CXX and CC to one that it knows",
    ),
    (
        r"does not match the version torch was compiled",
        "Install the CUDA toolkit of torch.version.cuda, or set DS_SKIP_CUDA_CHECK=1",
    ),
    (
        r"--version'.*returned non-zero|(c\+\+|g\+\+|cc1plus|clang\+\+).*(not found|No such file)"
        r"|stdlib\.h: No such file|error trying to exec|cstdlib: No such file",
        f"A compiler is missing or broken; {_GCC}",
    ),
    (
        r"unrecognized command.line option|bad value .* for .-march",
        f"The compiler is too old; {_GCC}, or set CXX",
    ),
    (r"ninja is required|ninja.*not (found|installed)", "pip install ninja"),
    (r"Permission denied", "Set TORCH_EXTENSIONS_DIR to a folder that you may write"),
    (r"undefined symbol|version .GLIBCXX_|cannot open shared object", _STALE),
)

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
    if compiler_found and uses_aio and not finds_libaio(compiler):
        problems.append(
            "libaio is missing, but offload to NVMe is asked for; install it (Debian, Ubuntu:"
            ' apt-get install libaio-dev) or offload to host memory: device "cpu"'
        )
    if problems:
        raise_together(LaunchError, problems)


def finds_libaio(compiler: str) -> bool:
    """Say whether a program with libaio compiles and links."""
    command = [compiler, "-x", "c++", "-", "-laio", "-o", os.devnull]
    done = subprocess.run(command, input=_LIBAIO_PROBE.encode(), capture_output=True)
    return done.returncode == 0


def build_operators(builders: list[str]) -> None:
    """Build (or load from the cache) the operators; call it on one rank of each host first.

    Raises:
        LaunchError: The compiler failed; its output is in the log.
    """
    from deepspeed.accelerator import get_accelerator

    for name in builders:
        builder = get_accelerator().create_op_builder(name)
        clear_stale_lock(builder.name)
        try:
            builder.load(verbose=False)
        # DeepSpeed has exceptions of its own for a missing CUDA toolkit, and asserts.
        except Exception as error:
            logger.error("operator %s", name, exc_info=error)
            raise LaunchError(
                f"DeepSpeed's {name.removesuffix('Builder')} operator could not be built:"
                f" {explain_build(str(error) or repr(error))} (the compiler's output is in"
                " log/rank_NN.log)"
            ) from error


def explain_build(output: str) -> str:
    """Find in what a compiler has written why it failed, and say what to do."""
    for pattern, repair in _BUILD_FAILURES:
        found = re.search(rf"^.*(?:{pattern}).*$", output, re.IGNORECASE | re.MULTILINE)
        if found:
            return f"{found[0].strip()[:200]}. {repair}"
    telling = re.search(r"^.*\berror\b:.*$", output, re.IGNORECASE | re.MULTILINE)
    line = telling[0] if telling else output.strip().splitlines()[0]
    return f"{line.strip()[:200]}. {_STALE}"


@dataclass(frozen=True)
class BuildLock:
    """The lock file of an operator that is being built, or was."""

    path: Path
    age_seconds: float
    is_stale: bool
    """Nobody is building any more."""


def find_lock(name: str) -> BuildLock | None:
    """Find the lock of an operator.

    The builder keeps the file open. One that no process here has open may still belong to another
    host that shares the folder, so it has to be old as well.
    """
    from torch.utils.cpp_extension import _get_build_directory

    lock = Path(_get_build_directory(name, False)) / "lock"
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None
    return BuildLock(lock, age, age > _STALE_SECONDS and not _is_open_here(lock))


def clear_stale_lock(name: str) -> None:
    """Remove the lock that a killed build left behind; torch would wait for it without end."""
    lock = find_lock(name)
    if lock is None:
        return
    if lock.is_stale:
        minutes = lock.age_seconds / 60
        logger.warning(
            "removed %s, left %.0f minutes ago by a build that was killed", lock.path, minutes
        )
        lock.path.unlink(missing_ok=True)
    else:
        logger.warning("waiting for another build; if there is none, delete %s", lock.path)


def find_built(name: str) -> Path | None:
    """Find the library of an operator that was built here before; None: there is none yet."""
    from torch.utils.cpp_extension import _get_build_directory

    library = Path(_get_build_directory(name, False)) / f"{name}.so"
    return library if library.is_file() else None


def is_built(builder: str) -> bool:
    """Whether a builder's operator comes from the cache; to build it takes a minute or two."""
    from deepspeed.accelerator import get_accelerator

    return find_built(get_accelerator().create_op_builder(builder).name) is not None


def _is_open_here(file: Path) -> bool:
    wanted = file.resolve()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        # Processes end, and those of others are closed to us, while we look.
        with contextlib.suppress(OSError):
            if link.readlink() == wanted:
                return True
    return False
