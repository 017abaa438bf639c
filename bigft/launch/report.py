"""What the agent of a host says: that it is there, and at last how the ranks ended."""

import json
import signal
from dataclasses import asdict, dataclass

from bigft.launch.foreign import read_object, take_text, take_whole

MARK = "\x1e"
"""Begins every word of an agent (RFC 7464's record separator)."""

_MOST = 1 << 20


def begin_word(token: str) -> str:
    """Return what every word of an agent begins with; each ends with its line.

    Args:
        token: Of the job. Ranks do not have it: none of them can speak for the agent.
    """
    if not token:
        raise ValueError("no token")
    return MARK + token


@dataclass(frozen=True)
class Report:
    """How the ranks of a host ended."""

    host: str
    code: int
    """Exit code of the first rank that failed, negative for a signal; 0: all are done."""

    rank: int | None = None
    """That rank, where it is known."""

    stopped: str = ""
    """Who asked the ranks to stop; empty: nobody."""

    left: int = 0
    """Processes that could not be ended."""

    of_launcher: bool = False
    """Whether `code` is that of DeepSpeed's launcher there, and not of a rank."""

    def to_line(self, token: str) -> str:
        """Return it as a word of the agent that has the token."""
        return f"{begin_word(token)} {json.dumps(asdict(self))}\n"

    @classmethod
    def from_line(cls, line: str, token: str) -> "Report":
        """Read what `to_line` wrote.

        Raises:
            ValueError: It is something else, or somebody else has written it.
        """
        start, _, text = line.partition(" ")
        if start != begin_word(token):
            raise ValueError("no report")
        data = read_object(text)
        return cls(
            host=take_text(data, "host"),
            code=take_whole(data, "code", -signal.NSIG, 255),
            rank=None if data.get("rank") is None else take_whole(data, "rank", 0, _MOST),
            stopped=take_text(data, "stopped"),
            left=take_whole(data, "left", 0, _MOST),
            of_launcher=data.get("of_launcher") is True,
        )
