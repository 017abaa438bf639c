"""Settings of the data that cannot be meant."""

import re
from typing import Any

import pytest

from bigft.data.contradictions import find_contradictions
from bigft.data.section import DataSection


def find(**settings: Any) -> list[str]:
    return list(find_contradictions(DataSection.model_validate(settings)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_fraction": 0.7, "clean": {"test_fraction": 0.5}}, "0.7 and .*test_fraction 0.5"),
        ({"clean": {"min_tokens": 9, "max_tokens": 8}}, "min_tokens 9 is above .*max_tokens 8"),
        ({"clean": {"augment": {"delete": 0.1}}}, "augment.delete: only copies .*copies is 0"),
        (
            {"clean": {"augment": {"swap": 0.1, "synonyms": "no.json"}}},
            "augment.swap and --data.clean.augment.synonyms: only copies",
        ),
        ({"clean": {"augment": {"copies": 2}}}, "copies=2: nothing is set"),
        ({"loading": {"names": ["a", "a"]}}, "names a,a: a name stands twice"),
        ({"format": "chats"}, "--data.format chats: .*did you mean chat?"),
        ({"columns": {"promt": "ask"}}, "--data.columns.promt ask: .*did you mean prompt?"),
        ({"clean": {"keep_pattern": "("}}, "keep_pattern=.: not a regular expression"),
    ],
)
def test_each_is_named_with_its_flag(settings: dict[str, Any], said: str) -> None:
    (text,) = find(**settings)
    assert re.search(said, text)


def test_all_are_found_together() -> None:
    augment = {"copies": 0, "swap": 0.5}
    clean = {"test_fraction": 0.99, "augment": augment, "drop_pattern": "*", "keep_pattern": "("}
    assert len(find(clean=clean, format="x")) == 5


def test_what_goes_together_is_let_through() -> None:
    assert find() == []
    # A file of synonyms is for the data to judge, and nothing is held out beside --eval_data.
    augment = {"copies": 1, "synonyms": "no.json"}
    clean = {"test_fraction": 0.5, "min_tokens": 8, "max_tokens": 8, "augment": augment}
    columns = {"prompt": "ask"}
    assert (
        find(eval="e.jsonl", eval_fraction=0.7, clean=clean, format="pairs", columns=columns) == []
    )
