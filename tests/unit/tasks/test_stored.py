"""Answers of a teacher on disk: every row is found again, and nothing unfinished is read."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from stores import make_chunk, write_store

from bigft.commands.parts.answers import _reserve
from bigft.data.store.rows import Rows
from bigft.data.tokens.tokenize import Row
from bigft.errors import DataError, PlanError
from bigft.tasks.divergence import shorten
from bigft.tasks.stored import (
    AnswerWriter,
    Question,
    StoredTeacher,
    compute_answers_digest,
    cut_batches,
    order_rows,
    pack,
    unpack,
)

QUESTION = Question(3, 2.0, 50)


def _make_store(folder, lengths, seed=0):
    chooser = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        supervised = chooser.random(length) < 0.5
        supervised[0], supervised[-1] = False, True
        rows.append(Row(chooser.integers(0, 50, length).astype(np.int32), supervised))
    return write_store(folder, make_chunk(rows))


def _answer(store, number):
    """What a teacher might say of one row: other numbers for every row of every store."""
    seed = int(store.load_row(number).input_ids.sum()) * 1000 + int(number)
    generator = torch.Generator().manual_seed(seed)
    count = int(store.supervised_counts[number])
    return shorten(3 * torch.randn(count, 50, generator=generator), 3, 2.0, 50)


def _write(writer, store, numbers):
    records = np.concatenate([pack(_answer(store, number)) for number in numbers])
    writer.write(np.asarray(numbers), records)


def test_rows_of_several_parts_are_found_whatever_the_order(tmp_path):
    stores = [_make_store(tmp_path / "a", [5, 9, 2, 7]), _make_store(tmp_path / "b", [3, 8], 1)]
    finals = [tmp_path / "kept" / name for name in ("a", "b")]
    for store, final in zip(stores, finals, strict=True):
        order = order_rows(store)
        assert (np.diff(store.lengths[order]) <= 0).all()
        # In two sittings; the second begins behind what was noted.
        writer = AnswerWriter(tmp_path / f"open-{final.name}", store, QUESTION)
        _write(writer, store, order[:1])
        writer.advance(1)
        writer._note()
        writer.close()
        final.parent.mkdir(exist_ok=True)
        writer = AnswerWriter(tmp_path / f"open-{final.name}", store, QUESTION)
        assert writer.rows == 1
        _write(writer, store, order[1:])
        writer.finish(final, {"teacher": "t"})
        writer.close()
        assert sorted(path.name for path in final.iterdir()) == ["info.json", "logits.npy"]
        size = int(store.supervised_counts.sum()) * (6 * 3 + 2)
        assert np.load(final / "logits.npy").nbytes == size
    stored = StoredTeacher(Rows(stores), finals, QUESTION)
    numbers = [4, 2, 0, 5, 1, 3, 4]
    found = stored.load(numbers)
    wanted = [_answer(stores[n // 4], n % 4) for n in numbers]
    assert torch.equal(found.ids, torch.cat([brief.ids for brief in wanted]))
    log_p = torch.cat([brief.log_p for brief in wanted])
    torch.testing.assert_close(found.log_p, log_p, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.log_p.exp().sum(1), torch.ones(len(log_p)))
    assert found.width == 50
    assert len(stored.load([]).ids) == 0


def test_probabilities_of_nothing_stay_finite():
    taught = torch.zeros(1, 50)
    taught[0, 7] = 1e6
    found = unpack(pack(shorten(taught, 3, 1.0, 50)), 50)
    assert bool(found.log_p.isfinite().all())
    assert found.ids[0, 0] == 7
    torch.testing.assert_close(found.log_p.exp()[0], torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_another_question_or_other_rows_have_another_name(tmp_path):
    store = _make_store(tmp_path / "a", [5, 9, 2, 7])
    same = _make_store(tmp_path / "b", [5, 9, 2, 7])
    other = _make_store(tmp_path / "c", [5, 9, 2, 7], seed=1)
    name = compute_answers_digest(QUESTION, "t", store)
    assert compute_answers_digest(QUESTION, "t", same) == name
    others = [
        compute_answers_digest(QUESTION, "t", other),
        compute_answers_digest(QUESTION, "u", store),
        compute_answers_digest(Question(4, 2.0, 50), "t", store),
        compute_answers_digest(Question(3, 1.0, 50), "t", store),
    ]
    assert len({name, *others}) == 5


@pytest.mark.parametrize("harm", ["missing", "short", "other"])
def test_damaged_answers_are_refused(tmp_path, harm):
    store = _make_store(tmp_path / "a", [5, 9])
    writer = AnswerWriter(tmp_path / "open", store, QUESTION)
    writer.finish(tmp_path / "final", {})
    writer.close()
    path = tmp_path / "final/logits.npy"
    if harm == "missing":
        path.unlink()
    elif harm == "short":
        os.truncate(path, path.stat().st_size - 1)
    else:
        np.save(path, np.zeros(3))
    with pytest.raises(DataError, match="delete this folder"):
        StoredTeacher(Rows([store]), [tmp_path / "final"], QUESTION)


def test_no_room_is_said_before_the_teacher_is_asked(tmp_path, monkeypatch):
    store = _make_store(tmp_path / "a", [5, 9])

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(PlanError, match=r"smaller --task.distillation.top_k than 3"):
        _reserve(tmp_path / "open", store, QUESTION)
    assert not (tmp_path / "open").exists()


def test_what_was_begun_but_not_noted_begins_again(tmp_path):
    store = _make_store(tmp_path / "a", [5, 9])
    (tmp_path / "open").mkdir()
    (tmp_path / "open/logits.npy").write_bytes(b"half a header")
    writer = AnswerWriter(tmp_path / "open", store, QUESTION)
    writer.close()
    assert writer.rows == 0
    assert json.loads((tmp_path / "open/progress.json").read_text()) == {"rows": 0}
    assert len(np.load(tmp_path / "open/logits.npy")) == store.supervised_counts.sum()


def test_batches_hold_as_many_rows_as_fit():
    lengths = np.array([10, 9, 5, 5, 5, 2, 1])
    cuts = cut_batches(lengths, 20)
    assert [len(lengths[cut]) for cut in cuts] == [2, 4, 1]
    assert cut_batches(np.array([30]), 20) == [slice(0, 1)]
    assert cut_batches(np.zeros(0, np.int64), 20) == []


@pytest.mark.parametrize("harm", ["torn", "gone"])
def test_what_a_power_loss_left_begins_again(tmp_path, harm):
    store = _make_store(tmp_path / "a", [5, 9])
    order = order_rows(store)
    writer = AnswerWriter(tmp_path / "open", store, QUESTION)
    _write(writer, store, order[:1])
    writer.advance(1)
    writer._note()
    writer.close()
    if harm == "torn":
        (tmp_path / "open/progress.json").write_text('{"ro')
    else:
        (tmp_path / "open/logits.npy").unlink()
    writer = AnswerWriter(tmp_path / "open", store, QUESTION)
    assert writer.rows == 0
    _write(writer, store, order)
    writer.finish(tmp_path / "final", {})
    writer.close()
    StoredTeacher(Rows([store]), [tmp_path / "final"], QUESTION)
