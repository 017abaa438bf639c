"""Activation checkpointing really takes effect."""

from typing import Any

import pytest
import torch
from making import llama_config

from bigft.models.savers import save_activations

CPU = torch.device("cpu")


def _model(family: str) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    if family == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64, n_positions=16)
    else:
        config = llama_config(vocab_size=64)
    return AutoModelForCausalLM.from_config(config).train()


def _layers(model: Any) -> Any:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def _step(model: Any) -> tuple[float, torch.Tensor, list[int]]:
    counts = [0, 0]

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            counts[index] += 1

        return hook

    for index, layer in enumerate(_layers(model)):
        layer.mlp.register_forward_pre_hook(count(index))
    torch.manual_seed(1)  # of dropout
    logits = model(input_ids=torch.arange(8)[None], use_cache=False).logits
    loss = logits.square().mean()
    loss.backward()
    gradient = _layers(model)[0].mlp
    weight = next(gradient.parameters()).grad
    return loss.item(), weight, counts


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_layer_runs_twice_only_when_asked(family):
    kept, recomputed, offloaded = (_model(family) for _ in range(3))
    assert save_activations(kept, "none", CPU) is None
    assert save_activations(recomputed, "full", CPU) is None
    note = save_activations(offloaded, "full_cpu_offload", CPU)
    assert "host memory already" in note
    loss, gradient, counts = _step(kept)
    assert counts == [1, 1]
    for model in (recomputed, offloaded):
        again, same_gradient, counts = _step(model)
        assert counts == [2, 2]
        # Dropout of GPT-2 included: the second pass draws what the first one drew.
        assert again == loss
        torch.testing.assert_close(same_gradient, gradient, rtol=1e-6, atol=1e-8)


def test_nothing_is_recomputed_in_evaluation():
    model = _model("llama")
    save_activations(model, "full", CPU)
    assert _step(model.eval())[2] == [1, 1]


def test_model_that_cannot_says_so():
    model = _model("llama")
    type(model).supports_gradient_checkpointing, before = False, True
    try:
        assert "cannot recompute" in save_activations(model, "full", CPU)
        assert _step(model)[2] == [1, 1]
    finally:
        type(model).supports_gradient_checkpointing = before
