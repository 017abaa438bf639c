"""Hostile strings through `bigft launch` and a real sshd: none is executed, each arrives as it is.

The ranks only say what has arrived: a stand-in takes the place of DeepSpeed's launcher.
"""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostile_words import NAMES, ROOT, TELL, make_job, make_strings, read_told, stand_in_environ
from simulated_hosts import SimulatedHosts, can_simulate

from bigft.launch.conduct import Conductor
from bigft.launch.hostfile import Host
from bigft.launch.sync import sync

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not can_simulate(), reason="needs root, iproute2 and openssh-server"),
]

QUICK = ["hidden_quote", "newline"]
NO_FOLDER = {"nul", "four_kilobytes"}
"""What no system takes for a name."""
NOT_BY_SSH = {"newline", "windows_line", "carriage_return"}
"""What not every login shell takes; refused."""
NOT_COPIED = {"star", "question_mark", "brackets", "tab", "terminal"} | NOT_BY_SSH
"""What rsync takes for a pattern, and control characters."""


@dataclass
class Place:
    """A host with a disk of its own, and what is tried there."""

    hosts: SimulatedHosts
    folder: Path
    private: Path
    environ: dict[str, str]

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    @property
    def log(self) -> str:
        return (self.folder / "hosts/sshd1.log").read_text()

    def launch(
        self, options: list[str], words: list[str], cwd: Path, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bigft", "launch", *options, "--", "train"]
        config = f"--config={ROOT / 'ds_configs/zero2.json'}"
        return subprocess.run(
            [*command, config, *words],
            env={**self.environ, **environ},
            cwd=cwd,
            capture_output=True,
            timeout=120,
            text=True,
            errors="replace",
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    # A short name: a folder below it has a long one.
    folder = tmp_path_factory.mktemp("h")
    private = folder / "private"
    with SimulatedHosts(folder / "hosts", 1, private=[private]) as hosts:
        path = hosts.write_tools(folder / "bin")
        environ = {**os.environ, **stand_in_environ(TELL), "PATH": path}
        (folder / "hostfile").write_text(f"{hosts.names[0]} slots=1\n")
        before, os.environ["PATH"] = os.environ["PATH"], path
        yield Place(hosts, folder, private, environ)
        os.environ["PATH"] = before
    # Not one case of all the tests here.
    assert not (folder / "canary").exists()


def make_folder(base: Path, name: str, text: str) -> Path:
    folder = base if name in NO_FOLDER else base / text
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_arrival(place: Place, name: str) -> None:
    """One string as a setting, as a variable, as the folder and as the run folder of one launch.

    Not one with a NUL: no program can be started with that.
    """
    text = make_strings(place.canary)[name]
    told = place.folder / f"{name}.json"
    options = [f"--hostfile={place.folder / 'hostfile'}", "--check=off"]
    options.append("--env=HOSTILE_VALUE,STAND_IN,STAND_IN_OUT")
    words = [f"--model.tokenizer={text}", f"--output_dir={place.folder}/runs/{text}"]
    environ = {"HOSTILE_VALUE": text, "STAND_IN_OUT": str(told)}
    folder = make_folder(place.folder / "folders", name, text)
    done = place.launch(options, words, folder, **environ)
    if name in NOT_BY_SSH:
        assert done.returncode == 6, done.stderr
        assert "rename it" in done.stderr
        assert not told.exists()
        folder = place.folder
        words[-1] = f"--output_dir={folder}/run"
        done = place.launch(options, words, folder, **environ)
    assert done.returncode == 0, done.stderr
    arrived = read_told(told)
    assert arrived["words"][2:] == words
    assert arrived["environ"] == {"HOSTILE_VALUE": text}
    assert arrived["folder"] == str(folder)
    assert text == text.strip("\n") or text not in done.stderr
    assert not place.canary.exists()


@pytest.mark.parametrize("name", QUICK)
def test_arrives_or_is_refused(place: Place, name: str) -> None:
    check_arrival(place, name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in NAMES if name != "nul"])
def test_all_arrive_or_are_refused(place: Place, name: str) -> None:
    check_arrival(place, name)


def check_refusal(place: Place, name: str) -> None:
    """One string as a host in four ways, and as the name of a variable: nothing is started."""
    text = make_strings(place.canary)[name]
    hostfile = place.folder / "hostile_hosts"
    hostfile.write_bytes(f"{text} slots=1\n".encode("utf-8", "surrogateescape"))
    good = f"--hostfile={place.folder / 'hostfile'}"
    cases: list[list[str]] = [[f"--hostfile={hostfile}"]]
    if "\0" not in text:
        cases += [[good, f"--include={text}"], [good, f"--exclude={text}"]]
        cases += [[good, f"--master_addr={text}"], [good, f"--env={text}"]]
    before = place.log
    for options in cases:
        done = place.launch([*options, "--check=off"], [], place.folder)
        assert done.returncode == (2 if "master" in options[-1] else 6), (options, done.stderr)
        flag = options[-1].partition("=")[0]
        assert (flag if len(options) > 1 else str(hostfile)) in done.stderr
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stderr
        assert done.stdout == ""
    assert place.log == before, "a connection was made"
    assert not place.canary.exists()


def test_is_refused_as_a_name(place: Place) -> None:
    check_refusal(place, "ssh_option")


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_all_are_refused_as_names(place: Place, name: str) -> None:
    check_refusal(place, name)


def test_all_at_once_at_a_rank(place: Place) -> None:
    strings = make_strings(place.canary)
    words = [*strings.values(), *(f"--a.b={text}" for text in strings.values())]
    environ = {f"HOSTILE_{n}": t for n, t in strings.items() if "\0" not in t}
    told = place.folder / "all.json"
    job = make_job(
        place.hosts.names[0],
        TELL,
        place.folder,
        words=words,
        environ={**environ, "STAND_IN_OUT": str(told)},
    )
    err = io.StringIO()
    assert Conductor(io.StringIO(), err).run([job]).code == 0, err.getvalue()
    arrived = read_told(told)
    assert arrived["words"] == words
    assert arrived["environ"] == environ
    assert not place.canary.exists()


def check_copy(place: Place, names: list[str]) -> None:
    """Folders with such names, and neighbours that a pattern would match."""
    disk = place.hosts.open_private(1, place.private)
    host = [Host(place.hosts.names[0], 1)]
    strings = make_strings(place.canary)
    for base in (place.private, disk):
        (base / "base").mkdir(exist_ok=True)
        for other in ("b", "x", "a b"):
            (base / "base" / other).mkdir(exist_ok=True)
    for name in names:
        folder = make_folder(place.private / "base", name, strings[name])
        (folder / "code.py").write_text(name)
        there = disk / folder.relative_to(place.private) / "code.py"
        if name in NOT_COPIED:
            with pytest.raises(Exception, match="rename it") as caught:
                sync(host, folder)
            assert getattr(caught.value, "exit_code", 0) == 6
            assert not there.exists()
        else:
            assert [done.is_shared for done in sync(host, folder)] == [False]
            assert there.read_text() == name
    assert [p.name for p in (disk / "base/b").iterdir()] == []
    assert not place.canary.exists()


def test_is_copied_to_just_that_folder(place: Place) -> None:
    check_copy(place, ["hidden_quote", "brackets"])


@pytest.mark.nightly
def test_all_are_copied_or_refused(place: Place) -> None:
    check_copy(place, [name for name in NAMES if name not in NO_FOLDER])
