"""Settings of the task."""

from typing import Literal

from bigft.config.section import Section


class TaskSection(Section):
    """What the model learns."""

    name: Literal["causal_lm"] = "causal_lm"
    """`causal_lm`: predict the next token."""
