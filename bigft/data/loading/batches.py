"""From rows to batches, for every layout of rows."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from bigft.data.layouts.layout import Layout
from bigft.data.layouts.masked import Masked
from bigft.data.layouts.next_token import NextToken
from bigft.data.layouts.several import Several
from bigft.data.layouts.source_target import SourceTarget
from bigft.data.layouts.targets import Targets
from bigft.data.loading.collate import IGNORED, Batch, collate_packed, collate_padded
from bigft.data.loading.join import join
from bigft.data.loading.loader import Collate
from bigft.data.loading.pad import name_sources, pad
from bigft.data.tokens.tokenize import Row

Items = Sequence[Sequence[Row]]
"""An item is the rows of one sequence; an empty one is a sequence of padding."""

_NOTHING = Row(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_))


def collate_next_token(items: Items, layout: NextToken, num_sources: int) -> Batch:
    """Lay rows end to end, or pad them: everything is `(B, T)`."""
    collate = collate_packed if layout.is_packed else collate_padded
    return collate(
        items, pad_id=layout.pad_id, max_length=layout.max_length, num_sources=num_sources
    )


def collate_targets(items: Items, layout: Targets, num_sources: int) -> Batch:
    """Pad the texts, `(B, T)`, and stack the labels, `(B, size)`."""
    parts = [layout.split(item[0]) if item else None for item in items]
    texts = [_NOTHING.input_ids if part is None else part.tokens for part in parts]
    input_ids, mask = pad(texts, fill=layout.pad_id, longest=layout.max_length)
    is_float = layout.coder.is_float
    labels = torch.full(
        (len(items), layout.coder.size),
        torch.nan if is_float else IGNORED,
        dtype=torch.float32 if is_float else torch.int64,
    )
    types = torch.zeros_like(input_ids)
    for number, part in enumerate(parts):
        if part is not None:
            bits = torch.from_numpy(part.label.copy())
            labels[number] = bits.view(torch.float32) if is_float else bits
            types[number, part.num_first : len(part.tokens)] = 1
    sources = name_sources(items, labels) if num_sources > 1 else None
    return Batch(
        input_ids, labels, None, mask, sources, num_sources, types if layout.has_types else None
    )


def collate_source_target(items: Items, layout: SourceTarget, num_sources: int) -> Batch:
    """Pad sources, `(B, T)`, and targets, `(B, S)`."""
    rows = [item[0] if item else _NOTHING for item in items]
    sources = [row.input_ids[~row.supervised] for row in rows]
    input_ids, mask = pad(sources, fill=layout.pad_id, longest=layout.max_length)
    targets = [row.input_ids[row.supervised] for row in rows]
    labels, _ = pad(targets, fill=IGNORED, longest=layout.max_length)
    named = name_sources(items, labels) if num_sources > 1 else None
    return Batch(input_ids, labels, None, mask, named, num_sources)


def collate_masked(items: Items, layout: Masked, num_sources: int) -> Batch:
    """Hide tokens and pad, `(B, T)`."""
    hidden = [layout.hide(item[0] if item else _NOTHING, unlearned=IGNORED) for item in items]
    longest = layout.max_length
    input_ids, mask = pad([ids for ids, _ in hidden], fill=layout.pad_id, longest=longest)
    labels, _ = pad([labels for _, labels in hidden], fill=IGNORED, longest=longest)
    sources = name_sources(items, labels) if num_sources > 1 else None
    return Batch(input_ids, labels, None, mask, sources, num_sources)


def collate_several(items: Items, layout: Several, num_sources: int) -> Batch:
    """Sort the rows by task, let each task make its labels, and join them."""
    found, counts = [], []
    for number, part in enumerate(layout.parts.values()):
        mine = [item for item in items if item and item[0].source == number]
        found.append(_COLLATE[type(part)](mine or [[]], layout=part, num_sources=1))
        counts.append(len(mine))
    aligned = [isinstance(part, NextToken | Masked) for part in layout.parts.values()]
    return join(found, counts, aligned=aligned, pad_id=layout.pad_id)


_COLLATE: dict[type[Any], Callable[..., Batch]] = {
    NextToken: collate_next_token,
    Targets: collate_targets,
    SourceTarget: collate_source_target,
    Masked: collate_masked,
    Several: collate_several,
}


def build_collate(layout: Layout, num_sources: int = 1) -> Collate:
    """Return what makes batches of rows in this layout.

    Args:
        layout: Of the rows.
        num_sources: Parts that the data have.
    """
    return partial(_COLLATE[type(layout)], layout=layout, num_sources=num_sources)
