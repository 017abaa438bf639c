"""Hosts on one machine: network, processes, `/dev/shm` and an sshd of its own for each.

Each is a network namespace with an address on a bridge, and a process namespace whose first process
is its sshd: killing that one ends everything on the host at once, as a power cut does. The file
system is shared, except what `private` names.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from planting import can_mount

NETWORK = f"10.{60 + os.getpid() // 250 % 60}.{os.getpid() % 250}"
"""Of this process: several may simulate hosts at the same time."""


def can_simulate() -> bool:
    """Whether hosts can be made: root, with iproute2 and openssh-server."""
    return can_mount() and all(shutil.which(name, path=_PATH) for name in ("ip", "sshd"))


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class SimulatedHosts:
    """So many hosts `10.x.y.N` on a bridge, for the time of a test."""

    def __init__(
        self,
        folder: Path,
        count: int,
        environ: dict[int, dict[str, str]] | None = None,
        *,
        private: Sequence[Path] = (),
        private_size: str = "2g",
    ) -> None:
        """Take what is different on some of them.

        Args:
            folder: For keys, configurations and logs.
            count: Of hosts, numbered from 1.
            environ: Number -> environment variables.
            private: Folders with other contents on every host, each an empty disk of its own that
                outlives the host's processes; `open_private` looks into them.
            private_size: Of each such disk.
        """
        self.folder = folder
        self.names = [f"{NETWORK}.{number}" for number in range(1, count + 1)]
        self._environ = environ or {}
        self._private = list(private)
        self._private_size = private_size
        self._tag = f"bf{os.getpid() % 10_000}"
        self._daemons: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "SimulatedHosts":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    # How they are used.

    def write_ssh(self) -> str:
        """Return a program `ssh` that uses the key of these hosts, and nobody's settings."""
        options = f"-F none -i {self.folder}/key -o StrictHostKeyChecking=no -o LogLevel=ERROR"
        return f'exec {shutil.which("ssh")} {options} -o UserKnownHostsFile=/dev/null "$@"'

    def write_tools(self, folder: Path) -> str:
        """Write `ssh` into a folder and return a PATH with it and this interpreter in front."""
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "ssh"
        program.write_text(f"#!/bin/sh\n{self.write_ssh()}\n")
        program.chmod(0o755)
        return os.pathsep.join([str(folder), str(Path(sys.executable).parent), _PATH])

    def write_hostfile(self, path: Path, slots: Sequence[int] = ()) -> Path:
        """Write a hostfile with one slot per host, or as many as are given."""
        counts = slots or [1] * len(self.names)
        pairs = zip(self.names, counts, strict=False)
        path.write_text("".join(f"{name} slots={count}\n" for name, count in pairs))
        return path

    def open_private(self, number: int, folder: Path) -> Path:
        """Return where a private folder of a host lies for everybody."""
        return self._disk(number, self._private.index(folder))

    def processes(self, number: int, word: str = "") -> list[int]:
        """Process ids, as this machine counts, of what runs on a host; zombies are left out."""
        leader = self._daemons.get(number)
        if leader is None or leader.poll() is not None:
            return []
        space = _find_space(self._first(number))
        return [
            pid
            for pid in map(int, (p.name for p in Path("/proc").glob("[0-9]*")))
            if _find_space(pid) == space and word in _command_of(pid) and not _is_zombie(pid)
        ]

    # What may happen to them.

    def kill(self, number: int) -> None:
        """End everything on a host at once; its disks and its address stay."""
        os.kill(self._first(number), signal.SIGKILL)
        self._daemons.pop(number).wait()

    def boot(self, number: int) -> None:
        """Start a killed host again."""
        self._daemons[number] = self._start_daemon(number)
        self._wait_for([self.names[number - 1]])

    def cut(self, number: int) -> None:
        """Take a host from the network: nothing arrives, nobody is told."""
        _run("ip", "link", "set", f"{self._tag}v{number}", "down")

    def mend(self, number: int) -> None:
        """Put a host back on the network."""
        _run("ip", "link", "set", f"{self._tag}v{number}", "up")

    # How they are made.

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("key", "host_key"):
            if not (self.folder / name).exists():
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
        self._wait_for(self.names)

    def _wait_for(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + 20
        for name in names:
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
        for index in range(len(self._private)):
            disk = self._disk(number, index)
            disk.mkdir(parents=True)
            _run("mount", "-t", "tmpfs", "-o", f"size={self._private_size}", "tmpfs", str(disk))
        self._daemons[number] = self._start_daemon(number)

    def _start_daemon(self, number: int) -> subprocess.Popen[bytes]:
        space = f"{self._tag}n{number}"
        variables = " ".join(f'"{n}={v}"' for n, v in self._environ.get(number, {}).items())
        settings = [
            f"ListenAddress {self.names[number - 1]}",
            f"HostKey {self.folder}/host_key",
            f"AuthorizedKeysFile {self.folder}/authorized",
            "PidFile none",
            "UsePAM no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "StrictModes no",
            "MaxStartups 100",
            *([f"SetEnv {variables}"] if variables else []),
        ]
        config = self.folder / f"sshd{number}.conf"
        config.write_text("\n".join(settings) + "\n")
        steps = [f"hostname w{number}", "mount -t tmpfs -o size=2g tmpfs /dev/shm"]
        for index, folder in enumerate(self._private):
            folder.mkdir(parents=True, exist_ok=True)
            steps.append(f"mount --bind {self._disk(number, index)} {folder}")
        steps.append(f"exec {shutil.which('sshd', path=_PATH)} -D -e -f {config}")
        unshare = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        unshare += ["--propagation", "private", "sh", "-c", " && ".join(steps)]
        with (self.folder / f"sshd{number}.log").open("ab") as log:
            return subprocess.Popen(["ip", "netns", "exec", space, *unshare], stderr=log)

    def _disk(self, number: int, index: int) -> Path:
        return self.folder / f"disk{number}.{index}"

    def _first(self, number: int) -> int:
        """The first process of a host, as this machine counts."""
        pid = self._daemons[number].pid
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if words:
                return int(words[0])
            time.sleep(0.02)
        raise AssertionError(f"host {number} has no first process")

    def _stop(self) -> None:
        for number in list(self._daemons):
            self.kill(number)
        for number in range(1, len(self.names) + 1):
            # The link by itself: the namespace and what is in it go later, when they like.
            subprocess.run(["ip", "link", "del", f"{self._tag}v{number}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", f"{self._tag}n{number}"], capture_output=True)
            for index in range(len(self._private)):
                words = ["umount", "-l", str(self._disk(number, index))]
                subprocess.run(words, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self._tag}br"], capture_output=True)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _find_space(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


def _command_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return words.replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _listens(name: str) -> bool:
    try:
        with socket.create_connection((name, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
