"""A rank that does nothing but wait, with a real `Watch` over others.

python watch_process.py RANK MODE [RANK:PID ...]     MODE: sleep, confused, blocked, loop or fail
"""

import ctypes
import logging
import os
import sys
import threading
import time
from typing import Any


def main() -> None:
    rank, mode, *peers = sys.argv[1:]
    os.environ["RANK"] = rank
    # As in a run, where the log goes to files: without a handler Python would print it.
    logging.getLogger().addHandler(logging.NullHandler())
    from bigft.distributed.signals import StopSignals
    from bigft.distributed.watch import Watch
    from bigft.errors import StoppedError

    signals = StopSignals()
    try:
        with signals.installed():
            watch = Watch(signals)
            with watch.running():
                found = [peer.partition(":") for peer in peers]
                watch._watch([(int(pid), int(number)) for number, _, pid in found])
                watch.before_leaving(lambda: print("cleaned up", flush=True))
                # Not before the main thread is where it is going to stay.
                threading.Timer(0.5, print, ["ready"], {"flush": True}).start()
                MODES[mode](signals, watch)
    except StoppedError as error:
        sys.stderr.write(f"raised: {error}\n")
        raise SystemExit(error.exit_code) from None


def sleep(signals: Any, watch: Any) -> None:
    time.sleep(60)


def confused(signals: Any, watch: Any) -> None:
    """Have a bug in the thread that watches, now and then."""
    turns = iter(range(1_000_000))
    look = watch._sampler.take

    def take() -> None:
        if next(turns) % 2:
            raise RuntimeError("a bug")
        look()

    watch._sampler.take = take
    time.sleep(60)


def blocked(signals: Any, watch: Any) -> None:
    """Wait in native code that does not look at signals, as a collective does."""
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def loop(signals: Any, watch: Any) -> None:
    """Look at requests from time to time, as the training loop does."""
    with signals.awaited():
        for _ in range(600):
            if signals.name:
                print(f"asked by {signals.name}", flush=True)
                return
            time.sleep(0.1)


def fail(signals: Any, watch: Any) -> None:
    """Fail as a collective does when another rank has gone."""
    time.sleep(3)
    error = RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer")
    watch.explain(error)
    raise error


MODES = {"sleep": sleep, "confused": confused, "blocked": blocked, "loop": loop, "fail": fail}

if __name__ == "__main__":
    main()
