"""Messages between ranks through the store of the process group, and between threads."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore, TCPStore

from bigft.distributed.board import LocalBoard, StoreBoard, open_board
from bigft.errors import LaunchError


def _open_tcp() -> tuple[TCPStore, TCPStore]:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return server, TCPStore("127.0.0.1", server.port, is_master=False)


def test_message_reaches_the_other_ranks():
    first, second = (StoreBoard("run", store) for store in _open_tcp())
    first.post("step/1", "über alle Ränge")
    assert second.read("step/1", 5) == "über alle Ränge"
    assert second.read("step/1", 0) == "über alle Ränge"
    second.post("step/1", "")
    assert first.read("step/1", 5) == ""


def test_boards_with_other_prefixes_do_not_hear_each_other():
    store = HashStore()
    StoreBoard("one", store).post("key", "x")
    assert StoreBoard("two", store).read("key", 0.01) is None


@pytest.mark.parametrize("make", [lambda: StoreBoard("p", HashStore()), LocalBoard])
def test_reader_waits_for_a_later_message_or_gives_up(make):
    board = make()
    assert board.read("key", 0.05) is None
    found = []
    reader = threading.Thread(target=lambda: found.append(board.read("key", 20)))
    reader.start()
    time.sleep(0.1)
    board.post("key", "late")
    reader.join()
    assert found == ["late"]


def test_waiting_reader_keeps_nobody_from_the_store():
    """A blocking wait of one thread would hold the store's client for all of them."""
    server, client = _open_tcp()
    board = StoreBoard("run", client)
    reader = threading.Thread(target=board.read, args=("never", 3))
    reader.start()
    begin = time.monotonic()
    for number in range(50):
        board.post(f"{number}", "x")
    assert reader.is_alive()
    assert time.monotonic() - begin < 3
    reader.join()
    del server


def test_old_messages_are_removed():
    server, client = _open_tcp()
    board = StoreBoard("run", client)
    before = server.num_keys()
    for number in range(500):
        board.post(f"{number}", "x")
    assert server.num_keys() - before < 50
    assert board.read("499", 1) == "x"
    assert board.read("400", 0) is None


def test_store_that_died_with_rank_zero_is_explained(tmp_path: Path):
    code = (
        "import sys; from torch.distributed import TCPStore\n"
        "s = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "print(s.port, flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code]
    host = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    board = StoreBoard("run", TCPStore("127.0.0.1", int(host.stdout.readline()), is_master=False))
    board.post("a", "x")
    host.kill()
    host.communicate()
    with pytest.raises(LaunchError, match="can no longer exchange messages"):
        board.read("b", 20)
    with pytest.raises(LaunchError, match="can no longer exchange messages"):
        board.post("b", "x")


def test_process_without_a_group_talks_to_itself():
    assert not torch.distributed.is_initialized()
    assert isinstance(open_board("run"), LocalBoard)


def test_ranks_of_a_group_share_a_board(two_ranks):
    assert two_ranks.run("board_check:exchange", 50) == ["0:49", "1:49"][::-1]
