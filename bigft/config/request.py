"""What the command line asked for, before any setting has been looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """One parsed command line; every value is still text.

    Deliberately not callable: Fire would call what a command returns.
    """

    command: str
    """The verb, e.g. `"train"`."""

    words: tuple[str, ...] = ()
    """Positional words after the verb."""

    settings: Mapping[str, str] = field(default_factory=dict)
    """Flag without dashes -> text, as typed (`"optim"`, `"optim.name"`, `"ds.bf16.enabled"`)."""

    config: str = ""
    """The DeepSpeed JSON, as typed."""

    recipe: str = ""
    """The recipe YAML, as typed."""

    inner: "Request | None" = None
    """The command line behind `--` (`bigft launch ... -- train ...`)."""

    argv: tuple[str, ...] = ()
    """The words of the whole command line, for the record."""
