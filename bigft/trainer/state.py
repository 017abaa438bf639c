"""What a run has done so far; resuming restores exactly this."""

from dataclasses import asdict, dataclass, field
from typing import Any

from bigft.data.order.cursor import Cursor


@dataclass
class Progress:
    """How the metric of early stopping has gone."""

    metric: str = ""
    """Without `eval_`; empty before anybody asked."""
    best: float | None = None
    best_step: int = 0
    without_improvement: int = 0
    """Evaluations since the best one."""
    judged_step: int | None = None
    """Of the newest evaluation that is counted."""


@dataclass
class State:
    """Counters of the run, and its place in the data."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    tokens: int = 0
    """Tokens trained on, without padding."""
    skipped_steps: int = 0
    """Steps that changed no weight because the loss or a gradient was not finite."""
    epoch: float = 0.0
    """Passes over the data."""
    eval_loss: float | None = None
    """The newest evaluation."""
    cursor: Cursor = Cursor()
    """Where the next step begins in the data."""
    skipped_in_a_row: int = 0
    """Of the skipped steps, the latest ones without a good step between them."""
    evaluation_due: bool = False
    """An evaluation was due after the latest step, and gave way to a request to stop."""
    spikes: dict[str, list[float]] = field(default_factory=dict)
    """The recent past of `loss` and `grad_norm`, by which the next ones are judged."""
    scores: dict[str, float] = field(default_factory=dict)
    """Every metric of the newest evaluation."""
    scored_step: int | None = None
    """The step after which that was."""
    progress: Progress = field(default_factory=Progress)
    """What early stopping decides by."""
    is_over: bool = False
    """A hook asks the loop to end here, the same on every rank; hooks decide anew in each run."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "State":
        """Read what `to_dict` wrote; unknown keys of newer versions are ignored."""
        known = cls.__dataclass_fields__
        found = {key: value for key, value in values.items() if key in known}
        progress = Progress(**values.get("progress", {}))
        return cls(**{**found, "cursor": Cursor(**values["cursor"]), "progress": progress})
