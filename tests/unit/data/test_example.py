from bigft.data.example import Conversation, PromptAnswer, Text, compute_digest


def test_digest_depends_on_what_is_said_and_on_the_kind() -> None:
    examples = [
        Text("a"),
        Text("b"),
        PromptAnswer("a", "b"),
        PromptAnswer("b", "a"),
        Conversation([{"role": "user", "content": "a"}]),
        Conversation([{"role": "user", "content": "a"}], tools=[{"name": "f"}]),
    ]
    assert len({compute_digest(example) for example in examples}) == len(examples)


def test_digest_ignores_the_order_of_keys_and_never_changes() -> None:
    one = Conversation([{"role": "user", "content": "a"}])
    other = Conversation([{"content": "a", "role": "user"}])
    assert compute_digest(one) == compute_digest(other)
    # Written down: another number would move rows between training and evaluation.
    assert compute_digest(Text("a")) == 6561309353017824718
