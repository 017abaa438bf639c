"""The summed cross-entropy against torch's own in fp32."""

import pytest
import torch
from torch.nn import functional

from bigft.tasks import cross_entropy
from bigft.tasks.cross_entropy import sum_cross_entropy

ROWS, VOCAB = 37, 101


def _inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(ROWS, VOCAB, generator=generator)).to(dtype)
    return logits, torch.randint(VOCAB, (ROWS,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_rows", [0, 1, 10, ROWS, 1000])
def test_value_and_gradient_equal_torch(monkeypatch, dtype, chunk_rows):
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS_CPU", chunk_rows * VOCAB + 1)
    logits, labels = _inputs(dtype)
    reference = logits.clone().float().requires_grad_()
    wanted = functional.cross_entropy(reference, labels, reduction="sum")
    (3.5 * wanted).backward()
    leaf = logits.clone().requires_grad_()
    # As in a model: the logits are the result of an operation, the head.
    found = sum_cross_entropy(leaf * 1.0, labels)
    (3.5 * found).backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert leaf.grad.dtype == dtype
    # The gradient is rounded once, at the end.
    rounding = max(torch.finfo(dtype).eps, 2e-6)
    torch.testing.assert_close(leaf.grad.float(), reference.grad, rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 10, ROWS])
def test_each_row_has_its_loss_and_the_gradient_stays(monkeypatch, chunk_rows, needs_gradient):
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS_CPU", chunk_rows * VOCAB + 1)
    logits, labels = _inputs(torch.float32)
    wanted = functional.cross_entropy(logits, labels, reduction="none")
    leaf = logits.clone().requires_grad_(needs_gradient)
    found = torch.full((ROWS,), torch.nan)
    total = sum_cross_entropy(leaf * 1.0, labels, found)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total.detach(), wanted.sum(), rtol=1e-6, atol=0)
    assert not found.requires_grad
    if needs_gradient:
        total.backward()
        expected = torch.softmax(logits, -1) - functional.one_hot(labels, VOCAB)
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-6)


def test_small_probabilities_survive_in_fp16():
    """With a loss scale of 2**20 the gradient of a token of probability 3e-8 is 0.03, not 0."""
    logits = torch.tensor([[0.0, -17.3]], dtype=torch.float16).requires_grad_()
    (2.0**20 * sum_cross_entropy(logits * 1.0, torch.tensor([0]))).backward()
    exact = torch.softmax(logits.detach().double(), -1)[0, 1] * 2.0**20
    torch.testing.assert_close(logits.grad[0, 1].double(), exact, rtol=2e-3, atol=0)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    loss = sum_cross_entropy(logits * 1.0, torch.tensor([1, 1]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(2e4) + torch.tensor(2.0).log())
    # 1e4 + log(2) has an error of 5e-4 in fp32.
    wanted = torch.tensor([[1.0, -1, 0], [0, -0.5, 0.5]])
    torch.testing.assert_close(logits.grad, wanted, rtol=0, atol=5e-4)


def test_no_rows_are_a_loss_of_zero_with_a_gradient():
    leaf = torch.ones(2, VOCAB, requires_grad=True)
    loss = sum_cross_entropy((leaf * 2)[:0], torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(leaf.grad, torch.zeros(2, VOCAB))


def test_logits_may_be_a_view_of_three_dimensions():
    """What the task hands over: selected or flattened rows of a `(B, T, V)` tensor."""
    logits, labels = _inputs(torch.float32)
    cube = logits[:36].reshape(3, 12, VOCAB)
    keep = torch.arange(36).reshape(3, 12) % 3 != 1
    for select in (lambda x: x.flatten(0, 1), lambda x: x[keep]):
        reference, leaf = (cube.clone().requires_grad_() for _ in range(2))
        wanted_labels = select(labels[:36].reshape(3, 12, 1)).squeeze(-1).flatten()
        wanted = functional.cross_entropy(select(reference), wanted_labels, reduction="sum")
        wanted.backward()
        found = sum_cross_entropy(select(leaf * 1.0), wanted_labels)
        found.backward()
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(leaf.grad, reference.grad, rtol=1e-5, atol=1e-6)
