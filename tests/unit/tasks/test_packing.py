import pytest
import torch

from bigft.errors import ConfigError
from bigft.tasks.causal_lm import CausalLM
from bigft.tasks.packing import check_packing

SMALL = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}


def _build(name: str, **values: object) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**SMALL, **values}))
    return model.eval()


def _check(model: torch.nn.Module, num_sequences: int = 2) -> None:
    check_packing(
        CausalLM(), model, num_sequences=num_sequences, num_tokens=64, device=torch.device("cpu")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_keep_examples_apart_pass(dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    _check(_build("llama", **sizes).to(dtype))
    experts = {"num_experts": 4, "num_local_experts": 4}
    _check(_build("mixtral", **sizes, **experts).to(dtype))
    _check(_build("gpt2", n_embd=32, n_layer=2, n_head=2).to(dtype))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("opt", {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "word_embed_proj_dim": 32}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    ],
)  # fmt: skip
def test_models_that_ignore_positions_are_refused(name: str, sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="--packing none"):
        _check(_build(name, **sizes))
