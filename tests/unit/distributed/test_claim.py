"""Two runs in one folder: the second is refused at once, the first does not notice."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bigft.distributed.claim import claimed
from bigft.errors import LaunchError

_HOLDER = """
import os, sys
from pathlib import Path
from bigft.distributed.claim import claimed
with claimed(Path(sys.argv[1]), *sys.argv[2:]):
    if os.fork() == 0:           # like a worker that outlives its parent
        sys.stdin.readline()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
    print("leaving", flush=True)
"""


def _hold(folder: Path, *name: str) -> subprocess.Popen:
    words = [sys.executable, "-c", _HOLDER, str(folder), *name]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


def _end(holder: subprocess.Popen) -> None:
    holder.stdin.close()
    holder.wait(20)
    holder.stdout.close()


def _refuses_others(folder: Path) -> bool:
    """Whether a third process is told that this one has the folder."""
    code = (
        "import sys; from pathlib import Path; from bigft.distributed.claim import claimed\n"
        "with claimed(Path(sys.argv[1])): pass\n"
    )
    words = [sys.executable, "-c", code, str(folder)]
    said = subprocess.run(words, capture_output=True, text=True).stderr
    return f"in use by pid {os.getpid()} on " in said


@pytest.mark.parametrize("name", [".lock", "nvme.lock"])
def test_second_process_is_refused_and_told_by_whom(tmp_path: Path, name: str):
    holder = _hold(tmp_path, name)
    for _ in range(4):
        refused = pytest.raises(LaunchError, match=f"in use by pid {holder.pid} on ")
        with refused, claimed(tmp_path, name):
            raise AssertionError("both hold it")
    assert holder.poll() is None
    _end(holder)
    with claimed(tmp_path, name):
        pass


def test_other_folders_and_names_are_free(tmp_path: Path):
    (tmp_path / "other").mkdir()
    holder = _hold(tmp_path)
    with claimed(tmp_path / "other"), claimed(tmp_path, "second"):
        assert (tmp_path / "second").is_file()
        assert _refuses_others(tmp_path / "other")
        # What the holder has is its own as before.
        refused = pytest.raises(LaunchError, match=f"in use by pid {holder.pid} on ")
        with refused, claimed(tmp_path):
            raise AssertionError("both hold it")
    _end(holder)


def test_process_that_was_killed_holds_nothing_though_its_child_lives(tmp_path: Path):
    holder = _hold(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(20)
    with claimed(tmp_path):
        assert _refuses_others(tmp_path)
    _end(holder)


def test_folder_is_held_once_in_a_process_also_by_another_name(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path)
    refused = []

    def try_it() -> None:
        try:
            with claimed(tmp_path / "link"):
                pass
        except LaunchError as error:
            refused.append(str(error))

    with claimed(tmp_path):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert "already in use by this process" in refused[0]
    with claimed(tmp_path):
        pass


def test_claim_is_given_back_after_an_error(tmp_path: Path):
    def fail() -> None:
        with claimed(tmp_path):
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()


def test_missing_folder_is_named_and_leaves_nothing_behind(tmp_path: Path):
    def hold() -> None:
        with claimed(tmp_path / "none"):
            pass

    with pytest.raises(FileNotFoundError, match="none"):
        hold()
    (tmp_path / "none").mkdir()
    hold()


def test_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*args: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with claimed(tmp_path):
        pass
    assert "cannot be locked" in caplog.text
