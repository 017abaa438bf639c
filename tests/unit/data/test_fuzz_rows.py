"""Any JSON value becomes an example, a bad row or a message on the format, and never a crash."""

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bigft.data.formats.table import Recognizer, load_format
from bigft.data.tokens.tokenize import Tokenized, tokenize_batch
from bigft.errors import DataError

SEEDS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "3"},
            {"role": "assistant", "content": "Hello", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "Hello"},
        ],
        "system": "S",
    },
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]], "system": "f"},
    {"prompt": "a", "completion": "b"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
    {"question": "a", "context": "b", "answers": {"text": ["c"], "answer_start": [0]}},
    {"text": "a", "label": 1},
    {"premise": "a", "hypothesis": "b", "label": "c"},
    {"translation": {"de": "a", "en": "b"}},
    {"source": "a", "target": "b"},
    {"text": "a\n b"},
]

_ROLES = st.sampled_from(["user", "assistant", "system", "tool", "gpt", "human", "asistant", ""])
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["\ud800", "[]", "{}", "[1]", '{"name": "f"}', "<|im_start|>", "{{ x }}", " "]
    )
    | _ROLES
)
_KEYS = st.sampled_from(
    [
        *("role", "content", "from", "value", "messages", "conversations", "tools", "text"),
        *("tool_calls", "function", "name", "arguments", "type", "prompt", "completion", "label"),
        *("instruction", "output", "history", "answer", "question", "translation", "en", "x", ""),
    ]
) | st.text(max_size=5)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


def _list_places(value: Any) -> list[tuple[Any, Any]]:
    """List every container and key or index in it."""
    places = []
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in list(keys):
        places.append((value, key))
        places += _list_places(value[key])
    return places


@st.composite
def _mutated(draw: st.DrawFn) -> Any:
    """Draw a good row with one to three of its values or keys changed."""
    row = copy.deepcopy(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 3))):
        places = _list_places(row)
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        action = draw(st.sampled_from(["replace", "delete", "rename", "repeat"]))
        if action == "replace":
            holder[key] = draw(_VALUES)
        elif action == "delete":
            del holder[key]
        elif action == "rename" and isinstance(holder, dict):
            holder[draw(_KEYS)] = holder.pop(key)
        elif action == "repeat" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
    return row


_SETTINGS = settings(max_examples=1300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


_TAKEN = "taken"


def _judge(recognizer: Recognizer, row: Any, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return `_TAKEN` or the words of a clean refusal; raise on anything else."""
    try:
        _, example = recognizer.read(row)
    except (ValueError, DataError) as error:
        return str(error)
    (found,) = tokenize_batch([example], tokenizer, train_on="assistant", max_length=64)
    if isinstance(found, ValueError):
        return str(found)
    assert isinstance(found, Tokenized)
    assert all(len(row.input_ids) == len(row.supervised) <= 64 for row in found.rows)
    return _TAKEN


def _check_verdict(row: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """A verdict has words, leaves the row as it was, and is the same when the row comes again."""
    recognizer, before = Recognizer(), repr(row)
    verdict = _judge(recognizer, row, tokenizer)
    assert verdict.strip()
    # By now the recogniser remembers what these columns mean.
    assert _judge(recognizer, row, tokenizer) == verdict
    assert repr(row) == before


def test_the_seeds_are_good_rows(session_tokenizer: PreTrainedTokenizerFast) -> None:
    assert {_judge(Recognizer(), row, session_tokenizer) for row in SEEDS} == {_TAKEN}


@_SETTINGS
@given(_mutated())
def test_changed_rows_are_taken_or_refused(
    session_tokenizer: PreTrainedTokenizerFast, row: Any
) -> None:
    _check_verdict(row, session_tokenizer)


@_SETTINGS
@given(_VALUES | st.dictionaries(_KEYS, _VALUES, max_size=6))
def test_any_json_is_taken_or_refused(session_tokenizer: PreTrainedTokenizerFast, row: Any) -> None:
    _check_verdict(row, session_tokenizer)


def test_a_row_of_one_format_read_as_another_is_refused_or_taken(
    session_tokenizer: PreTrainedTokenizerFast,
) -> None:
    from bigft.data.formats.table import FORMATS

    for name in FORMATS:
        assert name == load_format(name).NAME
        for row in SEEDS:
            try:
                found, _ = Recognizer(name).read(row)
            except (ValueError, DataError):
                continue
            assert found == name
