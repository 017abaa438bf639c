import pytest

from bigft.data.formats.table import FORMATS, find_format, load_format
from bigft.errors import DataError


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"messages"}, "chat"),
        ({"messages", "tools", "id"}, "chat"),
        ({"prompt", "completion"}, "instruct"),
        ({"prompt", "response"}, "instruct"),
        ({"prompt", "answer"}, "instruct"),
        ({"question", "answer"}, "instruct"),
        ({"instruction", "output"}, "instruct"),
        ({"instruction", "input", "response"}, "instruct"),
        ({"text", "url"}, "text"),
    ],
)
def test_format_is_found_from_the_columns(columns: set[str], name: str) -> None:
    assert find_format(columns) == name


def test_every_format_carries_the_name_that_the_table_gives_it() -> None:
    assert [load_format(name).NAME for name in FORMATS] == list(FORMATS)


def test_unknown_columns_are_shown_with_the_nearest_format() -> None:
    with pytest.raises(DataError, match=r"\(id, mesages\).*`chat`: rename `mesages` to `messages`"):
        find_format({"mesages", "id"})
    with pytest.raises(DataError, match="nearest is `instruct`, which needs more than `prompt`"):
        find_format({"prompt"})
    with pytest.raises(DataError, match="none is near"):
        find_format({"zzz"})


def test_two_possible_formats_are_an_error() -> None:
    with pytest.raises(DataError, match="2 formats: chat, text"):
        find_format({"messages", "text"})
