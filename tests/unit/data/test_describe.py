import pytest

from bigft.data.describe import describe_data, describe_losses

INFO = {
    "rows": 12_345,
    "tokens": 1000,
    "terms": 250,
    "learns": "supervised",
    "format": "chat+text",
    "packing": "best_fit",
    "packing_utilisation": 0.987,
    "bad_rows": 0,
    "unsupervised_rows": 0,
    "truncated_rows": 0,
    "dropped_duplicates": 0,
    "test_rows": 0,
    "touched": {"stripped": 0},
}


def test_one_line_says_what_there_is() -> None:
    (line,) = describe_data(INFO, 77)
    assert line == (
        "12,345 rows, 1,000 tokens (25% supervised), format chat+text, packed 99% full;"
        " 77 steps per epoch"
    )


@pytest.mark.parametrize(
    ("learns", "words"),
    [
        ("in targets", "25% in targets"),
        ("hidden", "25% hidden"),
        ("labels", "250 labels"),
        ("numbers", "250 numbers"),
    ],
)
def test_tasks_without_packing_say_what_they_learn(learns: str, words: str) -> None:
    (line,) = describe_data({**INFO, "packing": "none", "learns": learns}, 77)
    assert line == f"12,345 rows, 1,000 tokens ({words}), format chat+text; 77 steps per epoch"


def test_every_loss_is_told_and_nothing_else() -> None:
    info = {
        **INFO,
        "bad_rows": 1,
        "unsupervised_rows": 2,
        "truncated_rows": 3000,
        "dropped_duplicates": 4,
        "test_rows": 5,
        "touched": {"masked_email": 6, "stripped": 0},
    }
    text = describe_losses(info)
    assert text == (
        "1 bad rows left out, 2 rows with nothing to learn left out, 3,000 truncated to"
        " --max_length, 4 duplicates left out, 5 set apart for a test, 6 masked email"
    )
    assert list(describe_data(info, 1))[1:] == [f"note: {text}"]
    assert describe_losses(INFO) == ""


def test_of_a_stream_nothing_is_promised() -> None:
    (line,) = describe_data({"format": "streamed", "digest": "x"}, None)
    assert "only its end will tell" in line
