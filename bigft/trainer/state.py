"""What a run has done so far; resuming restores exactly this."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class State:
    """Counters of the run. The data cursor is `step`: the order of the data follows from it."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    tokens: int = 0
    """Tokens trained on, without padding."""
    skipped_steps: int = 0
    """Steps that changed no weight because a gradient was not finite."""
    epoch: float = 0.0
    """Passes over the data."""
    eval_loss: float | None = None
    """The newest evaluation."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "State":
        """Read what `to_dict` wrote; unknown keys of newer versions are ignored."""
        known = cls.__dataclass_fields__
        return cls(**{key: value for key, value in values.items() if key in known})
