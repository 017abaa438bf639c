"""Llama, and those who changed only numbers or biases: Mistral, Granite, SmolLM3."""

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import (
    LLAMA_NORMS,
    attention,
    finish_gated,
    gated_mlp,
    read_shape,
    read_windows,
    repeat_window,
)
from bigft.planner.architecture.parts import norms
from bigft.planner.architecture.weights import Architecture


def _build(case: Case, class_stem: str, windows: list[int | None]) -> Architecture:
    shape = read_shape(case)
    bias = case.flag("attention_bias")
    layer = [
        *attention(shape, bias=bias, output_bias=bias),
        *gated_mlp(shape.hidden, shape.inner, bias=case.flag("mlp_bias")),
        *norms(LLAMA_NORMS, shape.hidden),
    ]
    blocks = [shape.block(layer, window=window) for window in windows]
    return finish_gated(case, class_stem, shape, blocks)


def _llama(case: Case) -> Architecture:
    return _build(case, "Llama", [None] * case.number("num_hidden_layers"))


def _granite(case: Case) -> Architecture:
    return _build(case, "Granite", [None] * case.number("num_hidden_layers"))


def _mistral(case: Case) -> Architecture:
    return _build(case, "Mistral", repeat_window(case))


def _smollm3(case: Case) -> Architecture:
    interval = case.number("no_rope_layer_interval")
    given = case.values["no_rope_layers"]

    def is_sliding(number: int) -> bool:
        has_rotary = given[number] if given is not None else (number + 1) % interval != 0
        return case.flag("use_sliding_window") and not has_rotary

    return _build(case, "SmolLM3", read_windows(case, is_sliding))


_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}

FAMILIES = {
    "llama": Family(DECODER_TASKS, _llama, _LLAMA),
    "granite": Family(("causal_lm",), _granite, _LLAMA),
    "mistral": Family(
        DECODER_TASKS,
        _mistral,
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
        },
        ignored=("attention_bias", "mlp_bias"),
    ),
    "smollm3": Family(
        DECODER_TASKS,
        _smollm3,
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
        },
    ),
}
