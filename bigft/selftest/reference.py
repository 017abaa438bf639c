"""The same training in plain torch: one process, fp32, no DeepSpeed, none of bigft's loop or data.

Each example goes through the model alone, without padding; the sum of all losses is divided by the
number of learned tokens. Of bigft only the definition of the 8-bit step is used, written in numpy.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bigft.optim.reference import Moments, Rates, step_8bit, step_fp32
from bigft.selftest import rows as setup

EOS = 0


@dataclass(frozen=True)
class Course:
    """What a run went through."""

    losses: list[float]
    """Mean over learned tokens, before each step."""
    norms: list[float]
    """Of the gradients, before they were clipped."""
    rates: list[float]
    """Learning rates."""
    weights: dict[str, Tensor]
    """At the end, fp32, on the CPU."""


def write_parts(folder: Path, ranks: int) -> None:
    """Write model, tokenizer and data of the tiny runs: `model/` and `rows.jsonl`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<end>": EOS, **{f"w{n}": n for n in range(1, setup.VOCABULARY)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")
    tokenizer.save_pretrained(folder / "model")
    hidden = setup.choose_hidden_size(ranks)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=setup.VOCABULARY,
        max_position_embeddings=setup.MAX_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.SEED)
        model = LlamaForCausalLM(config)
    # Numbers that bf16 runs begin with, too.
    model.to(torch.bfloat16).to(torch.float32).save_pretrained(folder / "model")
    with (folder / "rows.jsonl").open("w") as file:
        for ids in make_rows(ranks):
            file.write(json.dumps({"text": " ".join(f"w{n}" for n in ids)}) + "\n")


def make_rows(ranks: int) -> list[list[int]]:
    """Return token ids of the examples, which are the global batch of every step.

    Lengths differ so much that a mean over ranks or micro-batches is not the mean over tokens.
    """
    chooser = np.random.default_rng(setup.SEED)
    count = setup.ROWS_PER_RANK * ranks
    lengths = chooser.permutation(np.linspace(3, setup.MAX_LENGTH - 1, count).astype(int))
    return [chooser.integers(1, setup.VOCABULARY, n).tolist() for n in lengths]


def train_plainly(folder: Path, ranks: int, optim: str, precision: str) -> Course:
    """Train the model of `write_parts` on its data, on the CPU.

    Args:
        folder: Where `write_parts` has been.
        ranks: That the compared runs have; decides how many examples there are.
        optim: `adamw` or `adamw_8bit`.
        precision: Of the compared runs; decides the learning rate alone.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model.train()
    examples = [torch.tensor([[*ids, EOS]]) for ids in make_rows(ranks)]
    step = Plain8bit(model) if optim == "adamw_8bit" else PlainAdamW(model)
    losses, norms, rates = [], [], []
    for number in range(setup.STEPS):
        rate = setup.LEARNING_RATES[precision] / (number + 1) ** 0.5
        model.zero_grad()
        loss = measure_loss(model, examples)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), setup.MAX_GRAD_NORM)
        step.step(rate)
        losses.append(loss.item())
        norms.append(norm.item())
        rates.append(rate)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Course(losses, norms, rates, weights)


def measure_loss(model: Any, examples: list[Tensor]) -> Tensor:
    """Sum the losses of all tokens but each example's first, and divide by their number."""
    total = torch.zeros(())
    for ids in examples:
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        total = total + nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    return total / sum(ids.numel() - 1 for ids in examples)


def find_decay(parameter: Tensor) -> float:
    """Matrices are decayed, norms are not."""
    return setup.WEIGHT_DECAY if parameter.ndim > 1 else 0.0


class PlainAdamW:
    """torch's AdamW."""

    def __init__(self, model: nn.Module) -> None:
        """Take its parameters."""
        groups = [{"params": [p], "weight_decay": find_decay(p)} for p in model.parameters()]
        self._inner = torch.optim.AdamW(groups, betas=setup.BETAS, eps=setup.EPSILON)

    def step(self, rate: float) -> None:
        """Take a step with this learning rate."""
        for group in self._inner.param_groups:
            group["lr"] = rate
        self._inner.step()


class Plain8bit:
    """AdamW with 8-bit moments of matrices, as it is defined."""

    def __init__(self, model: nn.Module) -> None:
        """Take its parameters."""
        self._parameters = list(model.parameters())
        self._moments = [Moments.zeros(p.numel()) for p in self._parameters]
        self._plain = [np.zeros((2, p.numel()), np.float32) for p in self._parameters]
        self._count = 0

    def step(self, rate: float) -> None:
        """Take a step with this learning rate."""
        self._count += 1
        for number, parameter in enumerate(self._parameters):
            assert parameter.grad is not None, "every parameter has a part in the loss"
            decay = find_decay(parameter)
            rates = Rates(rate, setup.BETAS, setup.EPSILON, decay, self._count)
            weights = parameter.detach().view(-1).numpy()
            gradient = parameter.grad.view(-1).numpy()
            if parameter.ndim > 1:
                step_8bit(weights, gradient, self._moments[number], rates)
            else:
                first, second = self._plain[number]
                step_fp32(weights, gradient, first, second, rates)
