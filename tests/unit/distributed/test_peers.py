"""Which rank did not come, and whose address that was."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bigft.distributed import peers
from bigft.distributed.board import LocalBoard
from bigft.distributed.peers import Peer, Peers
from bigft.distributed.place import HERE, Place


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(peers, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(HERE, "facts", {"phase": "backward", "step": 5, "total_steps": 9})


def _peer(rank, kernel, host, *addresses, pid=0, place=None):
    return Peer(rank, kernel, host, addresses, pid, place)


def _meet(*others):
    mine = _peer(0, "k0", "one", "10.0.0.1", pid=os.getpid())
    found = Peers(mine, [mine, *others])
    found._board = LocalBoard()
    return found


def test_an_address_is_a_host_with_its_ranks():
    found = _meet(_peer(1, "k1", "two", "10.0.0.2"), _peer(2, "k1", "two", "10.0.0.2", "fe80::1"))
    expected = "10.0.0.2 is host two (ranks 1, 2)"
    text = found.explain("Connection closed by peer [10.0.0.2]:4711")
    assert text.startswith(expected)
    assert "rank 1 on host two does not answer; rank 2 on host two does not answer" in text
    assert "two is host two" in found.explain("Connection closed by remote peer two<42830>")
    assert "is host" not in found.explain("Connection closed by peer [10.0.0.7]:4711")


def test_who_stands_still_on_this_host_is_described():
    place = Place()
    place.share()
    place.note(phase="forward", step=4, total_steps=9)
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(place.fd,)
    )
    try:
        other = _peer(1, "k0", "one", pid=sleeper.pid, place=place.fd)
        sleeper.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        text = _meet(other).explain("Timed out waiting 4000ms for recv")
        assert f"rank 1 on host one (pid {sleeper.pid}) stands in step 4 of 9 (forward) for" in text
        assert text.endswith("stopped by a signal (SIGSTOP)")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert _meet(other).explain("") == f"rank 1 on host one (pid {sleeper.pid}) has gone"


def test_when_all_answer_the_last_one_is_named():
    found = _meet(_peer(1, "k1", "two"), _peer(2, "k1", "two"))
    found.announce()
    found._board.post("1", json.dumps({"step": 5}))
    found._board.post("2", json.dumps({"step": 4}))
    assert found.explain("") == "rank 2 is behind, in step 4"
    found._board.post("2", json.dumps({"step": 5}))
    assert found.explain("") == ""
