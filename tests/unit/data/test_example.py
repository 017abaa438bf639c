import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.example import (
    Conversation,
    Labelled,
    PromptAnswer,
    Text,
    compute_digest,
    find_copies,
    find_originals,
    mark_copy,
)


def test_digest_depends_on_what_is_said_and_on_the_kind() -> None:
    examples = [
        Text("a"),
        Text("b"),
        PromptAnswer("a", "b"),
        PromptAnswer("b", "a"),
        Conversation([{"role": "user", "content": "a"}]),
        Conversation([{"role": "user", "content": "a"}], tools=[{"name": "f"}]),
        Labelled("a", "1"),
        Labelled("a", 1),
        Labelled("a", 1, second="b"),
        Labelled("a", [1]),
        Labelled("a", ["1"]),
        Labelled("a", []),
        Labelled("a", [1, 2]),
        Labelled("a", [2, 1]),
    ]
    assert len({compute_digest(example) for example in examples}) == len(examples)


def test_digest_ignores_the_order_of_keys_and_never_changes() -> None:
    one = Conversation([{"role": "user", "content": "a"}])
    other = Conversation([{"content": "a", "role": "user"}])
    assert compute_digest(one) == compute_digest(other)
    # Written down: another number would move rows between training and evaluation.
    assert compute_digest(Text("a")) == 6561309353017824718 & ~31


@given(st.text(), st.integers(1, 31))
def test_a_copy_is_known_as_one_and_leads_to_its_example(text: str, number: int) -> None:
    digest = compute_digest(Text(text))
    digests = np.array([digest, mark_copy(digest, number)], dtype=np.uint64)
    assert find_copies(digests).tolist() == [False, True]
    assert find_originals(digests).tolist() == [digest, digest]
