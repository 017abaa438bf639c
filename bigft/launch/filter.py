"""`--include` and `--exclude`: which hosts and slots of a hostfile a run uses.

Written as for DeepSpeed:

worker-0@worker-1:0,2     all of worker-0, and slots 0 and 2 of worker-1
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from bigft.errors import LaunchError, raise_together
from bigft.launch.hostfile import Host, show

_SLOT = re.compile(r"[0-9]{1,6}", re.ASCII)
_LISTED = 20


def choose_hosts(hosts: Sequence[Host], include: str, exclude: str) -> list[Host]:
    """Return the hosts that are left, in the order of the hostfile.

    Raises:
        LaunchError: A filter is wrong, names what is not there, or leaves nothing; or both are
            given. All problems are listed.
    """
    if include and exclude:
        raise LaunchError("--include and --exclude: give one of them")
    if not include and not exclude:
        return list(hosts)
    flag, text = ("--include", include) if include else ("--exclude", exclude)
    parts = _read(flag, text, {host.name: host for host in hosts})
    chosen = _keep(hosts, parts) if include else _drop(hosts, parts)
    if not chosen:
        raise LaunchError(f"{flag} {show(text)}: leaves no host")
    return chosen


def _read(flag: str, text: str, known: dict[str, Host]) -> dict[str, tuple[int, ...]]:
    """Return the slots of every host that is named; empty: all."""
    parts: dict[str, tuple[int, ...]] = {}
    problems: list[str] = []
    for word in text.split("@"):
        name, colon, numbers = word.strip().rpartition(":")
        # An IPv6 address has colons of its own; slots cannot follow it without a name.
        if not colon or word.strip() in known:
            name, colon, numbers = word.strip(), "", ""
        where = f"{flag} {show(text)}: {show(word.strip())}"
        if name not in known:
            problems.append(f"{where}: no such host in the hostfile ({_list(known)})")
        elif name in parts:
            problems.append(f"{where}: {name} is named twice")
        else:
            parts[name] = _read_slots(numbers, known[name], where, problems) if colon else ()
    if problems:
        raise_together(LaunchError, problems)
    return parts


def _read_slots(text: str, host: Host, where: str, problems: list[str]) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    wrong = [w for w in words if not (_SLOT.fullmatch(w) and int(w) < host.slots)]
    if wrong:
        problems.append(f"{where}: {show(', '.join(wrong))}: slots are 0 to {host.slots - 1} there")
        return ()
    if len(set(map(int, words))) < len(words):
        problems.append(f"{where}: a slot is named twice")
    return tuple(sorted({int(word) for word in words}))


def _list(names: Collection[str]) -> str:
    more = ", ..." if len(names) > _LISTED else ""
    return ", ".join([*names][:_LISTED]) + more


def _keep(hosts: Sequence[Host], parts: dict[str, tuple[int, ...]]) -> list[Host]:
    return [_with(host, parts[host.name]) for host in hosts if host.name in parts]


def _drop(hosts: Sequence[Host], parts: dict[str, tuple[int, ...]]) -> list[Host]:
    chosen = []
    for host in hosts:
        dropped = parts.get(host.name)
        if dropped is None:
            chosen.append(host)
        elif dropped and len(dropped) < host.slots:
            left = [slot for slot in range(host.slots) if slot not in dropped]
            chosen.append(_with(host, tuple(left)))
    return chosen


def _with(host: Host, slots: tuple[int, ...]) -> Host:
    return replace(host, slots=len(slots), devices=slots) if slots else host
