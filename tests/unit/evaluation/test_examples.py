"""What each example adds, against every example scored alone."""

from pathlib import Path

import pytest
import torch
from making import llama_config, make_tokenizer
from task_rows import TEXTS, bert_config, labelled, make_batch, texts

from bigft.data.example import Conversation
from bigft.data.loading.batches import build_collate
from bigft.data.section import DataSection
from bigft.evaluation.examples import PerExample, add_up
from bigft.evaluation.loop import evaluate, keep_rows, stay_alone
from bigft.tasks.causal_lm import CausalLM
from bigft.tasks.classes import Classes
from bigft.tasks.classification import Classification
from bigft.tasks.regression import Regression
from bigft.tasks.rows import ClassRows, ValueRows

CPU = torch.device("cpu")
SECTION = DataSection(packing="none", max_length=32)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return make_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


def _score(task, model, batches):
    return evaluate(
        task, model, batches, device=CPU, sum_over_ranks=stay_alone, gather=keep_rows,
        sources=("one", "two") if batches[0].num_sources > 1 else (),
    )  # fmt: skip


def _collate(layout, examples, sources):
    rows = []
    for result, source in zip(layout.tokenize(examples), sources, strict=True):
        (row,) = result.rows
        object.__setattr__(row, "source", source)
        rows.append([row])
    collate = build_collate(layout, 2)
    return [collate(rows[:3]), collate([*rows[3:], []])]


def test_losses_of_examples_add_up_and_parts_stay_apart(tokenizer):
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config()).eval()
    task = CausalLM()
    layout = task.rows.lay_out(tokenizer, SECTION)
    turns = [[("user", text), ("assistant", text[::-1])] for text in TEXTS]
    examples = [Conversation([{"role": r, "content": c} for r, c in turn]) for turn in turns]
    batches = _collate(layout, examples, [0, 1, 1, 0, 1])
    keeper = PerExample(task)
    found = _score(keeper, model, batches)
    assert found == pytest.approx(_score(task, model, batches), rel=1e-6)
    sums = keeper.sum_examples([10, 11, 12, 13, 14])["loss"]
    for digest, example in zip(sums, examples, strict=True):
        alone = make_batch(layout, [example])
        loss = model(alone.input_ids, attention_mask=alone.attention_mask, labels=alone.labels).loss
        total, terms = sums[digest]
        assert total / terms == pytest.approx(loss.item(), rel=1e-5)
        assert terms == int((alone.labels != -100).sum())


def test_rows_of_labels_have_an_accuracy(tokenizer):
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(bert_config(num_labels=3)).eval()
    task = Classification(ClassRows(Classes(("x", "y", "z"))))
    batch = make_batch(
        task.rows.lay_out(tokenizer, SECTION), labelled(["x", "y", "z", "x", "y"]), padding=1
    )
    keeper = PerExample(task)
    scores = _score(keeper, model, [batch])
    found = keeper.sum_examples([1, 2, 3, 4, 5])
    assert sum(value for value, _ in found["accuracy"].values()) / 5 == scores["accuracy"]
    assert sum(total for total, _ in found["loss"].values()) / 5 == pytest.approx(scores["loss"])


def test_rows_of_numbers_have_an_error(tokenizer):
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(
        bert_config(num_labels=2, problem_type="regression")
    ).eval()
    task = Regression(ValueRows(2))
    batch = make_batch(
        task.rows.lay_out(tokenizer, SECTION), labelled([[1.0, n] for n in range(5)])
    )
    keeper = PerExample(task)
    scores = _score(keeper, model, [batch])
    found = keeper.sum_examples([1, 2, 3, 4, 5])["mae"]
    assert sum(value for value, _ in found.values()) / 5 == pytest.approx(scores["mae"])


def test_pieces_of_one_example_add_up():
    assert add_up([1, 2, 1], [[1.0, 2.0], [5.0, 1.0], [3.0, 4.0]]) == {1: [4.0, 6.0], 2: [5.0, 1.0]}


def test_rows_without_a_term_are_no_examples(tokenizer):
    from transformers import LlamaForCausalLM

    task = CausalLM()
    batch = make_batch(task.rows.lay_out(tokenizer, SECTION), texts()[:2])
    batch.labels[1] = -100
    keeper = PerExample(task)
    _score(keeper, LlamaForCausalLM(llama_config()).eval(), [batch])
    assert list(keeper.sum_examples([7, 8])["loss"]) == [7]
