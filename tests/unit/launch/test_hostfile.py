"""Hostfiles are read strictly, and nothing that passes is an option of ssh."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.errors import LaunchError
from bigft.launch.hostfile import Host, explain_bad_name, read_hostfile


def _read(tmp_path, text):
    file = tmp_path / "hosts"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_hostfile(file)


def _problem(tmp_path, text) -> str:
    with pytest.raises(LaunchError) as caught:
        _read(tmp_path, text)
    assert caught.value.exit_code == 6
    return str(caught.value)


def test_hosts_come_in_the_order_of_the_file(tmp_path):
    text = "# ours\n\nworker-2 slots=8\nworker-1\tslots=4   # smaller\n10.0.0.3 slots=2\n"
    assert _read(tmp_path, text) == [
        Host("worker-2", 8),
        Host("worker-1", 4),
        Host("10.0.0.3", 2),
    ]


def test_the_home_folder_is_found_by_every_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hosts").write_text("a slots=1\n")
    assert read_hostfile(Path("~/hosts")) == [Host("a", 1)]


@pytest.mark.parametrize(
    "name", ["a", "node-17.cluster.example", "3com", "127.0.0.1", "::1", "fe80::1%eth0", "A" * 63]
)
def test_names_and_addresses_that_are_allowed(tmp_path, name):
    assert _read(tmp_path, f"{name} slots=1\n") == [Host(name, 1)]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("worker", "no slots"),
        ("worker slots=4abc", "slots=4abc"),
        ("worker slots=0", "slots=0"),
        ("worker slots=-1", "slots=-1"),
        ("worker slots=٣", "slots=٣"),
        ("worker slots=2 slots=8", "slots=2 and slots=8"),
        ("worker slots = 2", "'slots = 2'"),
        ("worker slots=2 gpus=4", "'gpus=4'"),
        ("worker SLOTS=2", "'SLOTS=2'"),
        ("-oProxyCommand=touch${IFS}x slots=1", "an option"),
        ("root@worker slots=1", "~/.ssh/config"),
        ("worker:2222 slots=1", "~/.ssh/config"),
        ("[::1]:22 slots=1", "without brackets"),
        ("10.0.0 slots=1", "neither an IP address"),
        ("10.0.0.300 slots=1", "neither an IP address"),
        ("10.0.0.1%eth0 slots=1", "zone"),
        ("fe80::1%et;h0 slots=1", "zone"),
        ("work_er slots=1", "not a host name"),
        ("worker- slots=1", "not a host name"),
        ("a..b slots=1", "not a host name"),
        ("worker;id slots=1", "not a host name"),
        ("$(id) slots=1", "not a host name"),
        ("ẇorker slots=1", "not a host name"),
        ("a" * 64 + " slots=1", "not a host name"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(tmp_path, line, word):
    text = _problem(tmp_path, f"good slots=1\n{line}\n")
    assert "line 2" in text
    assert word in text


@pytest.mark.parametrize(
    ("first", "second"),
    [("worker", "WORKER"), ("10.0.0.1", "10.0.0.1"), ("::1", "0:0:0:0:0:0:0:1")],
)
def test_a_host_that_is_there_twice(tmp_path, first, second):
    text = _problem(tmp_path, f"{first} slots=1\n\n{second} slots=1\n")
    assert "line 3" in text
    assert "line 1" in text


def test_all_problems_are_listed_at_once(tmp_path):
    text = _problem(tmp_path, "a slots=0\n-x slots=y\na slots=1\n")
    assert text.startswith("4 problems")
    assert [f"line {n}" in text for n in (1, 2, 3)] == [True] * 3


def test_a_missing_file_is_an_error_and_not_one_host(tmp_path):
    with pytest.raises(LaunchError, match="No such file"):
        read_hostfile(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "\n# nothing\n", b"\xff\xfe\x00a"])
def test_a_file_without_hosts(tmp_path, text):
    assert "host" in _problem(tmp_path, text)


def test_a_file_from_windows(tmp_path):
    assert _read(tmp_path, b"\xef\xbb\xbfworker slots=2\r\n") == [Host("worker", 2)]


@given(st.text(min_size=1, max_size=20))
def test_what_passes_is_a_plain_word_for_ssh(name):
    if explain_bad_name(name) is None:
        assert re.fullmatch(r"[A-Za-z0-9:][A-Za-z0-9.:%_-]*", name)
