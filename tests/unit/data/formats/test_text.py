import pytest

from bigft.data.example import Text
from bigft.data.formats import text
from bigft.data.formats.shape import Shape


def test_text_is_read_unchanged() -> None:
    assert text.read({"text": " a\n", "id": 1}, Shape(("text",))) == Text(" a\n")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "`text` has to be text, not null"),
        (3, "`text` has to be text, not a number"),
        ("", "`text` is empty"),
        (" \n", "`text` is empty"),
        ("a\udfff", "`text` is not valid Unicode at character 1"),
    ],
)
def test_what_is_not_text_is_refused(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        text.read({"text": value}, Shape(("text",)))
