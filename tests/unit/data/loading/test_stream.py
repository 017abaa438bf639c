"""Training from a stream: any place can be the first, and nothing is lost."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from bigft.data.layouts.next_token import NextToken
from bigft.data.loading import stream as module
from bigft.data.loading.collate import collate_packed
from bigft.data.loading.loader import Share, StepBatches
from bigft.data.loading.stream import StreamLoader
from bigft.data.order.cursor import Cursor
from bigft.data.readers.raw import RawRow
from bigft.data.section import DataSection
from bigft.data.store.chunks import ChunkTokenizer
from bigft.data.store.prepare import refuse_bad_rows
from bigft.data.store.rejected import Rejected, RejectedLog
from bigft.errors import DataError

WINDOW = 16


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINDOW", WINDOW)


def make_part(name: str, lines: Sequence[object]) -> Callable[[], Iterator[RawRow]]:
    def read() -> Iterator[RawRow]:
        for number, line in enumerate(lines, 1):
            yield RawRow(json.dumps(line).encode(), f"{name}:{number}")

    return read


GOOD = [{"text": f"{n}" + " word" * (3 * n % 14)} for n in range(45)]
PARTS = [make_part("a", GOOD[:25]), make_part("b", GOOD[25:])]


def build(
    tokenizer: PreTrainedTokenizerFast,
    share: Share,
    parts: Any = PARTS,
    *,
    packing: str = "best_fit",
    reject: Any = refuse_bad_rows,
    **more: Any,
) -> StreamLoader:
    section = DataSection(max_length=16)
    return StreamLoader(
        parts,
        ChunkTokenizer(section, NextToken(tokenizer, section)),
        share,
        packing=packing,
        max_length=16,
        seed=7,
        collate=partial(collate_packed, pad_id=0, max_length=16, num_sources=len(parts)),
        reject=reject,
        **more,
    )


def find_sequences(steps: Sequence[StepBatches]) -> list[tuple[Any, ...]]:
    """List tokens, labels and parts of each sequence of one step over all ranks, in order."""
    found = []
    for micro_batches in zip(*(step.micro_batches for step in steps), strict=True):
        for batch in micro_batches:
            parts = batch.input_ids * 0 if batch.sources is None else batch.sources
            for line in zip(batch.input_ids.tolist(), batch.labels.tolist(), parts.tolist()):  # noqa: B905
                places = [n for n, token in enumerate(line[0]) if token != 0 or line[1][n] == 0]
                found.append(tuple(tuple(row[n] for n in places) for row in line))
    return found


def read_epoch(loader: StreamLoader, epoch: int = 0) -> list[StepBatches]:
    steps = []
    for step in loader.steps_from(Cursor(epoch)):
        steps.append(step)
        if step.cursor.epoch > epoch or step.cursor.row >= len(GOOD):
            return steps
    raise AssertionError("a stream never ends")


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_each_row_comes_once_per_epoch_with_its_part(packing: str, tokenizer) -> None:
    loader = build(tokenizer, Share(3), packing=packing)
    learned: list[tuple[str, int]] = []
    sequences = 0
    for batch in (batch for step in read_epoch(loader) for batch in step.micro_batches):
        sequences += int((batch.labels != -100).any(1).sum())
        for ids, labels, parts, positions in zip(
            batch.input_ids, batch.labels, batch.sources, batch.position_ids, strict=True
        ):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
            for piece in (slice(*pair) for pair in zip(starts, starts[1:], strict=False)):
                if (labels[piece] != -100).any():
                    text, _, rest = tokenizer.decode(ids[piece]).partition("<|endoftext|>")
                    assert not rest.replace("<|endoftext|>", "")
                    learned += [(text, part) for part in set(parts[piece].tolist())]
    expected = [(record["text"], int(number >= 25)) for number, record in enumerate(GOOD)]
    assert sorted(learned) == sorted(expected)
    assert (sequences == len(GOOD)) == (packing == "none")


def test_counts_of_a_step_are_those_of_all_ranks(tokenizer) -> None:
    ranks = [build(tokenizer, Share(2, 2, rank, 2)) for rank in range(2)]
    for steps in zip(*(read_epoch(rank) for rank in ranks), strict=True):
        learned = sum(batch.supervised_tokens for step in steps for batch in step.micro_batches)
        assert [step.supervised_tokens for step in steps] == [learned] * 2
        assert steps[0].cursor == steps[1].cursor
        assert steps[0].tokens == sum(len(line[0]) for line in find_sequences(steps))


@pytest.mark.parametrize("split", [(1, 1, 6), (1, 3, 2), (2, 1, 3), (3, 2, 1)])
def test_the_order_does_not_depend_on_how_a_step_is_divided(
    split: tuple[int, int, int], tokenizer
) -> None:
    world_size, micro_steps, size = split
    whole = build(tokenizer, Share(6)).steps_from(Cursor())
    ranks = [
        build(
            tokenizer, Share(size, micro_steps, rank, world_size), runs_ahead=rank > 0
        ).steps_from(Cursor())
        for rank in range(world_size)
    ]
    for expected in islice(whole, 8):
        steps = [next(rank) for rank in ranks]
        assert find_sequences(steps) == find_sequences([expected])
        assert steps[0].cursor == expected.cursor


def test_any_step_can_be_the_first(tokenizer) -> None:
    loader = build(tokenizer, Share(4), runs_ahead=False)
    straight = list(islice(loader.steps_from(Cursor()), 16))
    assert straight[-1].cursor.epoch >= 1
    # In the middle of a window, at its end, and at the end of an epoch.
    assert {step.cursor.position > 0 for step in straight} == {True, False}
    for before, expected in zip(straight, straight[1:], strict=False):
        resumed = next(loader.steps_from(before.cursor))
        assert find_sequences([resumed]) == find_sequences([expected])
        assert (resumed.cursor, resumed.epoch) == (expected.cursor, expected.epoch)


def test_a_run_goes_on_with_another_batch_size(tokenizer) -> None:
    step = next(build(tokenizer, Share(3)).steps_from(Cursor()))
    rest = next(build(tokenizer, Share(4)).steps_from(step.cursor))
    whole = next(build(tokenizer, Share(7)).steps_from(Cursor()))
    assert find_sequences([step]) + find_sequences([rest]) == find_sequences([whole])


def test_resuming_tokenises_nothing_of_what_came_before(tokenizer, monkeypatch) -> None:
    seen: list[str] = []
    original = ChunkTokenizer.__call__

    def watch(self: ChunkTokenizer, raws: list[RawRow]) -> Any:
        seen.extend(raw.origin for raw in raws)
        return original(self, raws)

    monkeypatch.setattr(ChunkTokenizer, "__call__", watch)
    loader = build(tokenizer, Share(1), runs_ahead=False)
    next(loader.steps_from(Cursor(0, 1, 2 * WINDOW)))
    assert seen[0] == f"b:{2 * WINDOW - 25 + 1}"


def test_epochs_and_seeds_have_orders_of_their_own(tokenizer) -> None:
    loader = build(tokenizer, Share(1), packing="none")
    first, second = (
        [find_sequences([step])[0] for step in read_epoch(loader, epoch)] for epoch in (0, 1)
    )
    assert first != second
    assert sorted(first) == sorted(second)
    # Within a window only: a row never comes long before its place.
    assert sorted(first[:WINDOW]) == sorted(second[:WINDOW])
    assert first[:WINDOW] != second[:WINDOW]


def test_rows_that_become_no_tokens_are_reported_once_per_epoch(tokenizer) -> None:
    lines: list[object] = list(GOOD)
    lines[3], lines[20] = {"text": 3}, {"messages": [{"role": "user", "content": "Hi"}]}
    told: list[Rejected] = []
    loader = build(tokenizer, Share(4), [make_part("a", lines)], reject=told.extend)
    read_epoch(loader)
    found = {(row.origin, row.is_bad) for row in told}
    assert found >= {("a:4", True), ("a:21", False)}
    told.clear()
    list(islice(build(
        tokenizer, Share(4), [make_part("a", lines)], reject=told.extend, runs_ahead=False
    ).steps_from(Cursor()), 3))  # fmt: skip
    assert [row.origin for row in told] == ["a:4", "a:21"][: len(told)]
    assert told[0].content == '{"text": 3}'


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_run_that_is_interrupted_anywhere_keeps_each_rejected_row_once(
    runs_ahead: bool, tokenizer, tmp_path
) -> None:
    bad = (3, 5, 14, 15, 16, 30, 31, 32, 44)
    lines = [{"text": n} if n in bad else line for n, line in enumerate(GOOD)]
    cursor, goes_on = Cursor(), False
    while cursor.epoch < 2:
        log = RejectedLog(tmp_path, goes_on=goes_on)
        parts = [make_part("a", lines)]
        steps = build(tokenizer, Share(2), parts, reject=log, runs_ahead=runs_ahead).steps_from(
            cursor
        )
        cursor, goes_on = list(islice(steps, 3))[-1].cursor, True
        steps.close()  # type: ignore[attr-defined]
    told = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["origin"] for line in told] == [f"a:{n + 1}" for n in bad]


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_a_bad_row_ends_the_stream_where_it_stands(runs_ahead: bool, tokenizer) -> None:
    lines: list[object] = [*GOOD[:20], {"text": 3}, *GOOD[20:]]
    loader = build(tokenizer, Share(1), [make_part("a", lines)], runs_ahead=runs_ahead)
    steps = loader.steps_from(Cursor())
    seen = []
    with pytest.raises(DataError, match=r"--data: a:21: `text` .*--data\.on_bad_row skip"):
        seen.extend(iter(lambda: next(steps), None))
    # What came before was given: the rows of the first window.
    wanted = next(
        build(tokenizer, Share(100), [make_part("a", lines[:WINDOW])]).steps_from(Cursor())
    )
    given = [line for step in seen for line in find_sequences([step])]
    assert given == [line for line in find_sequences([wanted]) if line[0]]


@pytest.mark.parametrize("lines", [[], [{"messages": [{"role": "user", "content": "Hi"}]}] * 40])
def test_a_stream_without_anything_to_learn_is_an_error_and_no_endless_loop(
    lines: list[object], tokenizer
) -> None:
    loader = build(tokenizer, Share(2), [make_part("a", lines)], reject=lambda _: None)
    with pytest.raises(DataError, match="no row of the stream has a token to learn"):
        next(loader.steps_from(Cursor()))


def test_stopping_early_ends_the_stream(tokenizer) -> None:
    steps = build(tokenizer, Share(2)).steps_from(Cursor())
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(steps)


def test_how_long_an_epoch_is_is_not_claimed(tokenizer) -> None:
    loader = build(tokenizer, Share(4))
    assert loader.steps_per_epoch is None
    steps = list(islice(loader.steps_from(Cursor()), 16))
    assert {step.epoch for step in steps} <= {0.0, 1.0, 2.0}
    assert [step.epoch for step in steps] == sorted(step.epoch for step in steps)
