"""What it means that the other side of a connection says nothing."""

from dataclasses import dataclass

from bigft.distributed.lookout.limits import Limits
from bigft.distributed.lookout.lines import Line
from bigft.units import format_seconds


@dataclass(frozen=True)
class Silence:
    """A side that will not be heard of again."""

    text: str
    answers: bool
    """Whether its system does: only the process that speaks for it stands still."""


def judge_silence(limits: Limits, silent: float, line: Line, patience: float) -> Silence | None:
    """Say what is wrong with who has been silent for some seconds; None while it may be.

    Args:
        limits: Of a host that does not answer.
        silent: How long.
        line: Its connection.
        patience: How long its process may be silent while its system answers.
    """
    if not limits.lost or silent < limits.lost:
        return None
    answered = line.answered_seconds_ago()
    if answered is None or answered >= limits.lost / 2:
        text = (
            f"does not answer for {format_seconds(silent)} (limit {format_seconds(limits.lost)},"
            " --watch.lost_seconds): its power, its network or the link has gone"
        )
        return Silence(text, answers=False)
    if silent < patience:
        return None
    text = (
        f"is silent for {format_seconds(silent)}, though its system answers: the process that"
        " speaks for it is stopped (SIGSTOP), or stuck in native code"
    )
    return Silence(text, answers=True)
