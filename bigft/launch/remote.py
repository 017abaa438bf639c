"""Programs on other hosts, by ssh: no passwords, no terminal, and a time limit."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigft.errors import LaunchError
from bigft.launch.child import Answer, ask
from bigft.launch.environment import read_here

SSH_OPTIONS = (
    # Nobody is there to answer a question.
    "-oBatchMode=yes",
    "-oConnectTimeout=5",
    # A connection over which nothing comes for 20 seconds is given up: a cut network tells nobody.
    "-oServerAliveInterval=5",
    "-oServerAliveCountMax=3",
    # One that somebody else has opened has limits of its own.
    "-oControlMaster=no",
    "-oControlPath=none",
    # No terminal.
    "-T",
)
"""For every connection to another host; none has a space in it."""


def render_ssh(
    host: str, words: Sequence[str], environ: Mapping[str, str], folder: Path
) -> list[str]:
    """Return the command that runs another one in the same folder of another host.

    Args:
        host: A name that `read_hostfile` has let pass.
        words: The other command; nothing in it is read by a shell.
        environ: What it gets beside its own environment; no secrets, they would be seen there.
        folder: Where it runs.

    Raises:
        LaunchError: A word has a line break in it.
    """
    pairs = [f"{name}={value}" for name, value in environ.items()]
    command = " ".join(map(quote, ["env", *pairs, *words]))
    inner = f"cd {quote(str(folder))} && exec {command}"
    return ["ssh", *SSH_OPTIONS, "--", host, inner]


def quote(word: str) -> str:
    r"""Return a word so that every login shell reads just that.

    That is sh, bash, zsh, ksh, csh, tcsh and fish. Some of them read what `shlex.quote` returns
    otherwise: in fish a backslash between single quotes hides the quote behind it, and the rest of
    the word is run; csh and tcsh look for `!x` in their history also there; and zsh puts a path
    where an unquoted word begins with `=`.

    Raises:
        LaunchError: It has a line break or a NUL in it, which some of them cannot take.
    """
    if wrong := re.search(r"[\n\r\0]", word):
        raise LaunchError(
            f"{word[:80]!r}: {wrong[0]!r} cannot be in a path or variable that goes to other hosts;"
            " rename it"
        )
    if _PLAIN.fullmatch(word):
        return word
    parts = [_QUOTED.get(part, f"'{part}'") for part in re.split(r"(['\\!])", word) if part]
    return "".join(parts) or "''"


_PLAIN = re.compile(r"[A-Za-z0-9_./:@,+-][A-Za-z0-9_./:@,+=-]*", re.ASCII)
_QUOTED = {"'": '"\'"', "\\": "\\\\", "!": "\\!"}


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

    Returns:
        What it said; where there is no ssh, what ssh says when it reaches nobody: code 255.
    """
    pairs = {**read_here(), **(environ or {})}
    command = render_ssh(host, [sys.executable, *words], pairs, folder or Path.cwd())
    try:
        return ask(command, seconds, text=text)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        repair = "; apt-get install openssh-client" if is_missing else ""
        return Answer(255, "", f"ssh: {error.strerror}{repair}")
