"""What early stopping waits for, from its setting: `loss:3`."""

import re
from dataclasses import dataclass

from bigft.evaluation.ranking import strip_prefix

_FORM = re.compile(r"(?P<metric>[^:\s][^\s]*):(?P<patience>[1-9][0-9]*)")


@dataclass(frozen=True)
class Patience:
    """A metric, and how long it may go without a better value."""

    metric: str
    """Without `eval_`."""
    evaluations: int


def parse_patience(text: str) -> Patience:
    """Read `METRIC:PATIENCE`.

    Raises:
        ValueError: It is something else.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is no METRIC:PATIENCE, such as loss:3 (evaluations without improvement,"
            " from 1)"
        )
    return Patience(strip_prefix(match["metric"]), int(match["patience"]))
