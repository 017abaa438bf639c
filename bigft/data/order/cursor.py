"""Where a run stands in its data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cursor:
    """The place of the next sequence in the order of the data; a checkpoint holds one.

    Together with the seed it says everything: loading can go on here at once, with any number of
    ranks and workers.
    """

    epoch: int = 0
    """Passes over the data that are complete."""

    position: int = 0
    """Sequences of this epoch (when streaming: of this window) that were dealt out."""

    row: int = 0
    """When streaming: raw rows of this epoch that come before the window."""
