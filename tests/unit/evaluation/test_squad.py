"""SQuAD's rules, against the published script written anew and against cases done by hand."""

import collections
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.evaluation.squad import compute_f1, match_exactly, normalize_answer


def script_normalize(text):
    """`normalize_answer` of evaluate-v1.1.py: lower, remove_punc, remove_articles, fix spaces."""
    text = text.lower()
    text = "".join(letter for letter in text if letter not in set(string.punctuation))
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def script_f1(prediction, truth):
    """`f1_score` of evaluate-v1.1.py."""
    said, true = script_normalize(prediction).split(), script_normalize(truth).split()
    same = sum((collections.Counter(said) & collections.Counter(true)).values())
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(said), 1.0 * same / len(true)
    return (2 * precision * recall) / (precision + recall)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Eiffel Tower.", "eiffel tower"),
        ("A.N. Other", "other"),
        ("an apple, a pear\nand the theatre", "apple pear and theatre"),
        ("rock-'n'-roll", "rocknroll"),
        ("«Café»", "«café»"),
        ("the", ""),
        ("  ", ""),
    ],
)
def test_normalisation_by_hand(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("the Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),
        ("Denver Broncos of Denver", ["Denver Broncos"], 0, 2 * 0.5 * 1 / 1.5),
        ("in 1066", ["1066", "year 1066", "in 1066"], 1, 1),
        ("in 1066", ["1066", "1067"], 0, 2 / 3),
        ("cat cat cat", ["cat cat dog"], 0, 2 / 3),
        ("", ["anything"], 0, 0),
        ("the", ["a"], 1, 0),
    ],
)
def test_scores_by_hand(answer, references, exact, f1):
    assert match_exactly(answer, references) == exact
    assert compute_f1(answer, references) == pytest.approx(f1)


WORDS = st.lists(
    st.sampled_from(["the", "A", "cat", "Cat.", "d-og", "an,", " ", "İ", "x"]), max_size=8
)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_the_script_says_the_same(answer, references):
    said, wanted = " ".join(answer), [" ".join(words) for words in references]
    exact = max(script_normalize(said) == script_normalize(text) for text in wanted)
    assert match_exactly(said, wanted) == exact
    assert compute_f1(said, wanted) == max(script_f1(said, text) for text in wanted)
