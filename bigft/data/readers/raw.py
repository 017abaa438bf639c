"""A row as a reader finds it, parsed later and maybe in another process."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigft.data.readers.encoding import BOM, explain_bytes

MAX_ROW_BYTES = 1 << 28
"""A longer line or value is the sign of a missing line end or quote, and would fill the memory."""

MAX_DEPTH = 100
"""Lists and objects inside each other; far below what Python's own recursion limit allows."""

_SHOWN_CHARACTERS = 100
_KEPT_CHARACTERS = 1000

_KINDS = {
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


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


def parse(raw: RawRow) -> Mapping[str, Any]:
    """Turn a row into its record.

    `NaN` and `Infinity` are read as Python reads them.

    Raises:
        ValueError: The row is unreadable, or its line is no JSON object in UTF-8, is nested more
            than `MAX_DEPTH` levels deep or holds half of a surrogate pair.
    """
    if isinstance(raw.payload, bytes):
        return _parse_line(raw.payload)
    if isinstance(raw.payload, Unreadable):
        raise ValueError(_show(raw.payload.reason, raw.payload.content))
    return raw.payload


def find_flaw(value: object, text: str) -> str | None:
    """Say why the JSON value written as `text` cannot be a row; None when it can."""
    if not isinstance(value, dict):
        return f"{_KINDS[type(value)]}, not an object"
    if text.count("{") + text.count("[") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        return f"nested more than {MAX_DEPTH} levels deep"
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return f"half of a surrogate pair ({error.object[error.start]!a}) is no character"
    return None


def is_writable(text: str) -> bool:
    """Whether UTF-8 can write `text`: it holds no half of a surrogate pair and no bad byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def make_unreadable(reason: str, content: str) -> Unreadable:
    """Build an `Unreadable` whose content is shortened and fit to be written as UTF-8.

    `content` is UTF-8 text, decoded with the error handler `surrogateescape`.
    """
    kept = content[:_KEPT_CHARACTERS].encode("utf-8", "surrogateescape")
    return Unreadable(reason, kept.decode("utf-8", "backslashreplace"))


def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        # Files that were joined have their byte order marks in the middle.
        text = line.removeprefix(BOM).decode().strip()
    except UnicodeDecodeError:
        raise ValueError(explain_bytes(line)) from None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        if "\0" in text:
            raise ValueError(explain_bytes(line)) from None
        # Its own text counts lines from the start of this line, which would mislead.
        reason = f"not JSON ({error.msg} at character {error.colno}){_find_hint(text)}"
        raise ValueError(_show(reason, text)) from None
    except RecursionError:
        raise ValueError(_show(f"nested more than {MAX_DEPTH} levels deep", text)) from None
    except ValueError as error:
        raise ValueError(_show(f"not JSON ({error})", text)) from None
    flaw = find_flaw(record, text)
    if flaw:
        raise ValueError(_show(flaw + _find_hint(text), text))
    return record  # type: ignore[no-any-return]


def _find_hint(text: str) -> str:
    if text in ("{", "[") or text.startswith("[{"):
        return "; a JSON array, or objects over several lines, need a file name ending in .json"
    return ""


def _show(reason: str, content: str) -> str:
    if not content:
        return reason
    shown = content[:_SHOWN_CHARACTERS]
    return f"{reason}: {shown!r}{'...' if len(content) > len(shown) else ''}"


def _is_deeper(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        children: list[object] = []
        for item in level:
            if isinstance(item, dict):
                children += item.values()
            elif isinstance(item, list):
                children += item
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True
