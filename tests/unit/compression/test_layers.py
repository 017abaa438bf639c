"""Which layers go, and what a configuration says afterwards."""

from typing import Any

import pytest
import torch
from making import llama_config

from bigft.compression.layers import cut_config, measure_changes, rename
from bigft.errors import ConfigError


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(num_hidden_layers=5, initializer_range=0.3)).eval()
    with torch.no_grad():  # These two hardly do anything.
        for number in (2, 3):
            layer = model.model.layers[number]
            layer.self_attn.o_proj.weight *= 0.01
            layer.mlp.down_proj.weight *= 0.01
    return model


@pytest.mark.parametrize("count", [1, 2, 4])
def test_angles_are_those_of_the_hidden_states(model: Any, count: int) -> None:
    rows = torch.randint(0, 512, (3, 12))
    # Without the norm behind them, transformers would show the last ones too.
    last: list[Any] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    with torch.no_grad():
        states = model.model(input_ids=rows, output_hidden_states=True).hidden_states[:-1]
    handle.remove()
    states = (*states, last[0])
    expected = []
    for first in range(6 - count):
        one, other = states[first].double(), states[first + count].double()
        cosines = (one * other).sum(-1) / one.norm(dim=-1) / other.norm(dim=-1)
        expected.append((torch.arccos(cosines) / torch.pi).mean().item())
    found = measure_changes(model.model, list(model.model.layers), rows, count)
    assert found == pytest.approx(expected, abs=1e-5)
    assert not model.model.layers[0]._forward_pre_hooks
    if count == 2:
        assert found.index(min(found)) == 2


def test_later_layers_move_up() -> None:
    names = [f"model.layers.{n}.mlp.weight" for n in range(12)]
    found = [rename(name, "model.layers", range(2, 10)) for name in names]
    assert found[:2] == names[:2]
    assert found[2:10] == [None] * 8
    assert found[10:] == names[2:4]
    assert rename("model.embed_tokens.weight", "model.layers", [0]) == "model.embed_tokens.weight"


def test_lists_with_an_entry_per_layer_are_cut() -> None:
    known = {
        "num_hidden_layers": 4,
        "layer_types": ["a", "b", "c", "d"],
        "eos_token_id": [1, 2, 3, 4],
        "mlp_only_layers": [],
        "num_kv_shared_layers": 0,
    }
    # The file leaves the list to a rule, which would give other types to fewer layers.
    found = cut_config({"num_hidden_layers": 4, "eos_token_id": [1, 2, 3, 4]}, known, [1, 2])
    assert found == {
        "num_hidden_layers": 2,
        "layer_types": ["a", "d"],
        "eos_token_id": [1, 2, 3, 4],
    }
    assert cut_config({"n_layer": 4}, {"num_hidden_layers": 4}, [0]) == {"n_layer": 3}
    nested = {"model_type": "x", "text_config": {"num_hidden_layers": 4, "a": 1}}
    assert cut_config(nested, {"num_hidden_layers": 4}, [0])["text_config"] == {
        "num_hidden_layers": 3,
        "a": 1,
    }


@pytest.mark.parametrize(
    "known", [{"first_k_dense_replace": 1}, {"mlp_only_layers": [0]}, {"layer_groups": [1, 2, 3]}]
)
def test_layers_told_apart_by_their_place_are_refused(known: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(known))}.*place|{next(iter(known))}.*way"):
        cut_config({}, {"num_hidden_layers": 4, **known}, [1])
