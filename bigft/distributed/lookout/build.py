"""Which part this rank takes, and where rank 0 listens."""

import contextlib
import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence

from bigft.distributed.lookout.centre import Centre
from bigft.distributed.lookout.limits import Limits
from bigft.distributed.lookout.lines import listen
from bigft.distributed.lookout.outpost import Follower, Outpost
from bigft.distributed.lookout.parties import Door, Ears, Host, Lookout
from bigft.distributed.lookout.standing import Standing

logger = logging.getLogger(__name__)


def open_door(
    meeting_point: str, addresses: Sequence[str], port: int
) -> tuple[socket.socket, Door] | None:
    """Listen where other hosts reach this one.

    Args:
        meeting_point: Name or address by which the ranks have met (`MASTER_ADDR`).
        addresses: Of this host.
        port: 0: any free one.

    Returns:
        None where it is not possible: then other hosts are not watched.
    """
    resolved = _resolve(meeting_point)
    # A host's own name may lead to its loopback, which nobody else can reach.
    usable = [a for a in (*resolved, *addresses) if not _is_local(a)]
    problem: OSError | None = None
    for address in dict.fromkeys(usable):
        try:
            listener = listen(address, port)
        except OSError as error:
            problem = error
            continue
        found = listener.getsockname()[1]
        # The others may have to use another address than the one that it has here (NAT).
        known = tuple(dict.fromkeys([address, meeting_point]))
        return listener, Door(known, found, secrets.token_urlsafe(32))
    logger.warning("no address for other hosts to reach (%s): %s", meeting_point, problem)
    return None


def build_lookout(
    rank: int,
    hosts: Sequence[Host],
    limits: Limits,
    look: Callable[[], list[Standing]],
    ears: Ears,
    opened: tuple[socket.socket | None, Door | None],
) -> Lookout:
    """Choose the part of one rank.

    Args:
        rank: Of this process.
        hosts: All of them; each rank is on one.
        limits: The same on every rank.
        look: Surveys this host's ranks.
        ears: Who acts.
        opened: The listening socket, of rank 0 only, and what all know of it.
    """
    own = next(host for host in hosts if rank in host.ranks)
    listener, door = opened
    if rank == 0:
        others = [host for host in hosts if host is not own]
        token = door.token if door is not None else ""
        return Centre(limits, own, others, look, ears, listener=listener, token=token)
    if rank != own.leader or door is None or 0 in own.ranks:
        return Follower(own, None if 0 in own.ranks else door)
    centre = next(host for host in hosts if 0 in host.ranks)
    first = min(host.leader for host in hosts if host is not centre)
    speaks = rank == first
    return Outpost(limits, own, centre.name, door, look, ears, speaks=speaks)


def find_meeting_point() -> str:
    """Return the name or address by which the ranks have met."""
    return os.environ.get("MASTER_ADDR", "")


def _resolve(name: str) -> list[str]:
    with contextlib.suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return []


def _is_local(address: str) -> bool:
    """Whether an address means nothing on other hosts."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return True
    return found.is_loopback or found.is_link_local or found.is_unspecified
