"""Compile the library: by `setup.py` where there is a compiler, else when it is first needed.

One file per instruction set, each with its own flags, and a choice when it is called: the same
library runs on every machine of its architecture. Imports nothing but the standard library, because
`setup.py` runs it as well.
"""

import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
NAME = "libbigft_adamw.so"

_COMMON = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    # A multiplication and an addition are one operation where the source says so, and only there.
    "-ffp-contract=off",
    "-fno-math-errno",
]
_FLAGS = {
    "adamw.cpp": [],
    "scalar.cpp": [],
    "neon.cpp": [],
    "avx2.cpp": ["-mavx2", "-mfma"],
    "avx512.cpp": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512vbmi",
        "-mfma",
    ],
}
_X86_ONLY = ("avx2.cpp", "avx512.cpp")


class BuildError(Exception):
    """The compiler is missing or has failed; the message has its last words."""


def digest_sources() -> str:
    """Name this version of the library: sources, flags and architecture."""
    digest = hashlib.sha256(repr((_COMMON, _FLAGS, platform.machine())).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h", ".inl"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(target: Path, compiler: str | None = None, machine: str | None = None) -> None:
    """Compile and link; the library appears whole or not at all.

    Args:
        target: The library's path; its folder exists.
        compiler: A command; absent: `$CXX` or `c++`.
        machine: As `platform.machine()` names it; absent: this one.

    Raises:
        BuildError: No compiler, or it failed.
        OSError: The folder cannot be written to.
    """
    command = shlex.split(compiler or os.environ.get("CXX") or "c++")
    is_x86 = (machine or platform.machine()).lower() in ("x86_64", "amd64")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        objects = []
        for name, flags in _FLAGS.items():
            made = f"{folder}/{name}.o"
            extra = flags if is_x86 or name not in _X86_ONLY else []
            _run([*command, *_COMMON, *extra, "-c", str(SOURCES / name), "-o", made])
            objects.append(made)
        linked = f"{folder}/{target.name}"
        _run([*command, "-shared", "-fopenmp", *objects, "-o", linked])
        os.replace(linked, target)  # noqa: PTH105


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise BuildError(f"{shlex.join(command)} failed: {last}")
