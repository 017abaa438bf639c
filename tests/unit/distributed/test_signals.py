"""Requests to stop: noted, obeyed where nothing waits for them, and forgotten by nobody."""

import os
import signal
import threading
import time

import pytest

from bigft.distributed import signals as module
from bigft.distributed.signals import STOP_SIGNALS, StopSignals, ignore_stop_signals
from bigft.errors import StoppedError


def _send(number: int) -> None:
    os.kill(os.getpid(), number)
    # The handler runs before the next line of Python.
    time.sleep(0)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_outside_the_loop_a_signal_is_an_error_at_once(number):
    signals = StopSignals()
    name = signal.Signals(number).name
    words = f"stopped by {name} before its first step"
    with pytest.raises(StoppedError, match=words), signals.installed():
        _send(number)
    assert signals.name == name


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_in_the_loop_a_signal_is_a_note(number):
    signals = StopSignals()
    with signals.installed(), signals.awaited():
        assert signals.name is None
        _send(number)
        assert signals.name == signal.Signals(number).name
    with pytest.raises(StoppedError, match="during the export, with the last step committed"):
        signals.check("during the export, with the last step committed")


def test_handlers_are_as_before_in_the_end():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with pytest.raises(StoppedError), StopSignals().installed():
        _send(signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_one_ctrl_c_that_arrives_twice_is_one(monkeypatch):
    """A terminal sends SIGINT to all, and a launcher passes it on as SIGTERM."""
    signals = StopSignals()
    with signals.installed(), signals.awaited():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            _send(number)
        assert signals.name == "SIGINT"
        # Of another kind, also later: Slurm warns with one signal and ends with another.
        monkeypatch.setattr(module, "REPEAT_SECONDS", 0.0)
        with pytest.raises(SystemExit) as caught:
            _send(signal.SIGTERM)
        assert caught.value.code == 128 + signal.SIGTERM
        # From here on the process is on its way out.
        _send(signal.SIGTERM)


def test_only_the_first_signal_is_an_error():
    """What unwinds because of it must not be interrupted by what a launcher sends next."""
    signals = StopSignals()
    with signals.installed():
        with pytest.raises(StoppedError):
            _send(signal.SIGUSR1)
        _send(signal.SIGTERM)
    assert signals.name == "SIGUSR1"


def test_other_threads_install_nothing():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def run() -> None:
        with StopSignals().installed():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_process_that_leaves_is_not_disturbed():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        ignore_stop_signals()
        # First a look: a signal that is not ignored would end the tests without a word.
        assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}
        for number in STOP_SIGNALS:
            _send(number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
