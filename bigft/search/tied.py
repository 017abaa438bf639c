"""Become another program that gets SIGTERM when its parent dies: no trial outlives its sweep.

    python -m bigft.search.tied PARENT_PID WORD...

A program of its own, because between fork and exec Python promises nothing to a parent that has
threads. Linux only, as all of bigft.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    """Tie this process to its parent and replace its program; never returns."""
    parent, *command = words
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        # It died before it could be asked for; nothing has begun.
        raise SystemExit(128 + signal.SIGTERM)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
