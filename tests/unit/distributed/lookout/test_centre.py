"""Hosts that go, are silent, or are none of ours: real sockets, one process."""

import contextlib
import json
import socket
import time
from collections.abc import Callable

import pytest
from lookout_site import LIMITS, TOKEN, Heard, Site, standing, wait_for

from bigft.distributed.lookout import centre as centre_module
from bigft.distributed.lookout import outpost as outpost_module
from bigft.distributed.lookout.build import build_lookout, open_door
from bigft.distributed.lookout.centre import Centre
from bigft.distributed.lookout.limits import Limits
from bigft.distributed.lookout.lines import Line, LineClosedError, call
from bigft.distributed.lookout.outpost import Follower, Outpost, tell_once
from bigft.distributed.lookout.parties import Door, Host

Make = Callable[..., Site]


def connected(site: Site) -> bool:
    return all(post.line is not None for post in site.centre._posts.values())


def started(site: Site) -> Site:
    site.start()
    wait_for(lambda: connected(site))
    return site


def test_hosts_that_are_well_are_left_alone_and_part_in_order(site: Make):
    found = started(site(3))
    time.sleep(2.5)
    assert [heard.ends for heard in found.heard] == [[], [], []]
    found.outposts[2].part()
    time.sleep(1.0)
    found.centre.part()
    time.sleep(1.0)
    assert [heard.ends for heard in found.heard] == [[], [], []]


def test_a_host_that_closes_without_a_farewell_is_named(site: Make):
    found = started(site(3))
    gone = found.outposts[2]
    wait_for(lambda: found.steps[2] > 2)
    gone._over.set()
    gone._thread.join()
    gone._line.close()
    wait_for(lambda: found.heard[0].ends)
    ((code, text, at_once, _),) = found.heard[0].ends
    assert (code, at_once) == (6, True)
    assert text.startswith("host w3 (rank 2) has gone: its connection closed without a farewell")
    assert "When it was last heard, rank 2 in step " in text
    assert text.endswith("goes on from the newest committed checkpoint")


def test_a_connection_that_breaks_comes_back(site: Make):
    found = started(site(2))
    wait_for(lambda: found.outposts[1]._line is not None)
    line = found.outposts[1]._line
    line.connection.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: found.outposts[1]._line not in (None, line))
    time.sleep(1.5)
    assert [heard.ends for heard in found.heard] == [[], []]
    assert connected(found)


def test_a_connection_that_is_let_go_of_while_something_is_sent_is_no_error(site: Make):
    """The thread that leaves says so; an error there would keep its process for ever."""
    found = site(2)
    left, right = socket.socketpair()

    class Slipping(Outpost):
        lines = (None, Line(left))

        @property
        def _line(self):
            *self.lines, last = self.lines
            return last

        @_line.setter
        def _line(self, line): ...

    one = Slipping(LIMITS, found.hosts[1], "w1", found.door, list, found.heard[1], speaks=True)
    one.dismiss(1, 6, at_once=True)
    assert b'"end": 6' in right.recv(100)


def test_a_silent_process_is_found_by_both_sides(site: Make, monkeypatch):
    """Its system answers, so it gets more time than one that is gone."""
    limits = Limits(startup=9, steady=2.5, slow=9, lost=0.8)
    found = started(site(3, limits))
    wait_for(lambda: found.centre._judge.step_seconds is not None)
    mute = found.outposts[2]
    monkeypatch.setattr(mute, "_report", lambda: None)
    assert wait_for(lambda: found.heard[0].ends) > 2.0
    text = found.heard[0].ends[0][1]
    assert "host w3 (rank 2) is silent for" in text
    assert "though its system answers" in text
    # Those who wait show for what: on rank 0's host, and on others that still hear.
    wait_for(lambda: found.heard[1].dumps)
    assert "the run stands still" in found.heard[0].dumps[0]

    quiet = started(site(3))
    quiet.centre._over.set()
    wait_for(lambda: quiet.heard[1].ends and quiet.heard[2].ends)
    assert "rank 0 on host w1 is silent for" in quiet.heard[1].ends[0][1]
    # One host speaks for all.
    assert quiet.heard[2].ends[0][1] == ""
    assert all("rank 0 on host w1 is silent" in quiet.heard[n].dumps[0] for n in (1, 2))


def test_a_host_that_does_not_answer_is_lost_sooner(site: Make, monkeypatch):
    """As behind a link that is cut: nothing is acknowledged any more."""
    found = started(site(2))
    monkeypatch.setattr(Line, "answered_seconds_ago", lambda line: time.monotonic() - line.heard)
    monkeypatch.setattr(found.outposts[1], "_report", lambda: None)
    found.outposts[1]._limits = Limits(lost=0)
    seconds = wait_for(lambda: found.heard[0].ends)
    assert 0.8 * LIMITS.lost <= seconds < 2.5 * LIMITS.lost
    assert "host w2 (rank 1) does not answer for 1" in found.heard[0].ends[0][1]
    assert found.heard[0].dumps == []


