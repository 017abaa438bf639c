"""The loss of a student, against its formula in fp64."""

import pytest
import torch
from torch.nn import functional

from bigft.tasks import cross_entropy
from bigft.tasks.cross_entropy import sum_cross_entropy
from bigft.tasks.divergence import Mixture, shorten, sum_distillation

MIXTURES = [Mixture(), Mixture(1.0, 1.0), Mixture(4.0, 0.25), Mixture(0.5, 0.9), Mixture(3.0, 0.0)]


def _reference(logits, taught, labels, mixture: Mixture) -> torch.Tensor:
    width = min(logits.shape[1], taught.shape[1])
    t = mixture.temperature
    divergence = functional.kl_div(
        (logits[:, :width] / t).log_softmax(1),
        (taught[:, :width] / t).softmax(1),
        reduction="none",
    ).sum(1)
    plain = functional.cross_entropy(logits, labels, reduction="none")
    return (1 - mixture.weight) * plain + mixture.weight * t**2 * divergence


def _draw(rows: int, size: int, width: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    logits = (3 * torch.randn(rows, size, generator=generator)).to(dtype)
    taught = (3 * torch.randn(rows, width, generator=generator)).to(dtype)
    return logits, taught, torch.randint(size, (rows,), generator=generator)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("size", "width"), [(37, 37), (40, 37), (37, 40)])
def test_values_and_gradients(monkeypatch, mixture, size, width):
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS_CPU", 3 * size)
    logits, taught, labels = _draw(11, size, width)
    exact = logits.double().requires_grad_()
    wanted = _reference(exact, taught.double(), labels, mixture)
    wanted.sum().backward()
    leaf = logits.clone().requires_grad_()
    rows = torch.empty(11)
    found = sum_distillation(leaf * 1, taught, labels, rows, mixture)
    (2 * found).backward()
    torch.testing.assert_close(rows.double(), wanted.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.double(), wanted.sum().detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(leaf.grad.double(), 2 * exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixture", [Mixture(), Mixture(64.0, 1.0)])
def test_gradients_in_16_bits_are_rounded_once(dtype, mixture):
    logits, taught, labels = _draw(9, 50, 50, dtype)
    exact = logits.double().requires_grad_()
    _reference(exact, taught.double(), labels, mixture).sum().backward()
    leaf = logits.clone().requires_grad_()
    sum_distillation(leaf * 1, taught, labels, None, mixture).backward()
    bound = torch.finfo(dtype).eps * exact.grad.abs().max() + torch.finfo(dtype).tiny
    assert bool(leaf.grad.isfinite().all())
    assert float((leaf.grad.double() - exact.grad).abs().max()) <= float(bound)


def test_without_a_teacher_it_is_cross_entropy():
    logits, taught, labels = _draw(7, 30, 30)
    plain = sum_cross_entropy(logits.clone(), labels)
    assert torch.equal(sum_distillation(logits, taught, labels, None, Mixture(2.0, 0.0)), plain)


def test_a_student_like_its_teacher_has_nothing_to_learn_of_it():
    logits, _, labels = _draw(7, 30, 30)
    leaf = logits.clone().requires_grad_()
    found = sum_distillation(leaf * 1, logits, labels, None, Mixture(2.0, 1.0))
    found.backward()
    assert abs(float(found.detach())) < 1e-5
    assert float(leaf.grad.abs().max()) < 1e-5


def test_nothing_is_zero():
    logits, taught, labels = _draw(0, 30, 30)
    leaf = logits.requires_grad_()
    found = sum_distillation(leaf * 1, taught, labels)
    found.backward()
    assert float(found) == 0.0


def _reference_briefly(logits, taught, labels, count, mixture: Mixture, width: int):
    """K tokens and one bucket, from whole probabilities."""
    t = mixture.temperature
    p, q = ((values[:, :width] / t).softmax(1) for values in (taught, logits))
    ids = p.topk(count, 1).indices
    p, q = (
        torch.cat([kept := values.gather(1, ids), 1 - kept.sum(1, keepdim=True)], 1)
        for values in (p, q)
    )
    divergence = (p * (p / q).log()).sum(1)
    plain = functional.cross_entropy(logits, labels, reduction="none")
    return (1 - mixture.weight) * plain + mixture.weight * t**2 * divergence


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("size", "width"), [(37, 37), (40, 37), (37, 40)])
@pytest.mark.parametrize("count", [1, 5])
def test_the_most_likely_tokens_and_a_bucket(monkeypatch, mixture, size, width, count):
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS_CPU", 3 * size)
    logits, taught, labels = _draw(11, size, width)
    exact = logits.double().requires_grad_()
    # What both tables are padded with beyond the 35 tokens of the tokenizer does not count.
    wanted = _reference_briefly(exact, taught.double(), labels, count, mixture, 35)
    wanted.sum().backward()
    leaf = logits.clone().requires_grad_()
    rows = torch.empty(11)
    brief = shorten(taught, count, mixture.temperature, 35)
    assert brief.ids.shape == (11, count)
    (2 * sum_distillation(leaf * 1, brief, labels, rows, mixture)).backward()
    torch.testing.assert_close(rows.double(), wanted.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), 2 * exact.grad, rtol=1e-5, atol=1e-6)


def test_more_tokens_say_more_and_all_but_one_say_everything():
    logits, taught, labels = _draw(9, 30, 30)
    mixture = Mixture(2.0, 1.0)
    found = [
        float(sum_distillation(logits.clone(), shorten(taught, k, 2.0, 30), labels, None, mixture))
        for k in (1, 3, 9, 29, 30, 100)
    ]
    whole = float(sum_distillation(logits.clone(), taught, labels, None, mixture))
    assert found[:4] == sorted(found[:4])
    assert found[2] < 0.999 * whole
    assert found[3:] == pytest.approx([whole] * 3, rel=1e-6)


def test_a_teacher_that_is_sure_leaves_finite_gradients():
    logits, taught, labels = _draw(5, 30, 30)
    taught[:, 3] = 1e4
    leaf = logits.clone().requires_grad_()
    found = sum_distillation(leaf * 1, shorten(taught, 4, 2.0, 30), labels, None, Mixture(2.0, 1.0))
    found.backward()
    wanted = 4 * -(logits / 2).log_softmax(1)[:, 3].sum()
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-5)
    assert bool(leaf.grad.isfinite().all())


def test_no_token_is_zero_of_a_brief_teacher_too():
    logits, taught, labels = _draw(0, 30, 30)
    found = sum_distillation(logits.requires_grad_() * 1, shorten(taught, 4, 2.0, 30), labels)
    found.backward()
    assert float(found) == 0.0
