"""What comes from hosts, files and the command line never ends a reader with another error."""

import io
import json
import string
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigft.doctor.answers import read_facts, read_report, read_sums
from bigft.doctor.hosts import explain_unreachable
from bigft.doctor.probe import describe_host
from bigft.errors import LaunchError
from bigft.launch.child import Answer, ask
from bigft.launch.environment import choose_environment
from bigft.launch.filter import choose_hosts
from bigft.launch.foreign import is_address, is_interface
from bigft.launch.hostfile import Host, explain_bad_name, read_hostfile
from bigft.launch.job import HostJob, encode_world, find_too_long
from bigft.launch.output import HostOutput
from bigft.launch.progress import Progress, find_progress
from bigft.launch.report import MARK, Report, begin_word

HOSTS = [Host("a", 4), Host("b.c", 2), Host("fe80::1", 1)]
TOKEN = "0" * 32

_LETTERS = "ab:@,-=# \t\r\n'\"$;*\\%0129\u0663\ufeff\0\x1b"
TEXTS = st.text(st.sampled_from(_LETTERS), max_size=60) | st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
)
HUGE = ['"' + "x" * 10_000_000 + '"', "[" * 200_000, '{"a":' * 100_000, "9" * 100_000, "1e999"]

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def _job() -> HostJob:
    return HostJob("a", 0, {"a": [0]}, "127.0.0.1", 29500, "/", ["train"], {"A": "b"}, "id")


# Files and flags.


@quick
@given(st.binary(max_size=200) | TEXTS.map(lambda text: text.encode("utf-8", "replace")))
def test_any_hostfile(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(data)
    try:
        hosts = read_hostfile(file)
    except LaunchError:
        return
    assert hosts
    assert all(explain_bad_name(host.name) is None and host.slots > 0 for host in hosts)


@given(TEXTS, TEXTS)
def test_any_filter(include: str, exclude: str) -> None:
    try:
        chosen = choose_hosts(HOSTS, include, exclude)
    except LaunchError:
        return
    known = {host.name: host.slots for host in HOSTS}
    assert chosen
    for host in chosen:
        assert host.slots <= known[host.name]
        assert all(0 <= device < known[host.name] for device in host.devices)
        assert len(set(host.devices)) == len(host.devices)


@pytest.mark.parametrize(
    "text", ["a:" + "9" * 5000, "a:٣", "a:-1", "a:", "a:0,", "a@a", "@", "a:0:1"]
)
def test_a_filter_that_is_none(text: str) -> None:
    with pytest.raises(LaunchError, match="--include"):
        choose_hosts(HOSTS, text, "")


@quick
@given(st.binary(max_size=200) | TEXTS.map(lambda text: text.encode("utf-8", "replace")), TEXTS)
def test_any_file_of_variables(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / ".deepspeed_env").write_bytes(data)
    try:
        chosen = choose_environment({}, [name] * (len(name) % 2), tmp_path, tmp_path)
    except LaunchError:
        return
    for key, value in chosen.items():
        assert key.isidentifier()
        assert key.isascii()
        assert "\0" not in value
        assert "\n" not in value


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full"])
def test_files_without_an_end(tmp_path: Path, device: str) -> None:
    with pytest.raises(LaunchError, match="longer than"):
        read_hostfile(Path(device))
    with pytest.raises(LaunchError, match="longer than"):
        choose_environment({"DS_ENV_FILE": device}, [], tmp_path, tmp_path)


@pytest.mark.parametrize(
    "name", "RANK MASTER_ADDR BIGFT_WORDS BIGFT_LAUNCH BIGFT_HOST BIGFT_GLOBAL_BATCH".split()
)
def test_what_the_launcher_sets_is_nobody_elses(tmp_path: Path, name: str) -> None:
    with pytest.raises(LaunchError, match=f"{name} is set for every rank by the launcher"):
        choose_environment({name: "1"}, [name], tmp_path, tmp_path)
    (tmp_path / ".deepspeed_env").write_text(f"A=1\n{name}=1\n")
    with pytest.raises(LaunchError, match="line 2"):
        choose_environment({}, [], tmp_path, tmp_path)


@pytest.mark.parametrize("name", "LD_PRELOAD BASH_ENV PYTHONSTARTUP".split())
def test_what_changes_programs_is_passed_on_only_where_it_is_named(
    tmp_path: Path, name: str
) -> None:
    assert choose_environment({name: "x"}, [], tmp_path, tmp_path) == {}
    assert choose_environment({name: "x"}, [name], tmp_path, tmp_path) == {name: "x"}


def test_a_value_that_was_written_instead_of_a_name_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as caught:
        choose_environment({}, ["MINE=s3cret"], tmp_path, tmp_path)
    assert "MINE" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    (tmp_path / ".deepspeed_env").write_text("czNjcmV0+czNjcmV0==\nczNjcmV0\n")
    with pytest.raises(LaunchError) as caught:
        choose_environment({}, [], tmp_path, tmp_path)
    assert "czNjcmV0" not in str(caught.value)
    assert "line 1" in str(caught.value)
    assert "line 2" in str(caught.value)


def test_what_no_process_can_be_started_with() -> None:
    assert find_too_long(["train", "x" * 100_000], {"A": "x" * 100_000}) == []
    assert "recipe" in find_too_long(["x" * 140_000], {})[0]
    assert "recipe" in find_too_long(["é" * 30_000], {})[0], "six bytes each in JSON"
    assert "variable A has" in find_too_long([], {"A": "x" * 140_000})[0]
    assert "fewer" in find_too_long([], {f"A{n}": "x" * 100_000 for n in range(12)})[0]


# Lines of JSON.


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (HostJob.from_line, HostJob),
        (Progress.from_line, Progress),
        (lambda line: Report.from_line(f"{MARK}{TOKEN} {line}", TOKEN), Report),
        (lambda line: read_facts(line, ["a", "b"]), dict),
        (read_report, tuple),
        (read_sums, tuple),
    ],
)
@given(data=st.data())
def test_any_json_is_read_or_refused(read: Any, kind: type, data: st.DataObject) -> None:
    good = [
        json.loads(_job().to_line()),
        {"commits": 1, "step": 2, "global_batch": 3},
        json.loads(Report("a", 0).to_line(TOKEN).partition(" ")[2]),
        describe_facts(),
        {"findings": [finding()], "settings_digest": "x", "bytes_per_second": 1},
        {"bytes_per_second": 1e9, "small_sum_seconds": 1e-4},
    ]
    value = data.draw(JSON | st.sampled_from(good))
    if isinstance(value, dict) and value:
        value = {**value, data.draw(st.sampled_from(sorted(value))): data.draw(JSON)}
    line = data.draw(st.sampled_from([json.dumps(value), json.dumps(value)[:-1]]))
    try:
        found = read(line)
    except ValueError as error:
        # With a reason, which is shown.
        found = str(error)
        assert found
    assert isinstance(found, kind | str)


