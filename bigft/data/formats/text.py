"""Raw text in one column; a .txt or .md file is one such record."""

from collections.abc import Mapping
from typing import Any

from bigft.data.example import Text
from bigft.data.formats.checks import check_text
from bigft.data.formats.shape import Shape

NAME = "text"
SHAPES = (Shape(("text",)), Shape(("content",)))


def fits(record: Mapping[str, Any], shape: Shape) -> bool:
    """Whether the column holds text."""
    return isinstance(record[shape.needed[0]], str)


def read(record: Mapping[str, Any], shape: Shape) -> Text:
    """Turn one record into an example.

    Raises:
        ValueError: The text is empty or not text.
    """
    return Text(check_text(record.get(shape.needed[0]), shape.needed[0]))
