"""What people are told whose columns fit no format."""

import json

import pytest

from bigft.data.formats.hints import EXAMPLES, explain_formats, is_about_columns
from bigft.data.formats.table import Recognizer
from bigft.errors import DataError


@pytest.mark.parametrize(("name", "row"), EXAMPLES.items())
def test_each_row_that_is_shown_is_read_as_the_format_beside_it(name: str, row: str) -> None:
    for format in (name, "auto"):
        assert Recognizer(format, {}).read(json.loads(row))[0] == name
    assert f"--data.format {name}" in explain_formats(3)


@pytest.mark.parametrize(
    ("record", "format", "columns"),
    [
        ({"foo": "a"}, "auto", {}),
        ({"text": "a"}, "chat", {}),
        ({"text": "a", "label": 1, "prompt": "x", "completion": "y"}, "auto", {}),
        ({"text": "a"}, "auto", {"prompt": "ask"}),
    ],
)
def test_wrong_columns_are_told_from_wrong_rows(
    record: dict[str, object], format: str, columns: dict[str, str]
) -> None:
    with pytest.raises(DataError) as caught:
        Recognizer(format, columns).read(record)
    assert is_about_columns(str(caught.value))
    with pytest.raises(ValueError, match="has to be text") as wrong:
        Recognizer("auto", {}).read({"text": 5})
    assert not is_about_columns(str(wrong.value))