@pytest.mark.parametrize("line", HUGE, ids=["text", "lists", "tables", "digits", "infinity"])
def test_huge_json(line: str) -> None:
    start = time.monotonic()
    for text in (line, f'{{"step": {line}}}', f'{{"commits": 1, "step": {line}}}'):
        for read in (HostJob.from_line, Progress.from_line, read_report, read_sums):
            with pytest.raises(ValueError, match="."):
                read(text)
        with pytest.raises(ValueError, match="."):
            Report.from_line(f"{MARK}{TOKEN} {text}", TOKEN)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (1, 0), (1, -1)])
def test_sums_that_take_no_time_are_not_kept_for_plans(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="no proper rate"):
        read_sums(json.dumps({"bytes_per_second": rate, "small_sum_seconds": seconds}))


def test_a_job_arrives_as_it_is() -> None:
    job = _job()
    assert HostJob.from_line(job.to_line()) == job
    assert job.token not in repr(job)
    assert job.token != _job().token


@pytest.mark.parametrize("facts", ['{"sequence": "x", "step": 1}', '{"sequence": null}', "[]", "{"])
def test_a_damaged_manifest_is_no_progress(tmp_path: Path, facts: str) -> None:
    for number, text in enumerate([facts, '{"sequence": 2, "step": 8}'], 1):
        (tmp_path / f"checkpoints/step_{number}").mkdir(parents=True)
        (tmp_path / f"checkpoints/step_{number}/manifest.json").write_text(text)
    assert find_progress(tmp_path) == Progress(2, 8)


# What a host says of itself.


def describe_facts(**changes: Any) -> dict[str, Any]:
    route = {"address": "10.0.0.1", "peer_address": "10.0.0.2", "interface": "eth0"}
    facts = {
        **dict.fromkeys("hostname python executable folder bigft code".split(), "x"),
        "time": 1.5,
        "versions": {"torch": "2"},
        "routes": {"a": route, "b": {**route, "interface": ""}},
        "is_port_free": True,
        "free_port": 29501,
        "gpus": 0,
    }
    return {**facts, **changes}


def finding(**changes: Any) -> dict[str, Any]:
    texts = {"name": "n", "found": "f", "why": "w", "repair": "r"}
    return {**texts, "ok": False, "fault": "host", "applies": True, "host": "", **changes}


def _route(**changes: str) -> dict[str, Any]:
    good = {"address": "10.0.0.1", "peer_address": "10.0.0.2", "interface": "eth0"}
    return {"routes": {"a": {**good, **changes}, "b": good}}


