"""`--sync` between simulated hosts: disks of their own, one shared folder, and what stays here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_hosts import SimulatedHosts, can_simulate

from bigft.errors import LaunchError
from bigft.launch import sync as module
from bigft.launch.child import Answer
from bigft.launch.hostfile import Host
from bigft.launch.sync import find_sharing, sync

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not can_simulate(), reason="needs root, iproute2 and openssh-server"),
]


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return tmp_path / "private"


@pytest.fixture
def hosts(
    tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimulatedHosts]:
    with SimulatedHosts(tmp_path / "hosts", 2, private=[private]) as simulated:
        monkeypatch.setenv("PATH", simulated.write_tools(tmp_path / "bin"))
        yield simulated


def _all(hosts: SimulatedHosts) -> list[Host]:
    return [Host(name, 1) for name in hosts.names]


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_code_arrives_and_what_is_made_stays_here(hosts, private, tmp_path) -> None:
    code = private / "code"
    texts = {
        "run.py": "1",
        "bigft/deep/a.py": "2",
        ".gitignore": "/runs/\n*.bin\n",
        "bigft/.gitignore": "generated.py\n",
        "bigft/generated.py": "made",
        "runs/checkpoint.safetensors": "a terabyte",
        "weights.bin": "made",
        ".git/config": "https://user:password@host/",
        "bigft/__pycache__/a.pyc": "made",
    }
    for name, text in texts.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(text)
    (code / "bigft/deep/run.sh").write_text("#!/bin/sh\n")
    (code / "bigft/deep/run.sh").chmod(0o755)
    (code / "link.py").symlink_to("run.py")
    outside = private / "elsewhere" / "ds config.json"
    outside.parent.mkdir()
    outside.write_text("{}")
    wanted = {"run.py", "bigft/deep/a.py", ".gitignore", "bigft/.gitignore", "link.py"}
    wanted |= {"bigft/deep/run.sh"}
    disks = [hosts.open_private(number, private) for number in (1, 2)]
    (disks[0] / "code").mkdir()
    (disks[0] / "code/theirs.txt").write_text("stays")
    done = sync(_all(hosts), code, [outside, code / "run.py"])
    assert [(one.host, one.is_shared) for one in done] == [(name, False) for name in hosts.names]
    assert _files(disks[0] / "code") == wanted | {"theirs.txt"}
    assert _files(disks[1] / "code") == wanted
    for disk in disks:
        assert (disk / "elsewhere/ds config.json").read_text() == "{}"
        assert os.access(disk / "code/bigft/deep/run.sh", os.X_OK)
        assert (disk / "code/link.py").is_symlink()
    # A change arrives; nothing is left of the question whether the folder is shared.
    (code / "run.py").write_text("changed")
    sync(_all(hosts), code)
    assert all((disk / "code/run.py").read_text() == "changed" for disk in disks)
    assert not [path for path in code.iterdir() if "shared" in path.name]
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "a").write_text("x")
    assert [one.is_shared for one in sync(_all(hosts), shared)] == [True, True]
    assert find_sharing(_all(hosts), code) == dict.fromkeys(hosts.names, False)


def test_every_host_that_fails_is_named(hosts, private) -> None:
    (private / "code").mkdir()
    (private / "code/a.py").write_text("x")
    for number in (1, 2):
        # A file stands where the folder has to be.
        (hosts.open_private(number, private) / "code").write_text("in the way")
    with pytest.raises(LaunchError) as caught:
        sync(_all(hosts), private / "code")
    assert all(f"--sync: {name}" in str(caught.value) for name in hosts.names)
    hosts.kill(2)
    with pytest.raises(LaunchError, match=hosts.names[1].replace(".", r"\.")):
        sync(_all(hosts), private / "code")


def test_an_ipv6_address_is_written_in_brackets(tmp_path, monkeypatch) -> None:
    commands: list[list[str]] = []

    def ask(command: list[str], seconds: float) -> Answer:
        commands.append(command)
        return Answer(0)

    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module, "find_sharing", lambda hosts, _: {h.name: False for h in hosts})
    sync([Host("fe80::1", 1), Host("worker-1", 1)], tmp_path, [Path("/etc/hosts")])
    targets = {command[-1] for command in commands}
    assert targets == {
        f"[fe80::1]:{tmp_path}/",
        "[fe80::1]:/etc/hosts",
        f"worker-1:{tmp_path}/",
        "worker-1:/etc/hosts",
    }
    assert all("-s" in command and command[-3] == "--" for command in commands)
