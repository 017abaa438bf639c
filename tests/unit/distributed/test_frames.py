"""What the notes of a rank say about a main thread that does not move."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bigft.distributed import frames
from bigft.distributed.frames import find_main_frame
from bigft.distributed.lookout.limits import Limits
from bigft.distributed.lookout.neighbour import Neighbour
from bigft.distributed.lookout.parties import Host
from bigft.distributed.place import HERE
from bigft.distributed.sample import Sampler


def look_from_a_thread() -> tuple[str, bool]:
    found: list[tuple[str, bool]] = []
    thread = threading.Thread(target=lambda: found.append(find_main_frame()))
    thread.start()
    thread.join()
    return found[0]


def test_the_main_thread_is_found_in_its_function():
    where, waits = look_from_a_thread()
    # It waits for the thread that looks, by a function of that name.
    assert "threading.py" in where
    assert waits == where.startswith("wait")


def _frame(*places: tuple[str, str]) -> Any:
    """Frames from the innermost one outwards."""
    back = None
    for name, file in reversed(places):
        code = SimpleNamespace(co_name=name, co_filename=file)
        back = SimpleNamespace(f_code=code, f_back=back, f_lineno=7)
    return back


def _look(monkeypatch: Any, *places: tuple[str, str]) -> tuple[str, bool]:
    current = {threading.main_thread().ident: _frame(*places)}
    monkeypatch.setattr(frames.sys, "_current_frames", lambda: current)
    return find_main_frame()


def test_a_collective_is_told_from_other_work(monkeypatch):
    own, nvtx = "/x/bigft/distributed/waits.py", "/y/deepspeed/utils/nvtx.py"
    zero, loop = "/y/deepspeed/runtime/zero/partition_parameters.py", "/x/bigft/trainer/loop.py"
    c10d = "/y/torch/distributed/distributed_c10d.py"
    assert _look(monkeypatch, ("wait", own), ("wrapped_fn", nvtx), ("wait", zero)) == (
        "wait (partition_parameters.py:7)",
        True,
    )
    assert _look(monkeypatch, ("all_reduce", c10d), ("wrapper", "/y/torch/distributed/l.py")) == (
        "all_reduce (distributed_c10d.py:7)",
        True,
    )
    assert _look(monkeypatch, ("read", "/z/mine.py"), ("fit", loop)) == ("read (mine.py:7)", False)
    assert _look(monkeypatch, ("wait", own)) == ("", False)


def test_the_notes_say_where_only_after_a_while():
    sampler = Sampler(still_seconds=0.3)
    HERE.note(phase="forward")
    sampler.take()
    assert "where" not in HERE.facts
    time.sleep(0.4)
    sampler.take()
    assert HERE.facts["where"]
    HERE.beat()
    sampler.take()
    assert "where" not in HERE.facts


def test_a_process_without_descriptors_left_is_alive(monkeypatch):
    """Data loaders and shards use them up; nobody may take that for a rank that is stuck."""
    sampler = Sampler()

    def refuse(self, *arguments, **named):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", refuse)
    before = HERE.facts["alive"]
    sampler.take()
    assert HERE.facts["alive"] == before + 1


def test_what_is_read_or_written_is_a_move(tmp_path):
    sampler = Sampler()
    before = HERE.facts.get("moves", 0)
    sampler.take()
    assert HERE.facts.get("moves", 0) == before
    (tmp_path / "file").write_bytes(b"x" * (2 << 20))
    sampler.take()
    assert HERE.facts["moves"] == before + 1


def test_a_neighbour_that_is_stopped_is_found_sooner_than_one_that_is_mute():
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        host = Host("w2", {2: sleeper.pid, 3: 1, 5: 1})
        facts = {"alive": 1, "phase": "loading"}
        watch = Neighbour(Limits(lost=30), host, 3, lambda rank: facts, 0.0)
        assert watch.speaks
        assert not Neighbour(Limits(), host, 5, lambda rank: facts, 0.0).speaks

        def pass_seconds(start: int, end: int) -> int | None:
            return next((s for s in range(start, end) if watch.judge(float(s))), None)

        assert pass_seconds(1, 400) == 121
        facts["alive"] = 2
        assert pass_seconds(401, 500) is None
        sleeper.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        facts["alive"] = 3
        assert pass_seconds(501, 600) == 531
        text = watch.judge(600.0)
        assert f"rank 2 on host w2 (pid {sleeper.pid}) is stopped by a signal (SIGSTOP)" in text
        # A pause of this process itself is nobody's silence.
        facts["alive"] = 4
        assert watch.judge(601.0) is None
        assert watch.judge(900.0) is None
        off = Neighbour(Limits(lost=0), host, 3, lambda rank: facts, 0.0)
        assert off.judge(1e6) is None
    finally:
        os.kill(sleeper.pid, signal.SIGKILL)
        sleeper.wait()


def test_a_neighbour_without_notes_is_not_said_to_be_stuck():
    """Python built for an old system cannot share them: nothing is known of it."""
    watch = Neighbour(Limits(lost=30), Host("w2", {2: os.getpid(), 3: 1}), 3, lambda rank: {}, 0.0)
    assert [second for second in range(1, 999) if watch.judge(float(second))] == []
