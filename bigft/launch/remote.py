"""Programs on other hosts, by ssh: no passwords, no terminal, and a time limit."""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigft.launch.child import Answer, ask

_CONNECT_SECONDS = 5

# Named one by one or by a narrow family: tokens and keys must never be on a command line.
_PASSED_ON = re.compile(
    r"PYTHONPATH|DS_ACCELERATOR|DS_PIN_MEMORY_BACKEND|TORCH_EXTENSIONS_DIR|XDG_CACHE_HOME|HF_HOME"
    r"|HF_HUB_OFFLINE|CXX|OMP_NUM_THREADS|(NCCL|GLOO)_[A-Z0-9_]+"
)


def render_ssh(
    host: str, words: Sequence[str], environ: Mapping[str, str], folder: Path
) -> list[str]:
    """Return the command that runs another one in the same folder of another host.

    Args:
        host: A name that `read_hostfile` has let pass.
        words: The other command; nothing in it is read by a shell.
        environ: What it gets beside its own environment; no secrets, they would be seen there.
        folder: Where it runs.
    """
    pairs = [f"{name}={value}" for name, value in environ.items()]
    inner = f"cd {shlex.quote(str(folder))} && exec {shlex.join(['env', *pairs, *words])}"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    return ["ssh", *options, "-T", "--", host, inner]


def ask_there(
    host: str,
    words: Sequence[str],
    seconds: float,
    environ: Mapping[str, str] | None = None,
    text: str = "",
) -> Answer:
    """Run a Python program on another host, with the interpreter and the folder of this one."""
    kept = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    command = render_ssh(host, [sys.executable, *words], {**kept, **(environ or {})}, Path.cwd())
    return ask(command, seconds, text=text)
