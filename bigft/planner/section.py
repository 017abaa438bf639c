"""Settings of the plan."""

from typing import Literal

from bigft.config.section import Section


class PlanSection(Section):
    """Whether a run is held against its plan before anything is loaded."""

    check: Literal["error", "warn", "off"] = "error"
    """`error` refuses a run that cannot fit even if the forecast is 10% too high; `warn` only says
    so; `off` does not plan."""
