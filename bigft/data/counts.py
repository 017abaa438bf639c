"""How many tokens and terms rows have; of several tasks, each part of the data has its own way."""

import numpy as np

from bigft.data.layouts.layout import Counts, Layout
from bigft.data.layouts.several import Several
from bigft.data.store.rows import Rows


def pick_layout(layout: Layout, part: int) -> Layout:
    """Return the layout of the rows of one part of the data."""
    return list(layout.parts.values())[part] if isinstance(layout, Several) else layout


def count_terms(layout: Layout, rows: Rows) -> Counts:
    """Count the terms of the loss of each row, `(rows,)`."""
    if not isinstance(layout, Several):
        return layout.count(rows.supervised_counts)
    pairs = zip(layout.parts.values(), rows.stores, strict=True)
    return np.concatenate([part.count(store.supervised_counts) for part, store in pairs])


def count_tokens(layout: Layout, rows: Rows) -> Counts:
    """Count the tokens of each row, `(rows,)`."""
    if not isinstance(layout, Several):
        return layout.count_tokens(rows.lengths)
    pairs = zip(layout.parts.values(), rows.stores, strict=True)
    return np.concatenate([part.count_tokens(store.lengths) for part, store in pairs])
