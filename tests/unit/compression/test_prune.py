"""Pruning against a plain reimplementation, weight by weight."""

import copy
from typing import Any

import pytest
import torch
from making import llama_config

from bigft.compression.prune import Pruning, prune_, prune_by_inputs, read_pruning
from bigft.errors import ConfigError


def prune_plainly(weight: Any, norms: Any, share: float | None) -> Any:
    """Row by row in Python: sort by worth, then by place."""
    pruned = weight.clone()
    columns = weight.shape[1]
    for row in range(weight.shape[0]):
        worth = [abs(weight[row, n].item()) * norms[n].item() for n in range(columns)]
        if share is None:
            groups, count = [range(n, n + 4) for n in range(0, columns, 4)], 2
        else:
            groups, count = [range(columns)], int(share * columns)
        for group in groups:
            for column in sorted(group, key=lambda n: (worth[n], n))[:count]:
                pruned[row, column] = 0
    return pruned


@pytest.mark.parametrize("share", [0.1, 0.5, 0.73, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_least_weights_of_each_row_become_zero(share: float | None, dtype: Any) -> None:
    torch.manual_seed(0)
    # bf16 has many that are equal.
    weight, norms = torch.randn(7, 24, dtype=dtype), torch.rand(24)
    by_size, by_input = weight.clone(), weight.clone()
    prune_(by_size, share)
    prune_(by_input, share, norms)
    assert torch.equal(by_size, prune_plainly(weight, torch.ones(24), share))
    assert torch.equal(by_input, prune_plainly(weight, norms, share))
    assert not torch.equal(by_size, by_input)
    zeros = (by_input == 0).sum(1)
    assert (zeros == (12 if share is None else int(share * 24))).all()


@pytest.mark.parametrize("share", [0.5, None])
def test_wanda_prunes_block_by_block(share: float | None) -> None:
    """Inputs are read again from the whole model, after every block before them was pruned."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(num_hidden_layers=3, initializer_range=0.2)).eval()
    rows = torch.randint(0, 512, (5, 16))
    plain = copy.deepcopy(model)
    for number in range(3):
        inputs: dict[str, Any] = {}
        linears = {
            name: part
            for name, part in plain.model.layers[number].named_modules()
            if isinstance(part, torch.nn.Linear)
        }
        for name, part in linears.items():
            # A hook that returns something would change the input.
            part.register_forward_pre_hook(
                lambda _, args, name=name, inputs=inputs: inputs.update({name: args[0]})
            )
        with torch.no_grad():
            plain(input_ids=rows)
            for name, part in linears.items():
                norms = torch.linalg.vector_norm(inputs[name].flatten(0, 1), dim=0)
                part.weight.copy_(prune_plainly(part.weight, norms, share))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune_by_inputs(model.model, list(model.model.layers), rows, share)
    for name, value in model.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
        assert torch.equal(value, before[name]) != ("_proj" in name), name
    with torch.no_grad():  # No hook stays behind.
        assert torch.equal(model(input_ids=rows).logits, plain(input_ids=rows).logits)


def test_a_pruning_is_read() -> None:
    assert read_pruning("magnitude:0.5") == Pruning("magnitude", 0.5)
    assert read_pruning("wanda:2:4") == Pruning("wanda", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sparsegpt:0.5", "unknown method 'sparsegpt'"),
        ("", "unknown method ''"),
        ("wanda", "give a share"),
        ("wanda:1:4", "give a share"),
        ("magnitude:half", "give a share"),
        ("magnitude:0", "between 0 and 1"),
        ("magnitude:1", "between 0 and 1"),
        ("wanda:-0.5", "between 0 and 1"),
        ("wanda:nan", "between 0 and 1"),
    ],
)
def test_what_is_no_pruning_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_pruning(text)
    assert text in str(caught.value)
