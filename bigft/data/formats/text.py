"""Raw text in a column `text`; a .txt or .md file is one such record."""

from collections.abc import Mapping
from typing import Any

from bigft.data.example import Text

NAME = "text"
COLUMNS = ("text",)


def matches(columns: set[str]) -> bool:
    """Whether records with these columns hold raw text."""
    return "text" in columns


def read(record: Mapping[str, Any]) -> Text:
    """Turn one record into an example.

    Raises:
        ValueError: The text is empty or not text.
    """
    return Text(read_text(record, "text"))


def read_text(record: Mapping[str, Any], column: str) -> str:
    """Read one column that has to hold text with something in it.

    Raises:
        ValueError: The value is missing, of another type, blank, or cannot be written as UTF-8.
    """
    value = record.get(column)
    if not isinstance(value, str):
        raise ValueError(f"`{column}` has to be text, not {type(value).__name__}: {value!r:.60}")
    if not value.strip():
        raise ValueError(f"`{column}` is empty")
    check_unicode(value, column)
    return value


def check_unicode(value: str, column: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and no tokenizer can read.

    Raises:
        ValueError: The text cannot be written as UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"`{column}` is not valid Unicode at character {error.start}") from None
