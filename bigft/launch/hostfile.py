"""Hostfiles: a line `NAME slots=N` per host, read strictly.

DeepSpeed reads `slots=4abc` as 4, `slots=2 slots=8` as 2, takes a line that begins with `-o` for a
host and hands it to ssh as an option, and goes on with one machine when the file is missing. Here
each of these is an error.
"""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigft.errors import LaunchError, raise_together

_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,32}")
_MOST_BYTES = 4 << 20
_SHOWN = 80
_SLOTS = re.compile(r"slots=([0-9]{1,4})", re.ASCII)
_FOREIGN = {
    "@": "no user here; put `User` for this host into ~/.ssh/config",
    "[": "an IPv6 address is written without brackets, and without a port",
    ":": "no port here; put `Port` for this host into ~/.ssh/config",
}


@dataclass(frozen=True)
class Host:
    """One line of a hostfile."""

    name: str
    """A name as in RFC 1123, or an IP address."""

    slots: int
    """Ranks on it."""

    devices: tuple[int, ...] = ()
    """The devices of its ranks, chosen by a filter; empty: the first ones."""


def read_hostfile(path: Path) -> list[Host]:
    """Read all hosts, in the order of their ranks.

    Raises:
        LaunchError: The file is missing, empty, or has wrong lines; all of them are listed.
    """
    path = path.expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise LaunchError(
            f"hostfile {path}: {error.strerror}; write a line `NAME slots=N` per host"
        ) from error
    except UnicodeDecodeError as error:
        raise LaunchError(f"hostfile {path}: not a text file ({error.reason})") from error
    if len(data) > _MOST_BYTES:
        raise LaunchError(f"hostfile {path}: longer than {_MOST_BYTES:,} bytes: no list of hosts")
    hosts: list[Host] = []
    problems: list[str] = []
    first_lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{path}, line {number}"
        wrong = [*_find_wrong(words, where)]
        key = _find_key(words[0])
        if not wrong and key in first_lines:
            wrong.append(
                f"{where}: {words[0]} is in line {first_lines[key]} already; write one line with"
                " all its slots"
            )
        first_lines.setdefault(key, number)
        problems += wrong
        if not wrong:
            hosts.append(Host(words[0], int(words[1].removeprefix("slots="))))
    if not problems and not hosts:
        problems.append(f"hostfile {path}: names no host; write a line `NAME slots=N` per host")
    if problems:
        raise_together(LaunchError, problems)
    return hosts


def explain_bad_name(name: str) -> str | None:
    """Say why a text is no host; None: it is one.

    What passes is safe as a word after `--` of an ssh command line.
    """
    address, percent, zone = name.partition("%")
    labels = name.split(".")
    if _is_address(address):
        is_bad = bool(percent) and (":" not in address or not _ZONE.fullmatch(zone))
        return "the zone after % is no name of a network interface" if is_bad else None
    if name.startswith("-"):
        return "ssh would take it for an option"
    for sign, why in _FOREIGN.items():
        if sign in name:
            return why
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "not a host name: letters, digits and hyphens, in parts of 1 to 63 between dots"
    if labels[-1].isdigit():  # An address with a mistake in it.
        return "neither an IP address nor a name: the last part of one is no number"
    return None


def _find_wrong(words: list[str], where: str) -> Iterator[str]:
    name, *rest = words
    why = explain_bad_name(name)
    if why is not None:
        yield f"{where}: {show(name)}: {why}"
    slots = [word for word in rest if word.startswith("slots=")]
    others = [word for word in rest if not word.startswith("slots=")]
    if others:
        yield f"{where}: {show(' '.join(others))}: only `slots=N` may follow the name"
    if len(slots) != 1:
        given = show(" and ".join(slots)) if slots else "no slots"
        yield f"{where}: {given}; write `slots=N` once, N being the ranks on this host"
    elif not _SLOTS.fullmatch(slots[0]) or int(slots[0].removeprefix("slots=")) == 0:
        yield f"{where}: {show(slots[0])}: must be a whole number from 1 to 9999"


def show(text: str) -> str:
    """Return a text for an error: quoted, and not too long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _find_key(name: str) -> str:
    """Return what two spellings of one host have in common."""
    return str(ipaddress.ip_address(name)) if _is_address(name) else name.lower()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
