import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.clean.augment import (
    Change,
    delete_span,
    find_change,
    read_synonyms,
    replace_words,
    swap_spans,
)
from bigft.data.clean.parts import find_texts
from bigft.data.clean.section import AugmentSection
from bigft.data.example import Conversation, Example, Labelled, PromptAnswer, Text, compute_digest

word = st.text(st.sampled_from("abAB\u00e9\u4e2d.,"), min_size=1, max_size=4)
gap = st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "\u3000"])
texts = st.builds(
    lambda first, words, gaps, last: (
        first + "".join(a + b for a, b in zip(words, gaps, strict=False)) + last
    ),
    st.just("") | gap,
    st.lists(word, max_size=12),
    st.lists(gap, min_size=12, max_size=12),
    word | st.just(""),
)
shares = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32)
SYNONYMS = {"big": ("large", "of great size"), "caf\u00e9": ("bar",)}


def draw_from(seed: int):  # noqa: ANN201
    return random.Random(seed).random


@given(texts, shares, seeds)
def test_deletion_takes_one_span_of_the_right_size(text: str, share: float, seed: int) -> None:
    words, left = text.split(), delete_span(text, share, draw_from(seed)).split()
    if len(words) < 2:
        assert left == words
        return
    gone = len(words) - len(left)
    assert gone == min(max(1, round(share * len(words))), len(words) - 1)
    assert any(words[:at] + words[at + gone :] == left for at in range(len(left) + 1))


@given(texts, shares, seeds)
def test_deletion_keeps_the_other_white_space_and_both_ends(
    text: str, share: float, seed: int
) -> None:
    left = delete_span(text, share, draw_from(seed))
    assert left[: len(left) - len(left.lstrip())] == text[: len(text) - len(text.lstrip())]
    assert left[len(left.rstrip()) :] == text[len(text.rstrip()) :]
    # What is left is a beginning and an end of the text.
    assert (
        any(text.startswith(left[:at]) and text.endswith(left[at:]) for at in range(len(left) + 1))
        or left == ""
    )


@given(texts, shares, seeds)
def test_swapping_moves_two_spans_and_no_white_space(text: str, share: float, seed: int) -> None:
    swapped = swap_spans(text, share, draw_from(seed))
    before, after = text.split(), swapped.split()
    assert Counter(after) == Counter(before)
    template = " ".join(before)
    assert len(template) == len(" ".join(after))
    if len(before) < 2:
        assert swapped == text
        return
    count = min(max(1, round(share * len(before) / 2)), len(before) // 2)
    possible = (
        before[:low]
        + before[high : high + count]
        + before[low + count : high]
        + before[low : low + count]
        + before[high + count :]
        for low in range(len(before) - 2 * count + 1)
        for high in range(low + count, len(before) - count + 1)
    )
    assert after in possible


@pytest.mark.parametrize("function", [delete_span, swap_spans])
def test_every_place_is_reached(function) -> None:
    text = "a b c d"
    results = {function(text, 0.25, draw_from(seed)) for seed in range(200)}
    expected = {
        delete_span: {"b c d", "a c d", "a b d", "a b c"},
        swap_spans: {"b a c d", "c b a d", "d b c a", "a c b d", "a d c b", "a b d c"},
    }
    assert results == expected[function]


def test_white_space_survives_a_swap_where_it_is() -> None:
    results = {swap_spans("\ta  b\n", 0.5, draw_from(seed)) for seed in range(5)}
    assert results == {"\tb  a\n"}


def test_synonyms_pass_on_capitals_and_leave_other_words_alone() -> None:
    results = {replace_words("big Big BIG bigger,", SYNONYMS, draw_from(n)) for n in range(300)}
    variants = [
        ("big", "large", "of great size"),
        ("Big", "Large", "Of great size"),
        ("BIG", "LARGE", "OF GREAT SIZE"),
    ]
    expected = {
        f"{a} {b} {c} bigger," for a in variants[0] for b in variants[1] for c in variants[2]
    }
    assert results == expected
    cafe = {replace_words("(Caf\u00e9!)", SYNONYMS, draw_from(n)) for n in range(20)}
    assert cafe == {"(Caf\u00e9!)", "(Bar!)"}


@given(texts, seeds)
def test_without_a_word_of_the_table_nothing_is_replaced(text: str, seed: int) -> None:
    assert replace_words(text, SYNONYMS, draw_from(seed)) == text


EXAMPLES: list[Example] = [
    Text("one two three four big"),
    PromptAnswer("one two three four", "five six seven eight big"),
    Labelled("one two three four", "five six seven", "eight nine ten big"),
    Conversation(
        [
            {"role": "system", "content": "one two three big"},
            {"role": "user", "content": "four five six big"},
            {"role": "assistant", "content": "seven eight nine big", "reasoning": "big a b"},
            {"role": "tool", "content": "big c d e"},
            {"role": "user", "content": "f g big h"},
            {"role": "assistant", "content": "big i j"},
        ]
    ),
]
KEPT_ROLES = ("system", "assistant", "tool")
change = Change(delete=0.3, swap=0.5, synonyms=SYNONYMS)


@given(
    st.sampled_from(EXAMPLES)
    | st.builds(PromptAnswer, texts, texts)
    | st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts}
        ),
        max_size=5,
    ).map(Conversation),
    seeds,
    st.integers(0, 9),
)
def test_a_copy_never_touches_what_the_assistant_says(
    example: Example, seed: int, number: int
) -> None:
    copy = change.make_copy(example, compute_digest(example), seed, number)
    assert list(find_texts(copy, KEPT_ROLES)) == list(find_texts(example, KEPT_ROLES))
    assert type(copy) is type(example)
    if isinstance(example, Labelled) and isinstance(copy, Labelled):
        assert copy.label == example.label


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_a_copy_follows_from_digest_seed_and_number(example: Example) -> None:
    def texts_of(digest: int, seed: int, number: int) -> list[str]:
        return list(find_texts(change.make_copy(example, digest, seed, number)))

    assert texts_of(5, 0, 0) == texts_of(5, 0, 0)
    for varied in ([(n, 0, 0) for n in range(9)], [(5, n, 0) for n in range(9)]):
        assert len({tuple(texts_of(*arguments)) for arguments in varied}) > 1
    assert len({tuple(texts_of(5, 0, n)) for n in range(9)}) > 1


