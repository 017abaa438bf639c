"""The witness: a process that outlives the ranks of a host and says how they ended.

Started by its file name, without site packages, and it imports as little as it can until there is
something to say: it waits beside a run that needs all the memory there is. `witness.py` starts it.

python -I -S witness_process.py ROOT RANK PIDFD PLACE_FD PIPE_FD PARENT RANK_VARIABLE...
"""

# `signal` would bring `enum`, and a megabyte.
import _signal
import os
import select
import sys

_PATIENCE_SECONDS = 45.0
"""After a death, for the others to leave: the launcher gives them 30 seconds before it kills."""


def main() -> None:
    """Wait for the end of the rank and of those beside it; speak if nobody else has."""
    root, rank = sys.argv[1], int(sys.argv[2])
    pidfd, place, pipe, parent = map(int, sys.argv[3:7])
    variables = [name.encode() for name in sys.argv[7:]]
    # It ends with the ranks, whoever tells everybody to stop.
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        _signal.signal(getattr(_signal, name), _signal.SIG_IGN)
    _hide_from_memory_killer()
    waiting = {pidfd: (_pid_of(pidfd), rank), **_find_siblings(parent, rank, variables)}
    ends: list[tuple[int, int, int, str]] = []
    poller = select.poll()
    for fd in (*waiting, pipe):
        poller.register(fd, select.POLLIN)
    while waiting:
        events = poller.poll(_PATIENCE_SECONDS * 1000 if ends else None)
        if not events:
            break
        for fd, _ in events:
            if fd != pipe:
                poller.unregister(fd)
                pid, number = waiting.pop(fd)
                # At once: what started it collects the status, and then it is gone.
                ends.append((number, pid, fd, _read_status(pid)))
            elif os.read(pipe, 1):
                return
            else:
                poller.unregister(pipe)
    sys.path.insert(0, root)
    from bigft.distributed.last_words import speak_for

    speak_for(ends, place)


def _read_status(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    return -1


def _find_siblings(parent: int, rank: int, variables: list[bytes]) -> dict[int, tuple[int, int]]:
    """Find the other ranks that the same launcher has started, before they know each other."""
    found: dict[int, tuple[int, int]] = {}
    if "RANK" not in os.environ:
        return found
    try:
        with open(f"/proc/{parent}/task/{parent}/children") as file:  # noqa: PTH123
            children = [int(word) for word in file.read().split()]
    except OSError:
        return found
    for pid in children:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
                pairs = dict(word.partition(b"=")[::2] for word in file.read().split(b"\0"))
            # Not what the rank has set for itself: it had these when it began.
            numbers = [int(pairs[name]) for name in variables if name in pairs]
            if numbers and numbers[0] != rank:
                found[os.pidfd_open(pid)] = (pid, numbers[0])
        except (OSError, ValueError):
            continue
    return found


def _hide_from_memory_killer() -> None:
    """Where a control group is killed as a whole, only processes with this score are spared."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write("-1000")
    except OSError:
        pass


if __name__ == "__main__":
    main()
