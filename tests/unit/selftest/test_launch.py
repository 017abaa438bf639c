"""Child processes: heard line by line, and gone at the end."""

import subprocess
import sys
import time
from pathlib import Path

from bigft.selftest.launch import EVENTS_NAME, EventReader, Ranks


def test_events_are_read_once_and_only_whole(tmp_path):
    file = tmp_path / EVENTS_NAME
    file.write_text('{"event": "of an earlier launch"}\n')
    reader = EventReader(tmp_path)
    assert list(reader.read()) == []
    with file.open("a") as stream:
        stream.write('{"event": "ready"}\n{"event": "beg')
        stream.flush()
        assert list(reader.read()) == [{"event": "ready"}]
        stream.write('ins"}\n')
    assert list(reader.read()) == [{"event": "begins"}]


def test_a_reader_may_come_before_the_file(tmp_path):
    reader = EventReader(tmp_path)
    assert list(reader.read()) == []
    (tmp_path / EVENTS_NAME).write_text('{"event": "ready"}\n')
    assert [event["event"] for event in reader.read()] == ["ready"]


class _Stubborn(Ranks):
    """A family of processes that do not listen to SIGTERM, in the launcher's place."""

    def __init__(self, folder: Path) -> None:
        child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        code = child + "import os; os.fork(); print(os.getpid(), flush=True); time.sleep(60)"
        self._console = folder / "console.log"
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=console, start_new_session=True
            )


def test_what_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("bigft.selftest.launch._GRACE_SECONDS", 0.5)
    ranks = _Stubborn(tmp_path)
    until = time.monotonic() + 20
    while len(pids := (tmp_path / "console.log").read_text().split()) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert ranks.poll() is None
    ranks.end()
    assert ranks.poll() == -9
    while any(map(_is_alive, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)


def _is_alive(pid: str) -> bool:
    """Whether a process runs; one whose parent is gone waits for init to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_last_words_are_bigfts_own_where_there_are_any(tmp_path):
    ranks = _Stubborn.__new__(_Stubborn)
    ranks._console = tmp_path / "console.log"
    ranks._console.write_text("x\nbigft: no compiler\n[launcher] exits with 6\n")
    assert ranks.last_words() == "bigft: no compiler"
    ranks._console.write_text("x\ny\n\n")
    assert ranks.last_words() == "y"
    ranks._console.write_text("")
    assert ranks.last_words() == "no word"
