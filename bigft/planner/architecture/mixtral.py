"""Mixtral: Mistral with experts in the place of every MLP."""

from dataclasses import replace

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import (
    LLAMA_NORMS,
    attention,
    experts,
    finish_gated,
    read_shape,
    repeat_window,
)
from bigft.planner.architecture.parts import linear, norms
from bigft.planner.architecture.weights import Architecture


def _mixtral(case: Case) -> Architecture:
    shape = read_shape(case)
    count = case.number("num_local_experts")
    layer = [
        *attention(shape),
        *linear("mlp.gate", shape.hidden, count),
        *experts(count, shape.hidden, shape.inner),
        *norms(LLAMA_NORMS, shape.hidden),
    ]
    each = case.number("num_experts_per_tok")
    blocks = [
        replace(shape.block(layer, window=window), experts=count, experts_per_token=each)
        for window in repeat_window(case)
    ]
    return finish_gated(case, "Mixtral", shape, blocks)


FAMILIES = {
    "mixtral": Family(
        DECODER_TASKS,
        _mixtral,
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "sliding_window": None,
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "tie_word_embeddings": False,
        },
        aliases={"num_experts": "num_local_experts"},
    ),
}
