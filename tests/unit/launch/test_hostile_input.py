"""40 strings in 6 places of a launch: none is executed; each arrives as it is, or is refused."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hostile_words import NAMES, TELL, make_job, make_strings, read_told

from bigft import cli
from bigft.commands import launch as command
from bigft.config.options import LaunchOptions
from bigft.doctor.finding import failed
from bigft.errors import BigftError, ConfigError, LaunchError
from bigft.launch.conduct import Conductor, Ending
from bigft.launch.filter import choose_hosts
from bigft.launch.hostfile import Host, read_hostfile
from bigft.launch.job import HostJob
from bigft.launch.remote import render_ssh
from bigft.launch.supervise import Launch, plan_jobs
from bigft.launch.sync import _exclude, sync

SHELLS = ["sh", "dash", "bash", "zsh", "ksh", "tcsh", "fish"]
MAY_BE_MISSING = {"zsh", "ksh", "tcsh", "fish"}
_SHOW = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, [{}])))"


@pytest.fixture
def canary(tmp_path: Path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "executed"


@pytest.fixture
def strings(canary: Path) -> dict[str, str]:
    return make_strings(canary)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run `bigft launch` up to the moment at which it would start something."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, launch: Launch, *_: object) -> None:
            launches.append(launch)

        def run(self, facts: object) -> Ending:
            return Ending(0)

    monkeypatch.setattr(command, "Supervisor", Recorder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "ds.json"
    shutil.copy(Path(__file__).parents[3] / "ds_configs/zero2.json", config)

    def run(options: list[str], words: list[str]) -> Launch | BigftError:
        line = ["launch", "--num_gpus=1", *options, "--", "train", f"--config={config}", *words]
        try:
            command.main(cli.parse(line))
        except BigftError as error:
            assert not launches
            return error
        return launches.pop()

    return run


def _arrive(launch: Launch) -> HostJob:
    """What the agent of the only host reads."""
    line = plan_jobs(launch, launch.hosts, {})[0].to_line()
    assert line.count("\n") == 1
    return HostJob.from_line(line)


def test_there_are_forty(strings: dict[str, str]) -> None:
    assert len(set(strings.values())) == 40


# 1. A host's name.


@pytest.mark.parametrize("name", NAMES)
def test_in_a_host_name(tmp_path, strings, launched, name):
    text = strings[name]
    file = tmp_path / "hosts"
    file.write_bytes(f"{text} slots=1\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(LaunchError) as caught:
        read_hostfile(file)
    assert str(file) in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    with pytest.raises(LaunchError, match="--include"):
        choose_hosts([Host("a", 2)], text, "")
    error = launched([f"--master_addr={text}"], [])
    assert isinstance(error, ConfigError)
    assert "--master_addr" in str(error)
    assert len(str(error)) < 1000


# 2. What the user tells the run.


@pytest.mark.parametrize("name", NAMES)
def test_in_a_setting(strings, launched, name):
    text = strings[name]
    launch = launched([], [f"--model.tokenizer={text}"])
    if isinstance(launch, BigftError):
        # An empty tokenizer, or a path that no system has.
        assert launch.exit_code in (2, 5), launch
        assert "tokenizer" in str(launch)
    else:
        assert f"--model.tokenizer={text}" in _arrive(launch).words


# 3. A variable's value.


@pytest.mark.parametrize("name", NAMES)
def test_in_the_value_of_a_variable(tmp_path, monkeypatch, strings, launched, name):
    text = strings[name]
    if "\0" not in text:
        monkeypatch.setenv("HOSTILE_VALUE", text)
        launch = launched(["--env=HOSTILE_VALUE"], [])
        assert _arrive(launch).environ["HOSTILE_VALUE"] == text
        monkeypatch.delenv("HOSTILE_VALUE")
    file = tmp_path / ".deepspeed_env"
    file.write_bytes(f'HOSTILE_FILE="{text}"\n'.encode("utf-8", "surrogateescape"))
    launch = launched([], [])
    if name in ("newline", "windows_line", "nul", "no_text"):
        assert isinstance(launch, LaunchError)
        assert str(file) in str(launch)
    else:
        assert _arrive(launch).environ["HOSTILE_FILE"] == text


# 4. A variable's name.


@pytest.mark.parametrize("name", NAMES)
def test_in_the_name_of_a_variable(tmp_path, strings, launched, name):
    text = strings[name]
    error = launched([f"--env={text}"], [])
    assert isinstance(error, LaunchError)
    assert "--env" in str(error)
    file = tmp_path / ".deepspeed_env"
    file.write_bytes(f"{text}=1\n".encode("utf-8", "surrogateescape"))
    launch = launched([], [])
    if name == "hash":
        assert "touch" not in str(_arrive(launch).environ)
    else:
        assert isinstance(launch, LaunchError)
        assert str(file) in str(launch)


# 5. The folder.


def _make_folder(base: Path, text: str) -> Path | None:
    """None where no system has such a folder."""
    try:
        folder = base / text
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError):
        return None
    return folder


def test_folders_that_cannot_be(tmp_path, strings):
    base = tmp_path / "base"
    assert [n for n in NAMES if _make_folder(base, strings[n]) is None] == ["four_kilobytes", "nul"]


def _with_shell(name):
    is_missing = name in MAY_BE_MISSING and shutil.which(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(is_missing, reason=f"no {name} here"))


@pytest.mark.parametrize("shell", [_with_shell(name) for name in SHELLS])
def test_in_the_folder_and_in_words_through_a_login_shell(tmp_path, canary, strings, shell):
    refused = []
    for name in NAMES:
        text = strings[name]
        folder = _make_folder(tmp_path / "base", text)
        show = _SHOW.format("os.getcwd(), sys.argv[1], os.environ['HOSTILE']")
        try:
            words = [sys.executable, "-I", "-S", "-c", show, text]
            *ssh, line = render_ssh("a", words, {"HOSTILE": text}, folder or tmp_path)
        except LaunchError:
            refused.append(name)
            continue
        assert ssh[-2:] == ["--", "a"]
        done = subprocess.run([shell, "-c", line], capture_output=True, stdin=subprocess.DEVNULL)
        wanted = [str(folder or tmp_path), text, text]
        assert done.stdout.split(b"\0") == [os.fsencode(word) for word in wanted], (
            name,
            done.stderr,
        )
        assert not canary.exists(), name
    assert refused == ["carriage_return", "newline", "nul", "windows_line"]


# 6. The folder of the run, and what is copied.


@pytest.mark.parametrize("name", NAMES)
def test_in_the_run_folder(strings, launched, name):
    text = strings[name]
    launch = launched([], [f"--output_dir={text}"])
    if name == "nul":
        assert isinstance(launch, ConfigError)
        assert "output_dir" in str(launch)
    else:
        assert f"--output_dir={text}" in _arrive(launch).words


@pytest.mark.parametrize("name", NAMES)
def test_in_a_folder_that_is_copied(tmp_path, monkeypatch, strings, name):
    folder = _make_folder(tmp_path / "base", strings[name]) or tmp_path / "no such folder"
    tools = tmp_path / "bin"
    tools.mkdir()
    # What would be a shell on another host, with a home of its own.
    ssh = '#!/bin/sh\nwhile [ "$1" != -T ]; do shift; done\nshift; [ "$1" = -- ] && shift\nshift\n'
    (tools / "ssh").write_text(f'{ssh}cd / && exec sh -c "$*"\n')
    (tools / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    if folder.exists():
        (folder / "code.py").write_text("pass\n")
    try:
        done = sync([Host("a", 1)], folder)
    except LaunchError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert done[0].is_shared
    assert not refusal or "rename it" in refusal or not folder.exists()


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
@pytest.mark.parametrize("name", ["runs", "a [b]", "c*", "d\\e", "f\\[g", "h?", "-i", "deep/run"])
def test_the_folder_of_a_run_stays_here(tmp_path, name):
    """A terabyte of checkpoints; and on disks of their own hosts have others under that name."""
    here, there = tmp_path / "here", tmp_path / "there"
    beside = name.translate({ord(sign): "x" for sign in "[]*?\\"})
    for folder in (name, f"other/{name}", f"{beside}x"):
        (here / folder).mkdir(parents=True)
        (here / folder / "file").touch()
    command = ["rsync", "-a", _exclude(here, here / name), "--", f"{here}/", f"{there}/"]
    subprocess.run(command, check=True)
    assert not (there / name).exists()
    assert (there / f"other/{name}/file").exists()
    assert (there / f"{beside}x/file").exists()


# What would be started otherwise than it was meant.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nodes=2"], "--nodes 2: only with --render"),
        (["--sync"], "--sync: only for the hosts of a --hostfile"),
        (["--include=a", "--exclude=b"], "--include, --exclude: only for"),
        (["--check=quick"], "--check: only for"),
        (["--max_restarts=1", "--min_hosts=1"], "--min_hosts: only for"),
        (["--min_hosts=1"], "--min_hosts 1: is for the starts after a crash; add --max_restarts"),
        (["--nodes=2", "--sync", "--master_addr=-x"], "3 problems"),
        (["--hostfile=none"], "--num_gpus: is for this host alone"),
    ],
)
def test_options_that_would_do_nothing_are_refused(launched, options, said):
    error = launched(options, [])
    assert isinstance(error, ConfigError)
    assert said in str(error)


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_launcher_that_was_started_by_nohup_outlives_its_terminal(before):
    told: list[str] = []
    previous = signal.signal(signal.SIGHUP, before)
    try:
        with command._signals_passed_on() as pass_on_to:
            pass_on_to(SimpleNamespace(stop=told.append))
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert told == (["SIGTERM"] if before == signal.SIG_IGN else ["SIGHUP", "SIGTERM"])


_CHECK = """
import sys
from bigft.cli import main
main(["launch", "--hostfile", sys.argv[1], "--", "train", "--config", "ds_configs/zero2.json"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_hosts_are_looked_at_leaves_nothing_behind(tmp_path, number):
    """More hosts than are asked at once; each would have its time limit."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ssh").write_text(f"#!/bin/sh\necho x >>{tmp_path}/asked\nsleep 77.125 & wait\n")
    (tools / "ssh").chmod(0o755)
    (tmp_path / "hosts").write_text("".join(f"h{place} slots=1\n" for place in range(70)))
    launcher = subprocess.Popen(
        [sys.executable, "-c", _CHECK, str(tmp_path / "hosts")],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 30
    while not (tmp_path / "asked").exists() or len((tmp_path / "asked").read_text()) < 2 * 64:
        assert time.monotonic() < end
        time.sleep(0.1)
    start = time.monotonic()
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=30)
    assert launcher.returncode == 75, said
    assert "before the first start: nothing has begun" in said
    assert time.monotonic() - start < 10
    assert len((tmp_path / "asked").read_text()) == 2 * 64
    assert subprocess.run(["pgrep", "-f", "sleep 77.125"], stdout=subprocess.DEVNULL).returncode


def test_more_hosts_than_there_are_cannot_be_the_least(tmp_path):
    hostfile = tmp_path / "two"
    hostfile.write_text("a slots=1\nb slots=1\n")
    options = [f"--hostfile={hostfile}", "--max_restarts=1", "--min_hosts=3"]
    request = cli.parse(["launch", *options, "--", "train"])
    with pytest.raises(ConfigError, match=f"--min_hosts 3: there are 2 in {hostfile}"):
        command.main(request)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_host_that_is_not_there_is_not_started_without_checks(monkeypatch, is_there):
    found = [failed("ssh" if not is_there else "disk", "no", "why", "repair")]
    monkeypatch.setattr(command, "probe_hosts", lambda _: ({}, [] if is_there else found))
    monkeypatch.setattr(command, "examine_hosts", lambda *_, **__: found)
    request = cli.parse(["launch", "--", "train"])
    resolved = command._resolve(request.inner, [Host("a", 1)])
    with pytest.raises(BigftError) as caught:
        command._check([Host("a", 1)], request.inner, resolved, LaunchOptions())
    assert ("--check off" in str(caught.value)) == is_there


@pytest.mark.parametrize(
    ("words", "chooses"),
    [
        ([], True),
        (["--config=auto"], True),
        (["--config=ds.json"], False),
        (["--recipe=ds.yaml"], False),
        (["--recipe=auto.yaml"], True),
        (["--recipe=ds.yaml", "--config=auto"], True),
    ],
)
def test_what_a_host_lacks_is_said_whoever_chooses_the_plan(launched, monkeypatch, words, chooses):
    """Only a comparison of what hosts choose for themselves means nothing."""
    asked: dict[str, object] = {}
    found = [failed("settings", "did not end in time", "why", "repair", "settings")]

    def examine(hosts, words, world_size, **options):
        asked.update(options, words=words(hosts[0]))
        return found

    monkeypatch.setattr(command, "probe_hosts", lambda _: ({}, []))
    monkeypatch.setattr(command, "examine_hosts", examine)
    launched([], [])  # For the folder with ds.json in it.
    Path("ds.yaml").write_text("config: ds.json\n")
    Path("auto.yaml").write_text("config: auto\n")
    inner = cli.parse(["launch", "--", "train", *words]).inner
    monkeypatch.setattr("bigft.run.resolve.choose", lambda *_: pytest.fail("not for this machine"))
    hosts = [Host("a", 1)]
    with pytest.raises(ConfigError, match="1 fault: settings"):
        command._check(hosts, inner, command._resolve(inner, hosts), LaunchOptions())
    assert asked["compare_settings"] == (not chooses)
    assert ("--config=auto" in asked["words"]) == chooses


@pytest.mark.parametrize(
    ("visible", "num", "wanted"),
    [
        ("4,5", None, Host("localhost", 2, (4, 5))),
        ("4, 5", 1, Host("localhost", 1, (4,))),
        ("4,5", 3, "--num_gpus 3: CUDA_VISIBLE_DEVICES leaves 2"),
        ("GPU-1a2b", None, "write GPUs as numbers"),
        ("", 2, "leaves no GPU"),
        ("-1", None, "leaves no GPU"),
        ("4,", None, "write GPUs as numbers"),
        (None, 2, Host("localhost", 2)),
    ],
)
def test_gpus_of_other_jobs_are_left_alone(monkeypatch, visible, num, wanted):
    monkeypatch.setattr("bigft.doctor.wanted.find_device", lambda _: "cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    options = LaunchOptions(num_gpus=num)
    if isinstance(wanted, str):
        with pytest.raises(ConfigError, match=wanted):
            command._choose_hosts(options)
    else:
        assert command._choose_hosts(options) == [wanted]


def test_more_hosts_than_there_may_be_files_are_refused(tmp_path, monkeypatch):
    hostfile = tmp_path / "many"
    hostfile.write_text("".join(f"h{number} slots=8\n" for number in range(1000)))
    monkeypatch.setattr(command, "allow_open_files", lambda count: min(count, 1024))
    line = ["launch", f"--hostfile={hostfile}", "--", "train", "--config=ds_configs/zero2.json"]
    monkeypatch.chdir(Path(__file__).parents[3])
    with pytest.raises(LaunchError, match="1000 hosts: 3256 open files are needed here, 1024 are"):
        command.main(cli.parse(line))


def test_as_many_files_are_allowed_as_the_system_grants():
    code = (
        "import resource; from bigft.launch.processes import allow_open_files as allow;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 500));"
        "print([allow(n) for n in (50, 300, 200, 900)], resource.getrlimit(7)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[50, 300, 200, 500] 500\n"


def test_files_in_the_home_folder_are_copied(tmp_path, monkeypatch):
    copied: list[Path] = []
    monkeypatch.setattr(command, "sync", lambda hosts, folder, files, _: copied.extend(files) or [])
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ds.json").touch()
    line = ["launch", "--", "train", "--config=~/ds.json", "--recipe=~/missing.yaml"]
    command._sync([], cli.parse(line).inner, tmp_path)
    assert copied == [tmp_path / "ds.json"]


# All of them at a rank, through the real agent.


def test_they_arrive_at_a_rank(tmp_path, canary, strings):
    words = [f"--a.b={text}" for text in strings.values()] + list(strings.values())
    environ = {f"HOSTILE_{n}": t for n, t in strings.items() if "\0" not in t}
    told = tmp_path / "told.json"
    folder = _make_folder(tmp_path, "a b;'\"\\$(x)\n")
    job = make_job("a", TELL, folder, words=words, environ={**environ, "STAND_IN_OUT": str(told)})
    ending = Conductor(io.StringIO(), io.StringIO()).run([job], is_local=True)
    assert ending.code == 0, ending
    arrived = read_told(told)
    assert arrived["words"] == words
    assert arrived["environ"] == environ
    assert arrived["folder"] == str(folder)
