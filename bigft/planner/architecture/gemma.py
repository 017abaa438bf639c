"""Gemma 1 to 3, text only: wide heads, scaled embeddings, later norms on both sides."""

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import (
    LLAMA_NORMS,
    Shape,
    attention,
    finish_gated,
    gated_mlp,
    head_norms,
    read_layer_types,
    read_shape,
    read_windows,
)
from bigft.planner.architecture.parts import norms
from bigft.planner.architecture.weights import Architecture, Weight

_SANDWICH_NORMS = (*LLAMA_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_SCALE = [Weight("model.embed_tokens.embed_scale", ())]


def _layer(case: Case, shape: Shape, names: tuple[str, ...], extra: list[Weight]) -> list[Weight]:
    bias = case.flag("attention_bias")
    return [
        *attention(shape, bias=bias, output_bias=bias),
        *extra,
        *gated_mlp(shape.hidden, shape.inner),
        *norms(names, shape.hidden),
    ]


def _gemma(case: Case) -> Architecture:
    shape = read_shape(case)
    block = shape.block(_layer(case, shape, LLAMA_NORMS, []))
    blocks = [block] * case.number("num_hidden_layers")
    return finish_gated(case, "Gemma", shape, blocks, buffers=_SCALE)


def _gemma2(case: Case) -> Architecture:
    shape = read_shape(case)
    layer = _layer(case, shape, _SANDWICH_NORMS, [])
    windows = read_windows(case, lambda number: number % 2 == 0)
    blocks = [shape.block(layer, window=window) for window in windows]
    return finish_gated(case, "Gemma2", shape, blocks, buffers=_SCALE)


def _gemma3(case: Case) -> Architecture:
    shape = read_shape(case)
    layer = _layer(case, shape, _SANDWICH_NORMS, head_norms(shape))
    every = case.number("sliding_window_pattern")
    kinds = read_layer_types(case, lambda number: (number + 1) % every != 0)
    windows = read_windows(case, lambda number: (number + 1) % every != 0)
    if case.flag("use_bidirectional_attention"):
        # The same reach, split between both sides.
        windows = [None if window is None else window // 2 + 1 for window in windows]
    return finish_gated(
        case,
        "Gemma3" if not case.has_labels else "Gemma3Text",
        shape,
        [shape.block(layer, window=window) for window in windows],
        rotary_kinds=[f"{kind}_" for kind in sorted(set(kinds))],
        buffers=_SCALE,
    )


_GEMMA = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
_GEMMA2 = {
    **_GEMMA,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
}

FAMILIES = {
    "gemma": Family(DECODER_TASKS, _gemma, _GEMMA),
    "gemma2": Family(DECODER_TASKS, _gemma2, _GEMMA2),
    "gemma3_text": Family(
        DECODER_TASKS, _gemma3, {**_GEMMA2, "vocab_size": 262208, "sliding_window_pattern": 6}
    ),
}
