"""Faults that are planted around a real `bigft doctor`: limits, mounts, programs, packages, hosts.

A plant changes the situation that the doctor is started in; nothing inside it is replaced.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "ds_configs"


@dataclass
class Situation:
    """What a doctor is started in."""

    folder: Path
    """Empty, and the working directory; the run folder is `run` in it."""

    words: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    """Words in front of the command, as `prlimit --nofile=256`."""

    mounts: list[str] = field(default_factory=list)
    """Shell commands in a mount namespace of its own."""

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Write a file for a plant."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def put_first(self, variable: str, folder: Path) -> None:
        """Put a folder before what a variable lists."""
        rest = self.environ.get(variable, os.environ.get(variable, ""))
        self.environ[variable] = f"{folder}:{rest}" if rest else str(folder)

    def add_program(self, name: str, text: str) -> None:
        """Put a program before all others of its name."""
        self.write(f"bin/{name}", f"#!/bin/sh\n{text}\n", 0o755)
        self.put_first("PATH", self.folder / "bin")

    def add_package(self, name: str, version: str) -> None:
        """Let a package be found in another version than the one that is imported."""
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        self.write(f"packages/{name}-{version}.dist-info/METADATA", metadata)
        self.environ["PYTHONPATH"] = f"{self.folder / 'packages'}:{ROOT}"


@dataclass
class Told:
    """What the doctor said."""

    code: int
    report: dict[str, Any]
    err: str

    @property
    def faults(self) -> set[str]:
        """Names of what is not well."""
        return {finding["name"] for finding in self.report["findings"] if not finding["ok"]}

    @property
    def well(self) -> set[str]:
        """Names of what was looked at, and is."""
        rows = self.report["findings"]
        return {row["name"] for row in rows if row["ok"] and row["applies"]}

    def find(self, name: str) -> dict[str, Any]:
        """Return the first fault of a name, or the first finding."""
        rows = [row for row in self.report["findings"] if row["name"] == name]
        return next((row for row in rows if not row["ok"]), rows[0])


def examine(situation: Situation, *words: str, timeout: float = 120) -> Told:
    """Run `bigft doctor --json` there."""
    done = start(situation, "--json", *words, timeout=timeout)
    assert done.stdout, done.stderr
    return Told(done.returncode, json.loads(done.stdout), done.stderr)


def start(
    situation: Situation, *words: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `bigft doctor` there."""
    command = [sys.executable, "-m", "bigft", "doctor", *situation.words, *words]
    if not any(word.startswith("--output_dir") for word in command):
        command += ["--output_dir", str(situation.folder / "run")]
    command = [*situation.before, *command]
    if situation.mounts:
        script = " && ".join([*situation.mounts, 'exec "$@"'])
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
    environ = {"PYTHONPATH": str(ROOT), **situation.environ}
    return subprocess.run(
        command,
        cwd=situation.folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def config(name: str) -> list[str]:
    """Return the words that name one of the shipped configurations."""
    return ["--config", str(CONFIGS / f"{name}.json")]


def can_mount() -> bool:
    """Whether mounts can be planted: root, in a container that allows it."""
    command = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def mounted_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount an empty disk of a size in memory; hosts that are simulated later see it, too."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def has_disk(folder: str = "/var/tmp") -> bool:
    """Whether there is a disk to offload to; a container may have only its layers."""
    from bigft.doctor.storage import find_file_system

    return find_file_system(Path(folder)) in ("ext4", "ext3", "xfs", "btrfs", "zfs")


def find_memory_group() -> Path | None:
    """Find where a control group with a memory limit can be made."""
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        is_v2 = (root / "cgroup.subtree_control").is_file()
        if is_v2 and "memory" not in (root / "cgroup.subtree_control").read_text().split():
            continue
        if os.access(root, os.W_OK) and (is_v2 or (root / "memory.limit_in_bytes").is_file()):
            return root
    return None


class MemoryGroup:
    """A control group with a limit, for the time of a test."""

    def __init__(self, limit_bytes: int) -> None:
        root = find_memory_group()
        assert root is not None
        self.path = root / f"bigft-test-{os.getpid()}-{time.monotonic_ns()}"
        self.limit_bytes = limit_bytes

    def __enter__(self) -> list[str]:
        self.path.mkdir()
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (self.path / name).exists():
                (self.path / name).write_text(str(self.limit_bytes))
        script = f'echo $$ > {shlex.quote(str(self.path))}/cgroup.procs && exec "$@"'
        return ["sh", "-c", script, "sh"]

    def __exit__(self, *_: object) -> None:
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.1)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
static int (*real)(clockid_t, struct timespec *);
int clock_gettime(clockid_t id, struct timespec *t) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec += atol(getenv("CLOCK_OFFSET"));
    return code;
}
"""


def build_clock(folder: Path) -> Path:
    """Build a library that, loaded first, sets a process's clock off by `CLOCK_OFFSET` seconds."""
    library, source = folder / "clock.so", folder / "clock.c"
    source.write_text(CLOCK)
    compiler = shutil.which("gcc") or shutil.which("c++") or "c++"
    command = [compiler, "-x", "c", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library


FAKE_SSH = """
while [ "$1" != "--" ]; do shift; done
host=$2; shift 2; cmd="$*"
if [ ! -f "$HOSTS/$host" ]; then
    echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255
fi
. "$HOSTS/$host"
exec sh -c "$cmd"
"""


def add_hosts(situation: Situation, **scripts: str) -> None:
    """Let `ssh` reach hosts that are this one, each changed by a shell script of its own.

    Args:
        situation: Gets the hostfile.
        scripts: Last number of an address of the loopback -> a script that may change `$cmd` or the
            environment; `None`: there is no such host.
    """
    situation.add_program("ssh", FAKE_SSH)
    situation.environ["HOSTS"] = str(situation.folder / "hosts.d")
    lines = []
    for number, script in scripts.items():
        name = f"127.0.0.{number.removeprefix('h')}"
        lines.append(f"{name} slots=1")
        if script is not None:
            situation.write(f"hosts.d/{name}", script)
    hostfile = situation.write("hostfile", "\n".join(lines) + "\n")
    situation.words += ["--hostfile", str(hostfile)]


NVIDIA_SMI = """
case "$*" in
*--query-gpu*) echo "0, NVIDIA H100, 570.124.06, 81559, {free}" ;;
*--query-compute-apps*) {apps} ;;
esac
"""


def add_gpu(situation: Situation, *, free: int = 81_000, apps: str = "true") -> None:
    """Let there be a driver with one GPU; torch's answer has to be planted as well."""
    situation.add_program("nvidia-smi", NVIDIA_SMI.format(free=free, apps=apps))
    situation.environ["DS_ACCELERATOR"] = "cuda"


def add_cuda_torch(situation: Situation) -> None:
    """Let `import torch` find one GPU."""
    text = """
__version__ = "2.13.0+cu128"
class version: cuda = "12.8"
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    is_bf16_supported = staticmethod(lambda **_: True)
"""
    situation.write("packages/torch.py", text)
    situation.environ["PYTHONPATH"] = f"{situation.folder / 'packages'}:{ROOT}"
