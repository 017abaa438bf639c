"""Programs on other hosts, by ssh: no passwords, no terminal, and a time limit."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigft.launch.child import Answer, ask
from bigft.launch.environment import read_here

_CONNECT_SECONDS = 5

# A connection over which nothing comes for 20 seconds is given up: a cut network tells nobody.
_ALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")


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
    return ["ssh", *options, *_ALIVE, "-T", "--", host, inner]


def ask_there(
    host: str,
    words: Sequence[str],
    seconds: float,
    environ: Mapping[str, str] | None = None,
    text: str = "",
    *,
    folder: Path | None = None,
) -> Answer:
    """Run a Python program on another host, with the interpreter and the folder of this one.

    Args:
        host: A name that `read_hostfile` has let pass.
        words: Of the program, without the interpreter.
        seconds: Time limit.
        environ: What it gets, too; no secrets, they would be seen there.
        text: What it reads; secrets belong here.
        folder: Where it runs; absent: as here.
    """
    pairs = {**read_here(), **(environ or {})}
    command = render_ssh(host, [sys.executable, *words], pairs, folder or Path.cwd())
    return ask(command, seconds, text=text)
