"""What a host says of itself, to be compared with others: `python -m bigft.doctor.probe PEER...`.

Light: the time that it names is compared with the time that the question took.
"""

import contextlib
import hashlib
import json
import os
import platform
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import bigft
from bigft.doctor.meeting import free_port
from bigft.doctor.versions import read_versions
from bigft.planner.local import read_gpus

RENDEZVOUS_PORT = 29500
"""Where the ranks of a run meet, unless the launcher is told otherwise."""


def describe_host(peers: list[str]) -> dict[str, Any]:
    """Return what has to be the same on all hosts of a run, and how they are reached from here."""
    return {
        "time": time.time(),
        "hostname": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "folder": str(Path.cwd()),
        "bigft": str(Path(bigft.__file__).resolve().parent),
        "code": digest_code(),
        "versions": read_versions(),
        "routes": {peer: find_route(peer) for peer in peers},
        "is_port_free": is_port_free(RENDEZVOUS_PORT),
        "free_port": free_port(),
        "gpus": len(read_gpus()),
    }


def digest_code() -> str:
    """Return one digest of all sources of this program."""
    root = Path(bigft.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".cpp", ".h", ".inl"):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def find_route(peer: str) -> dict[str, str]:
    """Find the interface and own address by which another host is reached; nothing is sent."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            peer, RENDEZVOUS_PORT, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            own = probe.getsockname()[0]
    except OSError as error:
        return {"error": str(error)}
    found = {"address": own, "peer_address": str(address[0]), "interface": ""}
    found["interface"] = _find_interface(own, family)
    return found


def is_port_free(port: int) -> bool:
    """Say whether a rank could listen at a port."""
    with socket.socket() as probe:
        # As torch's store does: a run that has just ended is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _find_interface(address: str, family: int) -> str:
    if family == socket.AF_INET6:
        wanted = socket.inet_pton(family, address.partition("%")[0]).hex()
        with contextlib.suppress(OSError):
            for line in Path("/proc/net/if_inet6").read_text().splitlines():
                if line.split()[0] == wanted:
                    return line.split()[-1]
        return ""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", os.fsencode(name)[:15])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return "lo" if address.startswith("127.") else ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe_host(sys.argv[1:])) + "\n")