def test_what_a_host_really_says_passes() -> None:
    facts = describe_host(["127.0.0.1", "no.such.host.invalid"])
    peers = [*facts["routes"]]
    assert read_facts(json.dumps(facts), peers) == facts
    assert "error" in facts["routes"]["no.such.host.invalid"]


@pytest.mark.parametrize(
    "changes",
    [
        {"free_port": "22; rm -rf /"},
        {"free_port": 22},
        {"free_port": True},
        {"free_port": 1e4},
        {"time": "1"},
        {"time": float("nan")},
        {"time": 1e300},
        {"routes": {}},
        {"routes": {"a": []}},
        {"versions": ["torch"]},
        {"code": None},
        {"hostname": "x" * 5000_000},
        _route(address="$(x)"),
        _route(address="-x"),
        _route(address="10.0.0.1 --foo"),
        _route(address="evil.example"),
        _route(interface="$(x)"),
        _route(interface="eth0\nLD_PRELOAD=x"),
        _route(interface="eth0,eth1"),
        _route(interface="x" * 16),
        _route(interface="-eth0"),
        _route(peer_address=""),
    ],
)
def test_hostile_facts_are_refused(changes: dict[str, Any]) -> None:
    line = json.dumps(describe_facts(**changes))
    with pytest.raises(ValueError, match="no proper"):
        read_facts(line, ["a", "b"])
    found = explain_unreachable("a", Answer(0, f"Welcome!\n{line}\n"), "no proper thing")
    assert found.name == "code"
    assert "no proper thing" in found.found


def test_texts_of_a_host_obey_no_terminal() -> None:
    facts = read_facts(json.dumps(describe_facts(hostname="\x1b[2Jx\u202e")), ["a"])
    assert facts["hostname"] == "\\x1b[2Jx\\u202e"
    line = json.dumps({"findings": [finding(found="\x1b[2J")], "settings_digest": None})
    found, digest = read_report(line)
    assert (found[0].found, digest) == ("\\x1b[2J", None)
    assert Answer(1, "", "\x1b]0;x\x07no\n").last_words == "\\x1b]0;x\\x07no"


@given(st.text(string.printable + "\u202e\0é", max_size=20))
def test_what_passes_for_an_address_or_an_interface_is_a_plain_word(text: str) -> None:
    if is_interface(text) or is_address(text):
        assert not set(text) - set(string.ascii_letters + string.digits + "_.:%-")
        assert not text.startswith("-")


def test_a_gigabyte_of_output_is_not_kept() -> None:
    answer = ask(["sh", "-c", "head -c 100000000 /dev/zero; echo; echo last"], 60)
    assert answer.code == 0
    assert answer.last_line == "last"
    assert len(answer.out) <= 8 << 20


def test_what_holds_a_pipe_open_is_not_waited_for_beyond_the_limit() -> None:
    start = time.monotonic()
    answer = ask(["sh", "-c", "echo a; setsid sleep 30 &"], 0.5)
    assert time.monotonic() - start < 5
    assert answer.out == "a\n"


def test_what_is_not_read_keeps_nobody() -> None:
    assert ask(["true"], 10, text="x" * 3_000_000).code == 0
    assert len(ask(["cat"], 10, text="x" * 3_000_000).out) == 3_000_000


# What it says to whoever has started the run.


class _Terminal(io.StringIO):
    encoding = "ascii"


def _shown(*pieces: bytes, token: str = TOKEN) -> tuple[list[str], HostOutput]:
    stream = io.StringIO()
    output = HostOutput(stream, "[a] ", threading.Lock(), token)
    for piece in pieces:
        output.write(piece)
    output.finish()
    return stream.getvalue().splitlines(), output


REPORT = Report("a", -9, 3, "me", 1)


def test_a_report_is_kept_back_however_it_comes() -> None:
    data = f"one\n{REPORT.to_line(TOKEN)}".encode()
    for cut in range(len(data)):
        lines, output = _shown(data[:cut], data[cut:])
        assert lines == ["[a] one"]
        assert output.report == REPORT


def test_a_rank_that_ends_in_the_middle_of_a_line_hides_no_report() -> None:
    beat = f"{begin_word(TOKEN)}\n".encode()
    lines, output = _shown(b"half a", beat, b" line", beat, REPORT.to_line(TOKEN).encode())
    assert lines == ["[a] half a line"]
    assert output.report == REPORT


def test_only_the_agent_is_a_sign_of_life() -> None:
    _, output = _shown()
    output.heard = 0.0
    output.write(f"{MARK}\n{MARK}{'1' * 32}\nrank says\n".encode())
    assert output.heard < 1
    output.write(f"{begin_word(TOKEN)}\n".encode())
    assert output.heard > 1


