"""Twelve secrets in six places of a launch: none is shown, written, or on a command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hostile_words import ROOT, stand_in_environ
from planted_secrets import NEGATIVES, SECRETS, CommandLines, find_hits, watch_command_lines
from simulated_hosts import SimulatedHosts, can_simulate

from bigft.redact import redact_text

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not can_simulate(), reason="needs root, iproute2 and openssh-server"),
]

MULTILINE = {"LONG_PASSPHRASE", "DEPLOY_PRIVATE_KEY"}

# What ranks do here: print all that they were given, in every form, and fail.
PRINT = """
import json, os, sys
words = json.loads(os.environ["BIGFT_WORDS"])
values = [os.environ[name] for name in os.environ.get("PLANTED", "").split(",") if name]
values += [word.partition("=")[2] for word in words if ".api_key=" in word]
for word in words:
    if word.startswith("--recipe="):
        values.append(open(word[9:]).read())
    if word.startswith("--config="):
        values += json.load(open(word[9:])).get("comet", {}).values()
assert values
for value in values:
    for form in (value, repr(value), json.dumps(value), f"x={value}!", f"Error: {[value]}"):
        print(form)
        print(form, file=sys.stderr)
for line in json.loads(os.environ["NEGATIVES"]):
    print(line)
sys.stderr.write("in the middle of a line " + values[0])
sys.stderr.flush()
raise RuntimeError(f"a bug with {values}")
"""


@dataclass
class Place:
    hosts: SimulatedHosts
    folder: Path
    environ: dict[str, str]

    def launch(
        self, words: list[str], names: str = "", *, host: int = 1, **environ: str
    ) -> "Launched":
        """Launch on one host, and look at all command lines meanwhile."""
        hostfile = self.folder / "hostfile"
        hostfile.write_text(f"{self.hosts.names[host - 1]} slots=1\n")
        cwd = self.folder / "cwd"
        cwd.mkdir(exist_ok=True)
        flags = [f"--hostfile={hostfile}", "--check=off", f"--env=STAND_IN,NEGATIVES,{names}"]
        with watch_command_lines() as lines:
            process = subprocess.Popen(
                [sys.executable, "-m", "bigft", "launch", *flags, "--", "train", *words],
                env={**self.environ, **environ},
                cwd=cwd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            out, err = process.communicate(timeout=120)
        return Launched(process.returncode, out, err, lines, process.pid)


@dataclass
class Launched:
    code: int
    out: bytes
    err: bytes
    lines: CommandLines
    pid: int

    def check(self, code: int, *, typed: bool = False) -> None:
        """Nothing is shown; only what the user types is on the launcher's own command line."""
        assert self.code == code, self.err
        assert find_hits(self.out, self.err) == []
        assert self.lines.rate > 10
        assert self.lines.find_hits([self.pid] if typed else []) == {}

    def has_seen_agents(self) -> bool:
        return any(b"bigft.launch.agent" in x for lines in self.lines.seen.values() for x in lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("secrets")
    # The second host says all it knows to everybody who logs in, and does nothing else.
    talk = "".join(f"cat <<'EOF' >&2\n{value}\nEOF\n" for value in SECRETS.values())
    (folder / "talk").mkdir()
    (folder / "talk/env").write_text(f"#!/bin/sh\n{talk}exit 1\n")
    (folder / "talk/env").chmod(0o755)
    environ = {2: {"PATH": f"{folder}/talk:/usr/bin:/bin"}}
    with SimulatedHosts(folder / "hosts", 2, environ) as hosts:
        path = hosts.write_tools(folder / "bin")
        given = {**os.environ, **stand_in_environ(PRINT), "PATH": path}
        given["NEGATIVES"] = json.dumps(NEGATIVES)
        given["HOME"] = str(folder)
        yield Place(hosts, folder, given)


@pytest.fixture
def config(tmp_path: Path) -> str:
    return f"--config={ROOT / 'ds_configs/zero2.json'}"


def test_there_are_twelve() -> None:
    assert len(SECRETS) == 12
    assert find_hits(*SECRETS.values()) == list(SECRETS)
    assert len(NEGATIVES) == 30
    assert [text for text in NEGATIVES if redact_text(text) != text] == []


# 1 and 5: by name from the environment; and every rank prints all of them.


def test_in_the_environment_and_in_what_a_rank_prints(place: Place, config: str) -> None:
    names = ",".join(SECRETS)
    done = place.launch([config], f"{names},PLANTED", **SECRETS, PLANTED=names)
    done.check(1)
    shown = done.out.decode()
    assert all(text in shown for text in NEGATIVES)
    assert b"in the middle of a line ***" in done.err
    assert b"RuntimeError: a bug with" in done.err
    assert done.has_seen_agents()


# 2: in .deepspeed_env.


def test_in_the_file_of_variables(place: Place, config: str, tmp_path: Path) -> None:
    file = tmp_path / "variables"
    lines = [f"{name}={text}" for name, text in SECRETS.items() if name not in MULTILINE]
    names = ",".join(name for name in SECRETS if name not in MULTILINE)
    file.write_text("\n".join([*lines, f"PLANTED={names}"]))
    place.launch([config], DS_ENV_FILE=str(file)).check(1)
    # Several lines cannot be there: the message says which, and not what is in them.
    file.write_text("\n".join(f"{name}={text}" for name, text in SECRETS.items()))
    done = place.launch([config], DS_ENV_FILE=str(file))
    done.check(6)
    assert b"line 11: write NAME=VALUE" in done.err


# 3 and 4: as the value of a setting, typed, or in the JSON and in a recipe.


def check_setting(place: Place, config: str, tmp_path: Path, name: str) -> None:
    text = SECRETS[name]
    place.launch([config, f"--ds.comet.api_key={text}"]).check(1, typed=True)
    ds = json.loads((ROOT / "ds_configs/zero2.json").read_text())
    (tmp_path / "ds.json").write_text(json.dumps({**ds, "comet": {"api_key": text}}))
    # Under such a name it is known by its look alone.
    recipe = {"monitor": {"project": SECRETS["OPENAI_KEY"]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = [f"--config={tmp_path / 'ds.json'}", f"--recipe={tmp_path / 'recipe.yaml'}"]
    place.launch(words).check(1)


@pytest.mark.parametrize("name", ["QUOTED_PASSWORD"])
def test_in_a_setting(place: Place, config: str, tmp_path: Path, name: str) -> None:
    check_setting(place, config, tmp_path, name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", SECRETS)
def test_each_in_a_setting(place: Place, config: str, tmp_path: Path, name: str) -> None:
    check_setting(place, config, tmp_path, name)


# 6: in what a failing host says.


def test_in_the_error_of_a_host(place: Place, config: str) -> None:
    done = place.launch([config], ",".join(SECRETS), host=2, **SECRETS)
    done.check(6)
    assert place.hosts.names[1].encode() in done.err


# With real ranks: what a run leaves behind.


@pytest.mark.nightly
def test_a_real_run_leaves_none(place: Place, tmp_path: Path) -> None:
    run = place.folder / "run"
    names = ",".join(SECRETS)
    words = [f"--config={ROOT / 'ds_configs/zero2.json'}", "--max_steps=1", "--max_length=32"]
    words += [f"--output_dir={run}", f"--ds.comet.api_key={SECRETS['QUOTED_PASSWORD']}"]
    words += ["--ds.comet.enabled=false"]
    real = {"PYTHONPATH": str(ROOT), **SECRETS}
    done = place.launch(words, names, **real)
    done.check(0, typed=True)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"run.yaml", "rank_00.log", "metrics.jsonl", "README.md"} <= {p.name for p in files}
    assert {path: hits for path in files if (hits := find_hits(path.read_bytes()))} == {}


def test_a_bug_shows_none(place: Place, config: str) -> None:
    code = "import os; raise RuntimeError(dict(os.environ))"
    broken = place.folder / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys, bigft.launch.supervise as s\n"
        "def run(self, facts): raise RuntimeError(self.launch)\n"
        "s.Supervisor.run = run\n"
    )
    path = f"{broken}{os.pathsep}{place.environ['PYTHONPATH']}"
    names = ",".join(SECRETS)
    done = place.launch([config], names, STAND_IN=code, PYTHONPATH=path, **SECRETS)
    assert b"RuntimeError" in done.err
    done.check(1)
