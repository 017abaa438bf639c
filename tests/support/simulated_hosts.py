"""Hosts on one machine: a network namespace, an sshd and a `/dev/shm` of its own for each."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

from planting import can_mount

NETWORK = "10.77.13"


def can_simulate() -> bool:
    """Whether hosts can be made: root, with iproute2 and openssh-server."""
    return can_mount() and all(shutil.which(name, path=_PATH) for name in ("ip", "sshd"))


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class SimulatedHosts:
    """So many hosts `10.77.13.N` on a bridge, for the time of a test."""

    def __init__(self, folder: Path, count: int, environ: dict[int, dict[str, str]]) -> None:
        """Take the environment variables that are different on some of them."""
        self.folder = folder
        self.names = [f"{NETWORK}.{number}" for number in range(1, count + 1)]
        self._environ = environ
        self._tag = f"bf{os.getpid() % 10_000}"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "SimulatedHosts":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def write_ssh(self) -> str:
        """Return a program `ssh` that uses the key of these hosts, and nobody's settings."""
        options = f"-F none -i {self.folder}/key -o StrictHostKeyChecking=no"
        return f'exec {shutil.which("ssh")} {options} -o UserKnownHostsFile=/dev/null "$@"'

    def _start(self) -> None:
        for name in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        shutil.copy(self.folder / "key.pub", self.folder / "authorized")
        Path("/run/sshd").mkdir(exist_ok=True)
        bridge = f"{self._tag}br"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for number, name in enumerate(self.names, 1):
            self._add(number, name, bridge)
        # The bridge's own address, from which ssh comes.
        _run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", bridge)
        deadline = time.monotonic() + 20
        for name in self.names:
            while not _listens(name):
                assert time.monotonic() < deadline, f"no sshd at {name}"
                time.sleep(0.1)

    def _add(self, number: int, name: str, bridge: str) -> None:
        space, link = f"{self._tag}n{number}", f"{self._tag}v{number}"
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", link, "master", bridge, "up")
        for words in (f"addr add {name}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run("ip", "-n", space, *words.split())
        variables = " ".join(f'"{n}={v}"' for n, v in self._environ.get(number, {}).items())
        settings = [
            f"ListenAddress {name}",
            f"HostKey {self.folder}/host_key",
            f"AuthorizedKeysFile {self.folder}/authorized",
            f"PidFile {self.folder}/sshd{number}.pid",
            "UsePAM no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "StrictModes no",
            *([f"SetEnv {variables}"] if variables else []),
        ]
        config = self.folder / f"sshd{number}.conf"
        config.write_text("\n".join(settings) + "\n")
        script = (
            f"hostname w{number} && mount -t tmpfs -o size=2g tmpfs /dev/shm"
            f" && exec {shutil.which('sshd', path=_PATH)} -D -e -f {config}"
        )
        unshare = ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", script]
        with (self.folder / f"sshd{number}.log").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(["ip", "netns", "exec", space, *unshare], stderr=log)
            )

    def _stop(self) -> None:
        for daemon in self._daemons:
            daemon.terminate()
            daemon.wait()
        for number in range(1, len(self.names) + 1):
            subprocess.run(["ip", "netns", "del", f"{self._tag}n{number}"], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self._tag}br"], capture_output=True)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _listens(name: str) -> bool:
    import socket

    try:
        with socket.create_connection((name, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
