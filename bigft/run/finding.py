"""What a rule says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line for the user."""

    text: str
    is_error: bool = True