def test_what_the_system_acknowledges_is_known(site: Make):
    found = started(site(2))
    time.sleep(0.5)
    (post,) = found.centre._posts.values()
    assert 0 <= post.line.answered_seconds_ago() < 0.4


def test_when_nothing_moves_stacks_are_asked_for_everywhere(site: Make):
    found = started(site(3))
    wait_for(lambda: min(found.steps) > 8)
    found.is_moving = False
    wait_for(lambda: found.heard[0].ends)
    (end,) = found.heard[0].ends
    assert (end[0], end[2]) == (6, True)
    assert "nothing has moved for 1." in end[1]
    assert "--watch.steady_seconds, or 5 steps of" in end[1]
    wait_for(lambda: found.heard[1].dumps and found.heard[2].dumps)
    assert found.heard[0].dumps[0].startswith("the run stands still; Python stacks follow: ")
    # What the main thread of rank 0 does then.
    found.centre.dismiss(0, 6, at_once=True)
    wait_for(lambda: found.heard[1].ends and found.heard[2].ends)
    assert found.heard[1].ends == [(6, "", True, 0)]


def test_the_end_of_a_rank_reaches_all_hosts_with_its_code(site: Make):
    found = started(site(3))
    found.outposts[2].dismiss(2, 5, at_once=False)
    wait_for(lambda: found.heard[0].ends)
    assert found.heard[0].ends == [(5, "", False, 2)]
    found.centre.dismiss(2, 5, at_once=False)
    wait_for(lambda: found.heard[1].ends)
    assert found.heard[1].ends == [(5, "", False, 2)]
    # Nobody is surprised when it closes now.
    found.outposts[2].part()
    time.sleep(1.2)
    assert len(found.heard[0].ends) == 1


def test_last_words_reach_rank_0_and_it_says_so(site: Make):
    found = started(site(2))
    assert tell_once(found.door, found.hosts[1], 1, 6, "rank 1 fell", at_once=True)
    wait_for(lambda: found.heard[0].ends)
    assert found.heard[0].ends == [(6, "host w2: rank 1 fell", True, 1)]
    # Longer ones are cut, and nobody is there any more.
    assert tell_once(found.door, found.hosts[1], 1, 6, "\0é" * 9000, at_once=True)
    found.centre.part()
    assert not tell_once(found.door, found.hosts[1], 1, 6, "late", at_once=True)


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\0\n",
        b"[" * 30_000,
        b"[" * 9000 + b"\n",
        b'"text"\n',
        b'{"leader": 1, "token": "another one"}\n',
        b'{"leader": 1, "token": ["the token of this run"]}\n',
        b'{"leader": 7, "token": "the token of this run"}\n',
        b'{"leader": true, "token": "the token of this run"}\n',
        b"",
    ],
)
def test_strangers_are_dropped_and_change_nothing(site: Make, words):
    found = started(site(2))
    with socket.create_connection(("127.0.0.1", found.door.port), timeout=5) as stranger:
        stranger.sendall(words)
        stranger.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    assert found.heard[0].ends == []
    assert connected(found)


def test_so_many_strangers_keep_nobody_out(site: Make):
    found = site(2)
    found.centre.start()
    crowd = []
    for _ in range(200):
        stranger = socket.create_connection(("127.0.0.1", found.door.port), timeout=5)
        stranger.send(b"{")
        crowd.append(stranger)
    found.outpost(1).start()
    wait_for(lambda: connected(found))
    assert len(found.centre._strangers) <= 64 + 1
    time.sleep(1.0)
    assert len(found.centre._strangers) == 0
    for stranger in crowd:
        stranger.close()


@pytest.mark.parametrize(
    "message",
    [
        {"ranks": 7},
        {"ranks": [[1, 2, 3]]},
        {"ranks": [[0, 1, "forward", 3, 9, "m", "S", 1, "", False]]},
        {"ranks": [[1, 1, "x" * 5000, 3, 9, "m", "S", 1, "", False]]},
        {"end": "x", "rank": 1},
        {"end": 6, "rank": 0},
        {"end": -9, "rank": 1},
        {"else": None},
    ],
)
def test_a_host_that_talks_nonsense_is_not_believed(site: Make, message):
    found = started(site(2))
    wait_for(lambda: len(found.centre._judge._known) == 2)
    line = call(found.door.addresses, found.door.port, {"leader": 1, "token": TOKEN})
    line.send(message)
    time.sleep(0.4)
    assert found.heard[0].ends == []
    assert all(known.standing.mark != "m" for known in found.centre._judge._known.values())
    line.close()


def test_a_reader_that_does_not_read_is_dropped():
    """What is not read is not kept without limit."""
    left, right = socket.socketpair()
    line = Line(left)
    for _ in range(900):
        line.send({"text": "x" * 1000})
    with pytest.raises(LineClosedError, match="nobody reads"):
        flood(line)
    right.close()


