"""A row as a reader finds it, parsed later and maybe in another process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unreadable:
    """A row that its reader could not make sense of; reading goes on behind it."""

    reason: str
    content: str
    """What stands there, for `rejected.jsonl`; may be shortened."""


@dataclass(frozen=True)
class RawRow:
    """One row of a source."""

    payload: bytes | Mapping[str, Any] | Unreadable
    """Bytes: one line of JSON, not yet decoded."""

    origin: str
    """Where it stands: `a.jsonl:3`."""
