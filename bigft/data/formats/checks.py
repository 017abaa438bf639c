"""Checks of single values, with reasons that name the place in the row (`messages[2].role`)."""

import json
from functools import partial
from typing import Any

MAX_DEPTH = 32
"""Levels of lists and objects inside a column; templates and JSON recurse over them."""

_KINDS = {
    type(None): "null",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


class EmptyTextError(ValueError):
    """A row has no text where there has to be some."""


def describe_kind(value: object) -> str:
    """Say what a value is in words that people who know JSON understand."""
    return _KINDS.get(type(value), f"of type {type(value).__name__}")


def check_text(value: object, place: str) -> str:
    """Return a value that is text with something in it.

    Raises:
        ValueError: The value is of another type, blank, or cannot be written as UTF-8.
    """
    if not isinstance(value, str):
        raise ValueError(f"`{place}` has to be text, not {describe_kind(value)}")
    if not value or value.isspace():
        raise EmptyTextError(f"`{place}` is empty")
    check_unicode(value, place)
    return value


def split_answers(value: object) -> tuple[object, tuple[str, ...]]:
    """Split several accepted answers, `["Paris", "paris"]` or SQuAD's `{"text": [...]}`.

    Returns:
        The first one, and the others, each once; of anything else itself.
    """
    if isinstance(value, dict):
        value = value.get("text", value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        first, *others = dict.fromkeys(value)
        return first, tuple(text for text in others if not is_blank(text))
    return value, ()


def is_blank(value: object) -> bool:
    """Whether a value is null or text with nothing in it."""
    return value is None or (isinstance(value, str) and not value.strip())


def check_unicode(value: str, place: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and no tokenizer can read.

    Raises:
        ValueError: The text cannot be written as UTF-8.
    """
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"`{place}` is not valid Unicode at character {error.start}") from None


def read_list(value: object, place: str) -> list[Any]:
    """Return a list; CSV and some Parquet files keep it as JSON text.

    Raises:
        ValueError: The value is neither.
    """
    parsed = parse_json(value, place) if isinstance(value, str) else value
    if not isinstance(parsed, list):
        raise ValueError(f"`{place}` has to be a list, not {describe_kind(parsed)}")
    return parsed


def parse_json(value: str, place: str) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"`{place}` is text but not JSON: {value!r:.60}") from None


def copy_nested(value: Any, place: str, *, keep_nulls: bool, depth: int = MAX_DEPTH) -> Any:
    """Copy nested data, checking all text on the way.

    Columnar files give every object the keys of all others, filled with null; templates would
    take those for given, so they are left out unless `keep_nulls`.

    Raises:
        ValueError: Text that cannot be written as UTF-8, a key that is not text, or more than
            `MAX_DEPTH` levels.
    """
    if isinstance(value, str):
        check_unicode(value, place)
    elif isinstance(value, dict | list):
        if depth == 0:
            raise ValueError(f"`{place}` is nested in more than {MAX_DEPTH} levels")
        below = partial(copy_nested, place=place, keep_nulls=keep_nulls, depth=depth - 1)
        if isinstance(value, list):
            return [below(item) for item in value]
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"`{place}` has a key that is {describe_kind(key)}")
            check_unicode(key, place)
        return {k: below(item) for k, item in value.items() if keep_nulls or item is not None}
    return value