def flood(line: Line) -> None:
    for _ in range(10_000):
        line.send({"text": "x" * 1000})


def test_a_line_without_end_is_refused():
    left, right = socket.socketpair()
    line = Line(left, 1000)
    right.sendall(b"x" * 5000)
    with pytest.raises(LineClosedError, match="too long"):
        line.receive()


def test_lines_come_in_pieces_and_together():
    left, right = socket.socketpair()
    line = Line(left)
    text = json.dumps({"a": 1}).encode() + b"\n" + json.dumps({"b": "é"}).encode() + b"\n"
    for byte in text[:-1]:
        right.send(bytes([byte]))
    assert line.receive() == [{"a": 1}]
    right.send(text[-1:] + text)
    right.close()
    assert line.receive() == [{"b": "é"}, {"a": 1}, {"b": "é"}]
    with pytest.raises(LineClosedError, match="closed"):
        line.receive()


def test_a_host_that_cannot_call_is_said_once(site: Make):
    found = site(2)
    nowhere = Door(("127.0.0.1",), 1, TOKEN)
    found.centre.start()
    found.outpost(1, door=nowhere).start()
    wait_for(lambda: found.heard[0].warnings)
    time.sleep(1.5)
    (warning,) = found.heard[0].warnings
    assert warning.startswith("warning: host w2 (rank 1) cannot reach 127.0.0.1 port")
    assert "--watch.port" in warning
    assert [heard.ends for heard in found.heard] == [[], []]


def test_two_hundred_hosts_are_heard(site: Make, monkeypatch):
    monkeypatch.setattr(centre_module, "TICK_SECONDS", 0.5)
    monkeypatch.setattr(outpost_module, "TICK_SECONDS", 0.5)
    found = site(201, limits=Limits(startup=60, steady=60, slow=60, lost=30))
    started(found)
    wait_for(lambda: len(found.centre._judge._known) == 201, 20)
    found.centre.dismiss(0, 6, at_once=True)
    wait_for(lambda: all(heard.ends for heard in found.heard[1:]), 20)
    ends = [heard.ends for heard in found.heard[1:]]
    assert len(ends) == 200
    assert {code for ((code, _, _, _), *_) in ends} == {6}


def test_a_pause_of_this_process_is_nobodys_silence(site: Make, monkeypatch):
    monkeypatch.setattr(centre_module, "_SLEPT_SECONDS", 0.5)
    monkeypatch.setattr(outpost_module, "_SLEPT_SECONDS", 0.5)
    found = started(site(2))
    look = found.look
    naps = [time.sleep]

    def doze(rank: int) -> list:
        if rank == 0 and naps:
            naps.pop()(2 * LIMITS.lost)
        return look(rank)

    monkeypatch.setattr(found, "look", doze)
    # The other host keeps silent as long, as in a machine that is paused as a whole.
    monkeypatch.setattr(found.outposts[1], "_limits", Limits(lost=0))
    time.sleep(3 * LIMITS.lost)
    assert found.heard[0].ends == []


# Who takes which part, and where rank 0 listens.


def test_parts():
    hosts = [Host("w1", {0: 1, 1: 2}), Host("w2", {2: 1, 3: 2}), Host("w3", {4: 1})]
    door = Door(("10.0.0.1",), 1, "t")

    def part(rank: int) -> object:
        return build_lookout(rank, hosts, LIMITS, list, Heard(), (None, door))

    assert isinstance(part(0), Centre)
    assert isinstance(part(1), Follower)
    # Its words stay on the host: rank 0 sees its end there.
    assert not part(1).tell(1, 6, "x", at_once=True)
    assert isinstance(part(2), Outpost)
    assert part(2)._speaks
    assert isinstance(part(3), Follower)
    assert not part(4)._speaks
    assert isinstance(build_lookout(4, hosts, LIMITS, list, Heard(), (None, None)), Follower)


def test_rank_0_listens_at_the_address_where_the_ranks_met(monkeypatch):
    from bigft.distributed.lookout import build

    monkeypatch.setattr(build, "_is_local", lambda address: address.startswith("127.0.1."))
    listener, door = open_door("127.0.0.1", ["127.0.0.9"], 0)
    with listener:
        assert listener.getsockname() == ("127.0.0.1", door.port)
        assert door.addresses == ("127.0.0.1",)
        assert len(door.token) > 30
    # A host's own name may lead to its loopback: the next address counts.
    monkeypatch.setattr(build, "_resolve", lambda name: ["127.0.1.1", "203.0.113.7"])
    listener, door = open_door("master", ["127.0.0.2"], 0)
    with listener:
        assert listener.getsockname()[0] == "127.0.0.2"
        assert door.addresses == ("127.0.0.2", "master")
    assert open_door("master", [], 0) is None


def test_a_standing_survives_the_way(site: Make):
    one = standing(3, 7, "data", where="f (x.py:1)", waits=True)
    assert type(one).from_row(json.loads(json.dumps(one.to_row()))) == one
