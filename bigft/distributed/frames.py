"""What the main thread is doing, for words about a rank that does not move."""

import sys
import threading
from types import FrameType

_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")
"""Where Python's part of a collective is."""

_OWN_WAIT = "/bigft/distributed/waits.py"
_WRAPPERS = (_OWN_WAIT, "/deepspeed/utils/nvtx.py")
"""Of these there is nothing to say: who called them counts."""

_WAITING_NAMES = ("wait", "synchronize", "barrier")


def find_main_frame() -> tuple[str, bool]:
    """Say in which Python function the main thread is, and whether it waits for other ranks.

    A collective that is waited for in native code shows in the functions around it.
    """
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    waits = frame is not None and frame.f_code.co_filename.endswith(_OWN_WAIT)
    while frame is not None and frame.f_code.co_filename.endswith(_WRAPPERS):
        frame = frame.f_back
    if frame is None:
        return "", False
    found = _find_collective(frame)
    shown = found or frame
    file = shown.f_code.co_filename.rpartition("/")[2]
    return f"{shown.f_code.co_name} ({file}:{shown.f_lineno})", waits or found is not None


def _find_collective(frame: FrameType) -> FrameType | None:
    """Find the innermost frame that belongs to a collective, if this is one."""
    if frame.f_code.co_name in _WAITING_NAMES:
        return frame
    at: FrameType | None = frame
    for _ in range(6):
        if at is None:
            return None
        if any(part in at.f_code.co_filename for part in _COLLECTIVES):
            return at
        at = at.f_back
    return None
