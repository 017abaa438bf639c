"""What watching costs: processor time of its threads, and microseconds in a step.

    python tests/benchmarks/watching.py [--hosts 127] [--ranks 8] [--seconds 20]

Nothing else runs in the processes that are measured, so their processor time is that of the
threads. Rank 0 is measured with so many other hosts connected, which live in another process.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bigft.distributed.lookout.centre import Centre  # noqa: E402
from bigft.distributed.lookout.limits import Limits  # noqa: E402
from bigft.distributed.lookout.lines import call, listen  # noqa: E402
from bigft.distributed.lookout.parties import Host  # noqa: E402
from bigft.distributed.lookout.standing import survey  # noqa: E402
from bigft.distributed.place import HERE, read_place  # noqa: E402

FACTS: dict[str, Any] = {
    "folder": "/data/runs/2026-11-23-model", "phase": "forward", "step": 1234,
    "total_steps": 100000, "since": 1790000000.123, "rss_bytes": 123456789012, "moves": 7,
    "planned_host_bytes": 123456789012, "max_length": 4096, "micro_batch": 1,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=127)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {
        "hosts": options.hosts + 1,
        "ranks": (options.hosts + 1) * options.ranks,
        "rank_zero_cpu_per_second": measure_centre(options.hosts, options.ranks, options.seconds),
        "watch_cpu_per_second": measure_watch(options.seconds),
        "report_bytes": len(json.dumps([one.to_row() for one in look(options.ranks)])),
        **measure_step((options.hosts + 1) * options.ranks),
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:32} {value:.6g}" if isinstance(value, float) else f"{name:32} {value}")


def look(ranks: int, first: int = 0) -> list[Any]:
    # Process ids that exist: the state of each is read in /proc.
    place = HERE.share() or -1
    return survey({first + n: os.getpid() for n in range(ranks)}, lambda rank: read_place(place))


def measure_centre(hosts: int, ranks: int, seconds: float) -> float:
    """Processor seconds per second of rank 0's lookout."""
    HERE.share()
    HERE.note(**FACTS)
    listener = listen("127.0.0.1", 0)
    everybody = [Host(f"w{n}", {n * ranks + i: 1 for i in range(ranks)}) for n in range(hosts + 1)]
    ears: Any = SimpleNamespace(ended=print, warned=print, dump=print)
    centre = Centre(
        Limits(), everybody[0], everybody[1:], lambda: look(ranks), ears, listener=listener,
        token="token",
    )  # fmt: skip
    words = [sys.executable, __file__, "callers", str(listener.getsockname()[1])]
    child = subprocess.Popen([*words, str(hosts), str(ranks)])
    centre.start()
    time.sleep(4)
    assert all(post.line is not None for post in centre._posts.values())
    before, began = time.process_time(), time.monotonic()
    time.sleep(seconds)
    used = (time.process_time() - before) / (time.monotonic() - began)
    assert len(centre._judge._known) == (hosts + 1) * ranks
    child.kill()
    centre.part()
    return used


def be_callers(port: int, hosts: int, ranks: int) -> None:
    """What the other hosts send."""
    lines = []
    for number in range(1, hosts + 1):
        hello = {"leader": number * ranks, "token": "token"}
        lines.append(call(["127.0.0.1"], port, hello))
    step = 0
    while True:
        step += 1
        for number, line in enumerate(lines, 1):
            rows = [
                [number * ranks + n, 4711, "forward", step, 100000, f"{step} forward 17900.123",
                 "S", 123456789012, "", False]
                for n in range(ranks)
            ]  # fmt: skip
            line.send({"ranks": rows})
            line.receive()
        time.sleep(1)


def measure_watch(seconds: float) -> float:
    """Processor seconds per second of a rank's `Watch`, which every rank has."""
    code = (
        "import time\n"
        "from bigft.distributed.signals import StopSignals\n"
        "from bigft.distributed.watch import Watch\n"
        "with Watch(StopSignals()).running():\n"
        "    before = time.process_time()\n"
        f"    time.sleep({seconds})\n"
        f"    print((time.process_time() - before) / {seconds})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return float(done.stdout)


def measure_step(world_size: int) -> dict[str, float]:
    """Microseconds: one note, one measured wait, one look at all ranks' own work."""
    import torch

    from bigft.distributed import waits
    from bigft.monitor.meters import PhaseClock
    from bigft.trainer.state import State
    from bigft.trainer.stragglers import Stragglers

    class Work:
        def wait(self) -> None: ...

    def time_calls(call: Any, times: int = 20_000) -> float:
        started = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - started) / times * 1e6

    plain = time_calls(Work().wait)
    real, torch.distributed.Work = torch.distributed.Work, Work  # type: ignore[misc,assignment]
    waits.measure_waits()
    measured = time_calls(Work().wait)
    torch.distributed.Work = real  # type: ignore[misc]
    rendezvous: Any = SimpleNamespace(own=(), own_of_all=torch.rand(world_size, 3) + 1)
    hook = Stragglers(
        rendezvous, ["w"] * world_size, fraction=0.2, steps=50, is_rank_zero=True,
        tell=lambda text: None, events=SimpleNamespace(write=lambda *a, **n: None),
    )  # fmt: skip
    clock, state = PhaseClock(torch.device("cpu")), State()
    report: Any = SimpleNamespace(clock=clock, seconds=1e9)
    return {
        "note_us": time_calls(lambda: HERE.note(phase="forward")),
        "measured_wait_us": measured - plain,
        "stragglers_rank_zero_us": time_calls(lambda: hook.stepped(state, report), 2000),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["callers"]:
        be_callers(*map(int, sys.argv[2:]))
    else:
        main()
