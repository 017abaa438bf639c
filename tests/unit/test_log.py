"""Where words go, down to the file descriptors."""

import ctypes
import faulthandler
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from bigft.log import Console, output_to_log, plain_console


@pytest.fixture
def terminal(tmp_path, capfd):
    """Lets the descriptors be looked at; yields what reached the terminal so far."""
    return lambda: "".join(capfd.readouterr())


def _write_and_fail():
    os.write(1, b"inside\n")
    raise ZeroDivisionError


def test_everything_but_the_console_goes_to_the_log(tmp_path, terminal):
    log = tmp_path / "log/rank_00.log"
    libc = ctypes.CDLL(None)
    with output_to_log(log, is_rank_zero=True) as console:
        os.write(1, b"raw out\n")
        os.write(2, b"raw err\n")
        # Buffered inside of libc, as a C++ library's messages are.
        libc.printf(b"from printf\n")
        subprocess.run(["/bin/sh", "-c", "echo from a child"], check=True)
        logging.getLogger("third_party").warning("a warning")
        logging.getLogger("third_party").debug("a detail")
        warnings.warn("of Python", stacklevel=1)
        console.say("to the person")
        console.result("the result")
    seen, written = terminal(), log.read_text()
    assert seen == "the result\nto the person\n"
    for text in ("raw out", "raw err", "from printf", "from a child", "a warning", "of Python"):
        assert text in written, text
        assert text not in seen
    assert "to the person" in written
    assert "a detail" not in written
    assert "the result" not in written


def test_descriptors_come_back_after_an_error(tmp_path, terminal):
    log = tmp_path / "rank_00.log"
    handlers = list(logging.getLogger().handlers)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ZeroDivisionError), output_to_log(log, is_rank_zero=True):
        _write_and_fail()
    os.write(1, b"outside\n")
    assert terminal() == "outside\n"
    assert log.read_text() == "inside\n"
    assert logging.getLogger().handlers == handlers
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_other_ranks_are_silent_but_log(tmp_path, terminal):
    log = tmp_path / "rank_01.log"
    with output_to_log(log, is_rank_zero=False) as console:
        console.say("hello")
        console.result("42")
    assert terminal() == ""
    assert "hello" in log.read_text()


def test_a_second_run_appends(tmp_path):
    log = tmp_path / "rank_00.log"
    for word in ("first", "second"):
        with output_to_log(log, is_rank_zero=True):
            os.write(1, word.encode())
    assert log.read_text() == "firstsecond"


def test_fault_handler_is_left_as_it_was(tmp_path):
    was = faulthandler.is_enabled()
    try:
        for enabled in (True, False):
            (faulthandler.enable if enabled else faulthandler.disable)(
                *([sys.__stderr__] if enabled else [])
            )
            with output_to_log(tmp_path / "l", is_rank_zero=True):
                assert faulthandler.is_enabled()
            assert faulthandler.is_enabled() is enabled
    finally:
        (faulthandler.enable if was else faulthandler.disable)(*([sys.__stderr__] if was else []))


def test_plain_console_speaks_on_the_processs_own_streams(capsys):
    console = plain_console()
    assert isinstance(console, Console)
    console.result("out")
    console.say("err")
    assert tuple(capsys.readouterr()) == ("out\n", "err\n")


def test_crash_below_python_reaches_the_terminal(tmp_path):
    """SIGSEGV inside a run: the person sees where, although standard error is the log."""
    root = Path(__file__).resolve().parents[2]
    code = (
        "import ctypes; from pathlib import Path; from bigft.log import output_to_log\n"
        f"with output_to_log(Path({str(tmp_path / 'log')!r}), is_rank_zero=True):\n"
        "    ctypes.string_at(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode < 0
    assert "Segmentation fault" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_does_not_end_what_prints(tmp_path, unbuffered):
    """In a process of its own: pytest replaces the standard streams."""
    code = (
        "import logging, sys\n"
        "from pathlib import Path\n"
        "from bigft.log import output_to_log\n"
        "with output_to_log(Path(sys.argv[1]), is_rank_zero=True) as console:\n"
        "    print('x' * 100_000, flush=True)\n"
        "    logging.getLogger().warning('y' * 100_000)\n"
        "    console.say('heard')\n"
        "print('went on')\n"
    )
    (tmp_path / "rank_00.log").symlink_to("/dev/full")
    command = [sys.executable, "-c", code, str(tmp_path / "rank_00.log")]
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "heard\n")