def test_an_agent_is_not_silent_while_nobody_reads() -> None:
    """A terminal that is paused with Ctrl-S, or `less` that waits for its reader."""
    paused = threading.Lock()
    output = HostOutput(io.StringIO(), "", paused, TOKEN)
    output.heard = time.monotonic() - 50
    with paused:
        reader = threading.Thread(target=output.write, args=(b"rank says\n",))
        reader.start()
        while not output.is_held_up:
            time.sleep(0.01)
        assert output.silent_seconds(time.monotonic() + 1000) < 60
        time.sleep(0.5)
    reader.join(5)
    assert not output.is_held_up
    assert 50 <= output.silent_seconds(time.monotonic()) < 50.4


@pytest.mark.parametrize(
    "line",
    [
        REPORT.to_line("1" * 32),
        MARK + '{"host": "a", "code": 0, "rank": null, "stopped": "", "left": 0}\n',
        f"{MARK}{TOKEN[:-1]} {{}}\n",
    ],
)
def test_a_forged_report_is_a_line_like_others(line: str) -> None:
    lines, output = _shown(line.encode())
    assert output.report is None
    assert len(lines) == 1
    assert MARK not in lines[0]


def test_without_a_token_there_is_no_report() -> None:
    for call in (REPORT.to_line, lambda token: Report.from_line("x", token)):
        with pytest.raises(ValueError, match="no token"):
            call("")


def test_a_line_without_an_end_takes_no_memory_and_hides_no_report() -> None:
    stream = io.StringIO()
    output = HostOutput(stream, "", threading.Lock(), TOKEN)
    start = time.monotonic()
    for _ in range(16_000):
        output.write(b"x" * 65_536)
        assert len(output._rest) <= 2 * 65_536
    output.write(f"\n{REPORT.to_line(TOKEN)}after\n".encode())
    assert time.monotonic() - start < 10
    assert output.report == REPORT
    assert len(stream.getvalue()) < 70_000
    assert stream.getvalue().endswith("[the rest of this line is left out]\nafter\n")


@pytest.mark.parametrize(
    "word",
    [
        "sk-",
        "a=",
        "--a ",
        "?a=b&",
        "token=",
        "token='",
        "http://",
        "http://a",
        "eyJ",
        "eyJhhhhhhhhhhh.",
    ]
    + ["A ", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "://hooks.slack.com/a/ ", "bearer  "],
)
def test_no_line_takes_long(word: str) -> None:
    start = time.monotonic()
    _shown((word * (65_000 // len(word))).encode() + b"\n")
    assert time.monotonic() - start < 2


def test_a_terminal_obeys_no_host() -> None:
    lines, output = _shown("\x1b[2J\x1b]0;title\x07\x9b31m\rfake\u202e\x08é\t!\r\n".encode())
    assert lines == ["[a] \\x1b[2J\\x1b]0;title\\x07\\x9b31m\\rfake\\u202e\\x08é\t!"]
    assert output.last_words == lines[0][4:]


@pytest.mark.parametrize("start", ["[W1123 ", "[W724 ", "[I515 ", "[rank12]:[W1123 "])
def test_warnings_of_torch_are_shown_and_do_not_explain_an_end(start: str) -> None:
    warning = f"{start}10:07:00.970065475 socket.cpp:207] [c10d] The hostname cannot be retrieved."
    lines, output = _shown(f"Connection closed by remote host.\n{warning}\n".encode())
    assert lines[1] == f"[a] {warning}"
    assert output.last_words == "Connection closed by remote host."


def test_a_report_that_is_none_ends_nothing() -> None:
    lines, output = _shown(f'a\n{MARK}{TOKEN} {{"code": "0"}}\nb\n'.encode())
    assert (lines, output.report) == (["[a] a", "[a] b"], None)


def test_empty_lines_stay() -> None:
    assert _shown(b"a\n\n\nb\n")[0] == ["[a] a", "[a] ", "[a] ", "[a] b"]


def test_a_terminal_with_few_characters_loses_no_line() -> None:
    stream = _Terminal()
    output = HostOutput(stream, "", threading.Lock(), TOKEN)
    output.write("é\nz\n".encode() + b"\xff\n")
    assert stream.getvalue() == "\\xe9\nz\n\\ufffd\n"


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_output(pieces: list[bytes]) -> None:
    lines, output = _shown(*pieces)
    assert output.report is None
    assert all(line.startswith("[a] ") for line in lines)


def test_world_is_encoded_without_what_a_shell_reads() -> None:
    assert set(encode_world({"a": [0]})) <= set(string.ascii_letters + string.digits + "-_=")
