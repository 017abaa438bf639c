"""A centre on this machine, and hosts that call it."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bigft.distributed.lookout import centre as centre_module
from bigft.distributed.lookout import outpost as outpost_module
from bigft.distributed.lookout import strangers as strangers_module
from bigft.distributed.lookout.centre import Centre
from bigft.distributed.lookout.limits import Limits
from bigft.distributed.lookout.lines import listen
from bigft.distributed.lookout.outpost import Outpost
from bigft.distributed.lookout.parties import Door, Host
from bigft.distributed.lookout.standing import Standing

TOKEN = "the token of this run"
LIMITS = Limits(startup=2.0, steady=1.0, slow=3.0, lost=1.2)


class Heard:
    """Ears that write down."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, str, bool, int | None]] = []
        self.warnings: list[str] = []
        self.dumps: list[str] = []

    def ended(self, code: int, text: str, *, at_once: bool, rank: int | None = None) -> None:
        self.ends.append((code, text, at_once, rank))

    def warned(self, text: str) -> None:
        self.warnings.append(text)

    def dump(self, line: str) -> None:
        self.dumps.append(line)


def standing(rank: int, step: int | None = 1, phase: str = "forward", **changes: Any) -> Standing:
    mark = changes.pop("mark", f"{step} {phase}")
    first, state = changes.pop("first", None), changes.pop("state", "S")
    return Standing(rank, 100 + rank, phase, step, first, 9, mark, state, 5 << 20, **changes)


class Site:
    """Rank 0's host and others, in threads of this process."""

    def __init__(self, count: int, limits: Limits = LIMITS) -> None:
        self.hosts = [Host(f"w{n + 1}", {n: 100 + n}) for n in range(count)]
        self.limits = limits
        self.heard = [Heard() for _ in self.hosts]
        self.steps = [0] * count
        self.is_moving = True
        listener = listen("127.0.0.1", 0)
        self.door = Door(("127.0.0.1",), listener.getsockname()[1], TOKEN)
        self.centre = Centre(
            limits,
            self.hosts[0],
            self.hosts[1:],
            lambda: self.look(0),
            self.heard[0],
            listener=listener,
            token=TOKEN,
        )
        self.outposts: dict[int, Outpost] = {}

    def look(self, rank: int) -> list[Standing]:
        if self.is_moving:
            self.steps[rank] += 1
        return [standing(rank, self.steps[rank])]

    def outpost(self, rank: int, **changes: Any) -> Outpost:
        made = Outpost(
            changes.get("limits", self.limits),
            self.hosts[rank],
            "w1",
            changes.get("door", self.door),
            lambda: self.look(rank),
            self.heard[rank],
            speaks=rank == 1,
        )
        self.outposts[rank] = made
        return made

    def start(self) -> None:
        self.centre.start()
        for rank in range(1, len(self.hosts)):
            self.outpost(rank).start()

    def close(self) -> None:
        for outpost in self.outposts.values():
            if outpost._thread.is_alive():
                outpost.part()
        if self.centre._thread.is_alive():
            self.centre.part()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    """Make sites that live ten times as fast as real ones."""
    for module in (centre_module, outpost_module):
        monkeypatch.setattr(module, "TICK_SECONDS", 0.1)
        monkeypatch.setattr(module, "STACKS_SECONDS", 0.0)
    monkeypatch.setattr(centre_module, "_GRACE_SECONDS", 0.6)
    monkeypatch.setattr(centre_module, "_ARRIVAL_SECONDS", 1.0)
    monkeypatch.setattr(strangers_module, "_HELLO_SECONDS", 0.5)
    monkeypatch.setattr(outpost_module, "_RETURN_SECONDS", 0.6)
    monkeypatch.setattr(outpost_module, "_ARRIVAL_SECONDS", 1.0)
    made: list[Site] = []

    def make(*arguments: Any, **named: Any) -> Site:
        made.append(Site(*arguments, **named))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not [t for t in threading.enumerate() if t.name == "bigft-lookout" and t.is_alive()]


def wait_for(happens: Callable[[], Any], seconds: float = 10.0) -> float:
    started = time.monotonic()
    while not happens():
        assert time.monotonic() - started < seconds
        time.sleep(0.02)
    return time.monotonic() - started
