"""Losses and gradients of every task are those that transformers computes from `labels=`."""

from typing import Any

import pytest
import torch
from making import llama_config
from task_rows import (
    bert_config,
    labelled,
    make_batch,
    source_targets,
    t5_config,
    texts,
)

from bigft.data.loading.batches import build_collate
from bigft.data.section import DataSection
from bigft.tasks.classes import Classes
from bigft.tasks.classification import Classification
from bigft.tasks.masked_lm import MaskedLM
from bigft.tasks.regression import Regression
from bigft.tasks.rows import ClassRows, MaskedRows, SourceTargetRows, ValueRows
from bigft.tasks.section import TaskSection
from bigft.tasks.seq2seq import Seq2Seq
from bigft.tasks.task import LossSum, Score

SECTION = DataSection(max_length=32, packing="none")
CLASSES = ("a", "b", "c")
KINDS = {
    "one": (TaskSection(name="classification"), False, ["a", "c", "c", "b", "a"]),
    "many": (TaskSection(name="classification"), True, [["a"], [], ["b", "c"], ["c"], ["a", "b"]]),
}


def _build(auto_class: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return auto_class.from_config(config, attn_implementation="eager")


def _assert_same(task: Any, model: Any, batch: Any, wanted: torch.Tensor, terms: int) -> None:
    """Compare the mean loss and all gradients with transformers' own."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = list(model.parameters())
    expected = torch.autograd.grad(wanted, parameters, allow_unused=True)
    found: LossSum = task.loss(model, batch)
    assert found.tokens == terms == batch.supervised_tokens
    torch.testing.assert_close(found.total.detach() / terms, wanted.detach(), rtol=2e-6, atol=1e-7)
    gradients = torch.autograd.grad(found.total / terms, parameters, allow_unused=True)
    assert sum(float(one.abs().sum()) for one in gradients if one is not None) > 0.1
    for name, one, other in zip(names, gradients, expected, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6, msg=name)
    score: Score = task.score(model, batch)
    assert score.loss / terms == pytest.approx(float(wanted.detach()), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [False, True])
def test_classification_by_an_encoder(bert_tokenizer, kind, pairs):
    section, is_multiple, labels = KINDS[kind]
    task = Classification(ClassRows(Classes(CLASSES, is_multiple)), section)
    config = bert_config()
    task.configure(config, bert_tokenizer)
    model = _build(task.auto_class(), config)
    batch = make_batch(task.rows.lay_out(bert_tokenizer, SECTION), labelled(labels, pairs=pairs))
    assert batch.token_type_ids is not None
    assert bool(batch.token_type_ids.any()) == pairs
    wanted = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.token_type_ids,
        labels=batch.labels.float() if is_multiple else batch.labels[:, 0],
    ).loss
    _assert_same(task, model, batch, wanted, 15 if is_multiple else 5)


@pytest.mark.parametrize("kind", KINDS)
def test_classification_by_a_decoder(plain_tokenizer, kind):
    section, is_multiple, labels = KINDS[kind]
    task = Classification(ClassRows(Classes(CLASSES, is_multiple)), section)
    config = llama_config(pad_token_id=None)
    task.configure(config, plain_tokenizer)
    model = _build(task.auto_class(), config)
    batch = make_batch(task.rows.lay_out(plain_tokenizer, SECTION), labelled(labels))
    wanted = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels.float() if is_multiple else batch.labels[:, 0],
    ).loss
    _assert_same(task, model, batch, wanted, 15 if is_multiple else 5)


def test_what_a_decoder_says_does_not_depend_on_the_texts_beside(plain_tokenizer):
    """The config named another token as padding than the tokenizer, which fills up the batch."""
    task = Classification(ClassRows(Classes(CLASSES, False)))
    config = llama_config(pad_token_id=7)
    task.configure(config, plain_tokenizer)
    model = _build(task.auto_class(), config)
    layout = task.rows.lay_out(plain_tokenizer, SECTION)
    rows = labelled([CLASSES[0]] * 5)
    together = task.score(model, make_batch(layout, rows))
    apart = [task.score(model, make_batch(layout, [row])) for row in rows]
    assert together.loss == pytest.approx(sum(one.loss for one in apart), rel=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_regression(bert_tokenizer, size):
    task = Regression(ValueRows(size))
    config = bert_config()
    task.configure(config, bert_tokenizer)
    model = _build(task.auto_class(), config)
    labels = [[0.5 * n - k for k in range(size)] for n in range(5)]
    batch = make_batch(task.rows.lay_out(bert_tokenizer, SECTION), labelled(labels))
    labels_there = batch.labels[:, 0] if size == 1 else batch.labels
    wanted = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels_there
    ).loss
    _assert_same(task, model, batch, wanted, 5 * size)


@pytest.mark.parametrize("prefix", ["", "sum up: "])
def test_seq2seq(plain_tokenizer, prefix):
    task = Seq2Seq(SourceTargetRows(prefix))
    model = _build(task.auto_class(), t5_config())
    batch = make_batch(task.rows.lay_out(plain_tokenizer, SECTION), source_targets())
    wanted = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    _assert_same(task, model, batch, wanted, int((batch.labels != -100).sum()))
    begin = plain_tokenizer.decode(batch.input_ids[0])
    assert begin.startswith(f"{prefix}red cat runs<|endoftext|>")


def test_masked_lm(bert_tokenizer):
    task = MaskedLM(MaskedRows(0.3, "token"))
    model = _build(task.auto_class(), bert_config())
    batch = make_batch(task.rows.lay_out(bert_tokenizer, SECTION), texts())
    wanted = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    _assert_same(task, model, batch, wanted, int((batch.labels != -100).sum()))


FORMS = [
    {"label_smoothing": 0.1},
    {"focal_gamma": 2.0},
    {"focal_gamma": 0.5},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0)])
def test_forms_of_the_loss_of_a_classifier(bert_tokenizer, form, weights):
    """Against the formulas in fp64; an evaluation is not touched by them."""
    section = TaskSection(name="classification", **form)
    task = Classification(ClassRows(Classes(CLASSES, False, weights)), section)
    config = bert_config()
    task.configure(config, bert_tokenizer)
    model = _build(task.auto_class(), config)
    batch = make_batch(task.rows.lay_out(bert_tokenizer, SECTION), labelled(KINDS["one"][2]))
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    log_p = logits.double().log_softmax(1)
    right = batch.labels
    plain = -log_p.gather(1, right)[:, 0]
    losses = plain
    if smoothing := form.get("label_smoothing"):
        losses = (1 - smoothing) * plain - smoothing * log_p.mean(1)
    if gamma := form.get("focal_gamma"):
        losses = (1 - (-plain).exp()) ** gamma * plain
    if weights is not None:
        losses = losses * torch.tensor(weights, dtype=torch.float64)[right[:, 0]]
    found = task.loss(model, batch)
    torch.testing.assert_close(found.total.double(), losses.sum(), rtol=1e-6, atol=0)
    assert task.score(model, batch).loss == pytest.approx(float(plain.sum()), rel=1e-6)


def test_sequences_of_padding_count_nothing_but_reach_every_weight(bert_tokenizer, plain_tokenizer):
    """A rank with nothing but padding takes part in every gather, with gradients of zero."""
    classify = Classification(ClassRows(Classes(CLASSES)))
    cases: list[tuple[Any, Any, Any, Any]] = [
        (classify, bert_config(), bert_tokenizer, labelled(KINDS["one"][2])),
        (Regression(ValueRows(1)), bert_config(), bert_tokenizer, labelled([1.0] * 5)),
        (Seq2Seq(SourceTargetRows("")), t5_config(), plain_tokenizer, source_targets()),
        (MaskedLM(MaskedRows(0.15, "token")), bert_config(), bert_tokenizer, texts()),
    ]
    for task, config, tokenizer, examples in cases:
        task.configure(config, tokenizer)
        model = _build(task.auto_class(), config)
        layout = task.rows.lay_out(tokenizer, SECTION)
        alone = task.loss(model, make_batch(layout, examples))
        padded = task.loss(model, make_batch(layout, examples, padding=3))
        assert padded.tokens == alone.tokens
        torch.testing.assert_close(padded.total, alone.total, rtol=1e-5, atol=1e-5)
        assert task.score(model, make_batch(layout, examples, padding=3)).tokens == alone.tokens
        nothing = task.loss(model, build_collate(layout)([[], []]))
        assert (nothing.tokens, float(nothing.total)) == (0, 0.0)
        nothing.total.backward()
        touched = [name for name, p in model.named_parameters() if p.grad is not None]
        assert len(touched) >= len(list(model.parameters())) - 1, type(task).__name__
        assert not any(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
