"""StarCoder 2: grouped heads and rotary embeddings around a plain MLP, with biases."""

from dataclasses import replace

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import (
    LLAMA_NORMS,
    attention,
    finish_gated,
    read_shape,
    repeat_window,
)
from bigft.planner.architecture.parts import linear, norm, norms
from bigft.planner.architecture.weights import Architecture


def _starcoder2(case: Case) -> Architecture:
    shape, bias = read_shape(case), case.flag("use_bias")
    layer = [
        *attention(shape, bias=bias, output_bias=bias),
        *linear("mlp.c_fc", shape.hidden, shape.inner, bias=bias),
        *linear("mlp.c_proj", shape.inner, shape.hidden, bias=bias),
        *norms(LLAMA_NORMS, shape.hidden, bias=True),
    ]
    blocks = [
        replace(shape.block(layer, window=window), is_gated=False) for window in repeat_window(case)
    ]
    final = norm("norm", shape.hidden, bias=True)
    return finish_gated(case, "Starcoder2", shape, blocks, final=final)


FAMILIES = {
    "starcoder2": Family(
        DECODER_TASKS,
        _starcoder2,
        {
            "vocab_size": 49152,
            "hidden_size": 3072,
            "intermediate_size": 12288,
            "num_hidden_layers": 30,
            "num_attention_heads": 24,
            "num_key_value_heads": 2,
            "sliding_window": None,
            "use_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}
