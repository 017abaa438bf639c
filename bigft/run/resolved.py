"""A run, fully decided: what all parts of bigft take their settings from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigft.config.request import Request
from bigft.models.facts import ModelFacts
from bigft.run.settings import Run


@dataclass(frozen=True)
class Resolved:
    """One run, fully decided. `run.output_dir` may be "" until `with_output_dir`."""

    run: Run
    ds: dict[str, Any]
    """The DeepSpeed JSON without any "auto" (but `nvme_path`, until `with_output_dir`)."""

    origin: Mapping[str, str]
    """Dotted path (JSON paths with the prefix `ds.`) -> where the value came from."""

    warnings: list[str]
    announced: list[str]
    """Derived values worth one line each."""

    facts: ModelFacts
    world_size: int
    dry_run: bool
    request: Request
    config: str
    """Path of the DeepSpeed JSON; "" when `explain` resolved without one."""

    asked_batch: tuple[int, int] | None = None
    """Sequences per rank and accumulation that were asked for, where a resume has changed them."""
