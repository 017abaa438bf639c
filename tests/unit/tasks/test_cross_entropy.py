"""The summed cross-entropy against torch's own in fp32, its further terms in fp64."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bigft.tasks import cross_entropy
from bigft.tasks.cross_entropy import PLAIN, LossForm, sum_cross_entropy

ROWS, VOCAB = 37, 101
FORMS = [
    PLAIN,
    LossForm(label_smoothing=0.1),
    LossForm(label_smoothing=1.0),
    LossForm(z_loss=1e-4),
    LossForm(z_loss=0.5),
    LossForm(focal_gamma=0.5),
    LossForm(focal_gamma=1.0),
    LossForm(focal_gamma=2.0),
    LossForm(focal_gamma=5.0),
    LossForm(label_smoothing=0.2, z_loss=0.01),
    LossForm(z_loss=0.01, focal_gamma=2.0),
]


def _name(form: LossForm) -> str:
    return "-".join(f"{name}={value}" for name, value in vars(form).items() if value) or "plain"


each_form = pytest.mark.parametrize("form", FORMS, ids=_name)


def _inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(ROWS, VOCAB, generator=generator)).to(dtype)
    return logits, torch.randint(VOCAB, (ROWS,), generator=generator)


def _plain_losses(logits: torch.Tensor, labels: torch.Tensor, form: LossForm) -> torch.Tensor:
    """Losses of all rows, as the papers write them."""
    smoothing = form.label_smoothing
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    p = torch.softmax(logits, -1).gather(1, labels[:, None]).squeeze(1)
    return losses * (1 - p) ** form.focal_gamma + form.z_loss * torch.logsumexp(logits, -1) ** 2


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


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_rows", [1, 10, ROWS])
def test_each_form_equals_autograd_in_fp64(monkeypatch, dtype, chunk_rows, form):
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS_CPU", chunk_rows * VOCAB + 1)
    logits, labels = _inputs(dtype)
    reference = logits.double().requires_grad_()
    wanted = _plain_losses(reference, labels, form)
    wanted.sum().backward()
    leaf = logits.clone().requires_grad_()
    rows = torch.full((ROWS,), torch.nan)
    found = sum_cross_entropy(leaf * 1.0, labels, rows, form)
    found.backward()
    assert found.dtype == torch.float32
    assert not rows.requires_grad
    torch.testing.assert_close(found.double(), wanted.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(rows.double(), wanted, rtol=1e-6, atol=1e-6)
    # The gradient is rounded once, at the end.
    rounding = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_plain_form_is_exactly_softmax_minus_one_at_the_label(dtype):
    """What it was before there were other forms, bit for bit."""
    logits, labels = _inputs(dtype)
    log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
    leaf = logits.clone().requires_grad_()
    rows = torch.empty(ROWS)
    sum_cross_entropy(leaf * 1.0, labels, rows).backward()
    assert torch.equal(rows, -log_p.gather(1, labels[:, None]).squeeze(1))
    gradient = log_p.exp() - functional.one_hot(labels, VOCAB)
    headroom = 2.0**15 if dtype == torch.float16 else 1.0
    assert torch.equal(leaf.grad, (gradient * headroom).to(dtype) / headroom)


@each_form
def test_no_rows_are_zero_in_each_form(form):
    leaf = torch.ones(2, VOCAB, requires_grad=True)
    loss = sum_cross_entropy((leaf * 2)[:0], torch.zeros(0, dtype=torch.int64), None, form)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(leaf.grad, torch.zeros(2, VOCAB))


@each_form
def test_without_a_gradient_the_logits_stay(form):
    logits, labels = _inputs(torch.bfloat16)
    before = logits.clone()
    found = sum_cross_entropy(logits, labels, None, form)
    wanted = _plain_losses(before.double(), labels, form).sum()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_finite_where_the_answer_is_certain_or_impossible(gamma):
    """Autograd of the formula gives NaN in the first and the last row."""
    certain, likely, unlikely, impossible = [200.0, 0], [12.0, 0], [-200.0, 0], [-math.inf, 0]
    logits = torch.tensor([certain, likely, unlikely, impossible], requires_grad=True)
    rows = torch.empty(4)
    labels = torch.zeros(4, dtype=torch.int64)
    sum_cross_entropy(logits * 1.0, labels, rows, LossForm(focal_gamma=gamma)).backward()
    w = 1 / (1 + math.exp(12.0))
    log_p = math.log1p(-w)
    torch.testing.assert_close(rows[[0, 2, 3]], torch.tensor([0.0, 200.0, math.inf]))
    torch.testing.assert_close(rows[1].item(), -(w**gamma) * log_p, rtol=1e-2, atol=1e-7)
    slope = w**gamma * (1 - gamma * (1 - w) * log_p / w)
    wanted = torch.tensor([[0.0, 0], [-slope * w, slope * w], [-1, 1], [-1, 1]])
    torch.testing.assert_close(logits.grad, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("z_loss", [1e-4, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_largest_gradient_fits_in_fp16(z_loss, gamma, sign):
    """Of z-loss it is `2 z 65504`: 13 for the usual `z = 1e-4`."""
    form = LossForm(z_loss=z_loss, focal_gamma=gamma)
    logits = sign * torch.tensor([[65504.0, 1], [65504, 65504], [65504, 65000]])
    labels = torch.tensor([1, 0, 1])
    reference = logits.double().requires_grad_()
    (_plain_losses(reference, labels, form).sum() / 8).backward()
    leaf = logits.half().requires_grad_()
    (sum_cross_entropy(leaf * 1.0, labels, None, form) / 8).backward()
    torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gamma", [2.0, 200.0])
def test_the_gradient_of_focal_loss_fits_in_fp16(gamma):
    """It is largest where the answer is neither certain nor impossible: 2.3 of gamma 200."""
    form = LossForm(focal_gamma=gamma)
    logits = torch.stack([torch.linspace(-20, 20, 401), torch.zeros(401)], 1).half()
    labels = torch.zeros(401, dtype=torch.int64)
    reference = logits.double().requires_grad_()
    _plain_losses(reference, labels, form).sum().backward()
    leaf = logits.clone().requires_grad_()
    sum_cross_entropy(leaf * 1.0, labels, None, form).backward()
    torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-3, atol=1e-6)


class _LargestFp32(TorchDispatchMode):
    """Remembers the elements of the largest fp32 tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return result


@each_form
def test_never_more_than_a_chunk_is_upcast(monkeypatch, form):
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS_CPU", 10 * VOCAB + 1)
    logits, labels = _inputs(torch.bfloat16)
    leaf = logits.clone().requires_grad_()
    with _LargestFp32() as largest:
        head = leaf * 1.0
        sum_cross_entropy(head, labels, torch.empty(ROWS), form).backward()
    assert largest.elements == 10 * VOCAB
    # The gradient lies where the logits were.
    assert torch.equal(head.detach(), leaf.grad)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
        ({"label_smoothing": math.nan}, "label_smoothing=nan"),
        ({"z_loss": -1e-4}, "z_loss=-0.0001"),
        ({"z_loss": math.inf}, "z_loss=inf"),
        ({"focal_gamma": -2.0}, "focal_gamma=-2.0"),
        ({"label_smoothing": 0.1, "focal_gamma": 2.0}, "label_smoothing=0.1 with focal_gamma=2.0"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LossForm(**fields)
