"""StableLM: Llama with layer norms, a quarter of each head rotated."""

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import (
    LLAMA_NORMS,
    attention,
    finish_gated,
    gated_mlp,
    read_rotary_dim,
    read_shape,
)
from bigft.planner.architecture.parts import norm, norms
from bigft.planner.architecture.weights import Architecture


def _stablelm(case: Case) -> Architecture:
    shape = read_shape(case)
    layer = attention(shape, bias=case.flag("use_qkv_bias"))
    if case.flag("qk_layernorm"):
        for name, count in (("q", shape.heads), ("k", shape.key_value_heads)):
            names = [f"self_attn.{name}_layernorm.norms.{head}" for head in range(count)]
            layer += norms(names, shape.head_dim)
    last = LLAMA_NORMS[:1] if case.flag("use_parallel_residual") else LLAMA_NORMS
    layer += [
        *gated_mlp(shape.hidden, shape.inner),
        *norms(last, shape.hidden, bias=True),
    ]
    return finish_gated(
        case,
        "StableLm",
        shape,
        [shape.block(layer)] * case.number("num_hidden_layers"),
        final=norm("norm", shape.hidden, bias=True),
        rotary_dim=read_rotary_dim(case, shape.head_dim, 0.25),
    )


FAMILIES = {
    "stablelm": Family(
        DECODER_TASKS,
        _stablelm,
        {
            "vocab_size": 50304,
            "hidden_size": 2560,
            "intermediate_size": 6912,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "use_qkv_bias": False,
            "qk_layernorm": False,
            "use_parallel_residual": False,
            "tie_word_embeddings": False,
        },
        ignored=("head_dim",),
    ),
}
