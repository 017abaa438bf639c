"""Copies code and configuration to other hosts, where they do not share a folder (rsync)."""

import re
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bigft.errors import LaunchError, raise_together
from bigft.launch.child import ask
from bigft.launch.hostfile import Host
from bigft.launch.remote import SSH_OPTIONS, ask_there

_LOOK_SECONDS = 20.0
_COPY_SECONDS = 600.0
_AT_ONCE = 16
_SSH = " ".join(["ssh", *SSH_OPTIONS])

# What git leaves out is made, not written; and checkpoints may be a terabyte.
_LEFT_OUT = ("--exclude=.git/", "--filter=:- .gitignore", "--exclude=__pycache__/")


@dataclass(frozen=True)
class Synced:
    """What was done for a host."""

    host: str
    is_shared: bool
    """It sees the same folder: there was nothing to do."""


def find_sharing(hosts: Sequence[Host], folder: Path) -> dict[str, bool]:
    """Tell which hosts see this very folder, by a file in it that only a moment exists.

    A host that does not answer does not see it; it is copied to, and that says what is wrong.

    Raises:
        LaunchError: The folder cannot be written.
    """
    token = folder / f".bigft-shared-{uuid.uuid4().hex}"
    try:
        token.touch()
    except OSError as error:
        raise LaunchError(f"--sync: {folder} cannot be written ({error.strerror})") from error
    try:
        code = "import os, sys; print(os.path.exists(sys.argv[1]))"
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = list(
                pool.map(
                    lambda host: ask_there(
                        host.name, ["-c", code, str(token)], _LOOK_SECONDS, folder=Path("/")
                    ),
                    hosts,
                )
            )
    finally:
        token.unlink(missing_ok=True)
    return {
        host.name: answer.out.strip().endswith("True")
        for host, answer in zip(hosts, answers, strict=True)
    }


def sync(
    hosts: Sequence[Host], folder: Path, extra: Sequence[Path] = (), without: Sequence[Path] = ()
) -> list[Synced]:
    """Copy a folder to the same place on every host that does not share it.

    Args:
        hosts: All of the run.
        folder: Code and configuration; what its .gitignore names stays here.
        extra: Files outside of it that the command line names.
        without: Folders that stay here, wherever they are: a run writes there itself.

    Raises:
        LaunchError: rsync is missing, or fails on some hosts; or a path cannot be copied to the
            same place. All are listed.
    """
    if shutil.which("rsync") is None:
        raise LaunchError("--sync needs rsync, here and on every host; apt-get install rsync")
    # What the copy of the folder does not bring.
    outside = [
        path
        for path in extra
        if not path.is_relative_to(folder) or any(path.is_relative_to(one) for one in without)
    ]
    problems = [wrong for path in (folder, *outside) if (wrong := _explain_path(str(path)))]
    if problems:
        raise_together(LaunchError, problems)
    shared = find_sharing(hosts, folder)
    left_out = [*_LEFT_OUT, *(_exclude(folder, one) for one in without if folder in one.parents)]

    def copy(host: Host) -> Synced:
        if not shared[host.name]:
            problem = _copy(host.name, folder, outside, left_out)
            problems.extend([problem] if problem else [])
        return Synced(host.name, shared[host.name])

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        done = list(pool.map(copy, hosts))
    if problems:
        raise_together(LaunchError, sorted(problems))
    return done


def _explain_path(path: str) -> str | None:
    # With `-s` no shell reads the path over there. rsync itself does: it looks for files that
    # match, and `runs/[b]` would be written into `runs/b`.
    sign = re.search(r"[*?\[\x00-\x1f\x7f]", path)
    return f"--sync: {path!r}: rsync takes {sign[0]!r} for a pattern; rename it" if sign else None


def _exclude(folder: Path, inner: Path) -> str:
    """Return the option that leaves a folder below another one out.

    rsync takes a backslash for itself only where the rest could be a pattern.
    """
    path = str(inner.relative_to(folder))
    if re.search(r"[*?\[]", path):
        path = re.sub(r"[*?\[\\]", r"\\\g<0>", path)
    return f"--exclude=/{path}/"


def _copy(host: str, folder: Path, outside: Sequence[Path], left_out: Sequence[str]) -> str | None:
    """Say what went wrong, or None."""
    # An IPv6 address has colons, which end the host for rsync.
    place = f"[{host}]" if ":" in host else host
    common = ["rsync", "-a", "-s", "--mkpath", "-e", _SSH]
    commands = [[*common, *left_out, "--", f"{folder}/", f"{place}:{folder}/"]]
    commands += [[*common, "--", str(path), f"{place}:{path}"] for path in outside]
    for command in commands:
        answer = ask(command, _COPY_SECONDS)
        if answer.code != 0:
            said = answer.last_words if answer.code is not None else "did not end in time"
            return f"--sync: {host}: {said}"
    return None
