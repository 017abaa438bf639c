"""The text of `--data`: parts separated by commas, each with an optional weight, and their names.

A path that exists always wins: its name may hold commas and colons.
"""

import math
import os.path
import re
from collections import Counter
from collections.abc import Sequence

from bigft.errors import DataError

_NAME_CHARACTERS = 64


def split_spec(spec: str) -> list[str]:
    """Split at the commas that do not belong to the name of an existing file or folder."""
    pieces = spec.split(",")
    parts: list[str] = []
    start = 0
    while start < len(pieces):
        # The longest name first, so that `a,b.jsonl` is not read as `a` where both exist.
        for end in range(len(pieces), start, -1):
            part = ",".join(pieces[start:end]).strip()
            name, _, weight = part.rpartition(":")
            if end == start + 1 or _exists(part) or ("," not in weight and _exists(name)):
                break
        if part:
            parts.append(part)
        start = end
    return parts


def split_weight(part: str, flag: str, *, weighted: bool = True) -> tuple[str, float | None]:
    """Split `a.jsonl:3` into the name and the weight.

    Args:
        part: One part of a setting.
        flag: The setting, for error messages.
        weighted: Whether weights are allowed.

    Raises:
        DataError: The weight is not a positive number, or there must be none.
    """
    name, colon, weight = part.rpartition(":")
    # Colons also stand in names, slices (`train[:10%]`) and addresses (`https://`).
    if not colon or _exists(part) or weight.endswith("]") or "/" in weight:
        return part, None
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not name or not 0 < value < math.inf:
        raise DataError(
            f"{flag}={part}: the weight {weight!r} is not a positive number; write NAME:2 or "
            "NAME:0.5, or leave the part away that should not count"
        )
    if not weighted:
        raise DataError(f"{flag}={part}: weights are for training data only; write {flag} {name}")
    return name, value


def choose_names(wishes: Sequence[tuple[str, str]]) -> list[str]:
    """Choose a short and unique name of `[A-Za-z0-9._-]` for each part.

    Args:
        wishes: Per part a short name, and a longer one for when the short one is taken.
    """
    short = [_clean(wish) for wish, _ in wishes]
    long = [_clean(wish) for _, wish in wishes]
    counts = Counter(short)
    names = [
        brief if brief and counts[brief] == 1 else (full or brief or "data")
        for brief, full in zip(short, long, strict=True)
    ]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 2
        while names[index] in taken:
            names[index] = f"{name}-{number}"
            number += 1
        taken.add(names[index])
    return names


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:_NAME_CHARACTERS].strip("-.")


def _exists(name: str) -> bool:
    # Unlike Path.exists, this is False for what no file can be called.
    return bool(name) and os.path.exists(os.path.expanduser(name))  # noqa: PTH110, PTH111