def test_a_copy_never_changes_from_one_release_to_the_next() -> None:
    text = Text("one two three four five six seven eight")
    copies = [Change(0.25, 0.5).make_copy(text, 6561309353017824718, 42, n) for n in range(2)]
    # Written down: other copies would be other training data under the same settings.
    assert copies == [
        Text("one two six seven five three"),
        Text("three four five one two eight"),
    ]


def test_no_change_is_wanted_without_copies() -> None:
    assert find_change(AugmentSection(delete=0.1)) == (None, [])


def test_copies_of_nothing_are_a_problem() -> None:
    _, problems = find_change(AugmentSection(copies=2))
    assert len(problems) == 1
    assert "--data.clean.augment.copies=2" in problems[0]


def write(folder: Path, content: object) -> str:
    path = folder / "synonyms.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_the_table_of_synonyms_folds_case_and_joins_spellings(tmp_path: Path) -> None:
    path = write(tmp_path, {"Big": ["large"], "big": ["great"], "don't": ["do not"]})
    assert read_synonyms(path) == ({"big": ("large", "great"), "don't": ("do not",)}, [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (["big"], "has to hold an object of lists"),
        ({}, "has to hold an object of lists"),
        ({"two words": ["x"]}, "'two words': has to be one word"),
        ({"big": "large"}, "'big': has to have a list of words, not 'large'"),
        ({"big": []}, "'big': has to have a list of words, not []"),
        ({"big": ["large", 3]}, "'big': what stands in its place has to be text, not 3"),
        ({"big": [" "]}, "'big': what stands in its place has to be text, not ' '"),
    ],
)
def test_a_bad_table_is_told_with_file_and_word(
    content: object, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    _, problems = read_synonyms(path)
    assert len(problems) == 1
    assert problems[0].startswith(f"--data.clean.augment.synonyms={path}: {words}")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{", encoding="utf-8")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe")
    for path, words in (
        (tmp_path / "absent.json", "there is no such file"),
        (tmp_path, "cannot be read"),
        (bad, "not JSON"),
        (binary, "not JSON"),
    ):
        _, problems = read_synonyms(str(path))
        assert [words in problem and str(path) in problem for problem in problems] == [True]


def test_many_bad_words_are_told_in_few_lines(tmp_path: Path) -> None:
    _, problems = read_synonyms(write(tmp_path, {f"a {n}": ["x"] for n in range(50)}))
    assert len(problems) == 6
    assert "45 more words" in problems[-1]
