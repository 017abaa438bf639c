"""The reference itself, held against formulas."""

import numpy as np
import pytest
import torch

from bigft.selftest import reference
from bigft.selftest import rows as setup

ROWS = reference.make_rows(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("selftest")
    reference.write_parts(path, 2)
    return path


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)


def compute_clipped(model):
    """Gradients of the mean over tokens, computed in one padded batch."""
    width = max(map(len, ROWS)) + 1
    ids = torch.zeros((len(ROWS), width), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(ROWS):
        ids[number, : len(row) + 1] = torch.tensor([*row, reference.EOS])
        labels[number, : len(row) + 1] = ids[number, : len(row) + 1]
    logits = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    loss.backward()
    gradients = {n: p.grad.numpy().astype(np.float64) for n, p in model.named_parameters()}
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    factor = min(1.0, setup.MAX_GRAD_NORM / (norm + 1e-6))
    return loss.item(), norm, {n: factor * g for n, g in gradients.items()}


def step_by_hand(model, steps):
    """AdamW (arXiv 1711.05101, algorithm 2) in numpy, fp64."""
    beta1, beta2 = setup.BETAS
    weights = {n: p.detach().numpy().astype(np.float64) for n, p in model.named_parameters()}
    m = {n: np.zeros_like(w) for n, w in weights.items()}
    v = {n: np.zeros_like(w) for n, w in weights.items()}
    losses, norms = [], []
    for t in range(1, steps + 1):
        for name, parameter in model.named_parameters():
            parameter.data.copy_(torch.from_numpy(weights[name]))
        model.zero_grad()
        loss, norm, gradients = compute_clipped(model)
        losses.append(loss)
        norms.append(norm)
        rate = setup.LEARNING_RATES["fp32"] / np.sqrt(t)
        for name, g in gradients.items():
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            root = np.sqrt(v[name] / (1 - beta2**t)) + setup.EPSILON
            decay = 0.0 if "norm" in name else setup.WEIGHT_DECAY
            update = m[name] / (1 - beta1**t) / root + decay * weights[name]
            weights[name] = weights[name] - rate * update
    return losses, norms, weights


def test_it_is_adamw_written_out(folder):
    course = reference.train_plainly(folder, 2, "adamw", "fp32")
    model = load(folder)
    start = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    losses, norms, weights = step_by_hand(model, setup.STEPS)
    assert course.losses == pytest.approx(losses, rel=1e-6)
    assert course.norms == pytest.approx(norms, rel=1e-5)
    assert course.weights.keys() == weights.keys()
    for name, wanted in weights.items():
        way = np.linalg.norm(wanted - start[name])
        assert way > 0
        # Norms are near 1, and fp32 rounds them by 6e-8 in each step.
        assert np.linalg.norm(course.weights[name].numpy() - wanted) < 1e-4 * way, name


def test_runs_learn_and_every_step_is_clipped(folder):
    for optim in ("adamw", "adamw_8bit"):
        course = reference.train_plainly(folder, 2, optim, "fp32")
        assert min(course.norms) > setup.MAX_GRAD_NORM
        assert course.losses[-1] < 0.95 * course.losses[0]
        assert len(set(course.rates)) == setup.STEPS


def test_8bit_moments_are_another_course_than_fp32_ones(folder):
    """Else a run with the wrong optimizer would not be seen."""
    from bigft.selftest.agreement import find_disagreements, measure

    plain = reference.train_plainly(folder, 2, "adamw", "fp32")
    coded = reference.train_plainly(folder, 2, "adamw_8bit", "fp32")
    start = {n: p.detach() for n, p in load(folder).named_parameters()}
    row = setup.Row("zero3", "adamw_8bit", 1, "fp32")
    assert find_disagreements(measure(plain, coded, start), row)


def test_examples_are_uneven_over_ranks_and_short_enough():
    lengths = [len(row) for row in ROWS]
    assert len(lengths) == 2 * setup.ROWS_PER_RANK
    assert max(lengths) < setup.MAX_LENGTH
    assert max(lengths) > 10 * min(lengths)
    assert reference.make_rows(2) == ROWS


def test_weights_to_begin_with_are_bf16_numbers(folder):
    for parameter in load(folder).parameters():
        assert torch.equal(parameter, parameter.to(torch.bfloat16).float())
