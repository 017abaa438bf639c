import pytest

from bigft.data.example import Text
from bigft.data.formats import text


def test_text_is_read_unchanged() -> None:
    assert text.read({"text": " a\n", "id": 1}) == Text(" a\n")


@pytest.mark.parametrize("value", [None, 3, "", " \n", "\udfff"])
def test_what_is_not_text_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="`text`"):
        text.read({"text": value})
