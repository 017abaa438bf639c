"""Qwen2, Qwen3, and their mixtures of experts."""

from collections.abc import Sequence
from dataclasses import replace

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import (
    LLAMA_NORMS,
    Shape,
    attention,
    experts,
    finish_gated,
    gated_mlp,
    head_norms,
    read_shape,
    read_windows,
    repeat_window,
)
from bigft.planner.architecture.parts import linear, norms
from bigft.planner.architecture.weights import Architecture, Block, Weight


def _qwen2(case: Case) -> Architecture:
    shape = read_shape(case)
    return _build_dense(case, "Qwen2", shape, attention(shape, bias=True))


def _qwen3(case: Case) -> Architecture:
    shape = read_shape(case)
    bias = case.flag("attention_bias")
    parts = [*attention(shape, bias=bias, output_bias=bias), *head_norms(shape)]
    return _build_dense(case, "Qwen3", shape, parts)


def _build_dense(
    case: Case, class_stem: str, shape: Shape, attention_parts: Sequence[Weight]
) -> Architecture:
    layer = [
        *attention_parts,
        *gated_mlp(shape.hidden, shape.inner),
        *norms(LLAMA_NORMS, shape.hidden),
    ]
    first, has_windows = case.number("max_window_layers"), case.flag("use_sliding_window")
    windows = read_windows(case, lambda number: has_windows and number >= first)
    blocks = [shape.block(layer, window=window if has_windows else None) for window in windows]
    return finish_gated(case, class_stem, shape, blocks)


def _qwen2_moe(case: Case) -> Architecture:
    shape = read_shape(case)
    shared = case.number("shared_expert_intermediate_size")
    count, inner = case.number("num_experts"), case.number("moe_intermediate_size")
    sparse = [
        *linear("mlp.gate", shape.hidden, count),
        *experts(count, shape.hidden, inner),
        *gated_mlp(shape.hidden, shared, name="mlp.shared_expert"),
        *linear("mlp.shared_expert_gate", shape.hidden, 1),
    ]
    parts = attention(shape, bias=case.flag("qkv_bias"))
    first, has_windows = case.number("max_window_layers"), case.flag("use_sliding_window")
    windows = read_windows(case, lambda number: has_windows and number % 2 == 0 and number < first)
    windows = [window if has_windows else None for window in windows]
    blocks = _mix(case, shape, parts, sparse, windows, shared)
    return finish_gated(case, "Qwen2Moe", shape, blocks)


def _qwen3_moe(case: Case) -> Architecture:
    shape = read_shape(case)
    count, inner = case.number("num_experts"), case.number("moe_intermediate_size")
    sparse = [
        *experts(count, shape.hidden, inner),
        *linear("mlp.gate", shape.hidden, count),
    ]
    bias = case.flag("attention_bias")
    parts = [*attention(shape, bias=bias, output_bias=bias), *head_norms(shape)]
    windows = [
        window if case.flag("use_sliding_window") else None for window in repeat_window(case)
    ]
    return finish_gated(case, "Qwen3Moe", shape, _mix(case, shape, parts, sparse, windows, 0))


def _mix(
    case: Case,
    shape: Shape,
    attention_parts: Sequence[Weight],
    sparse: Sequence[Weight],
    windows: Sequence[int | None],
    shared: int,
) -> list[Block]:
    """Alternate layers of experts and plain ones, as the config says."""
    step, plain = case.number("decoder_sparse_step"), case.values["mlp_only_layers"] or ()
    count = case.number("num_experts")
    last = norms(LLAMA_NORMS, shape.hidden)
    dense = [*attention_parts, *gated_mlp(shape.hidden, shape.inner), *last]
    blocks = []
    for number, window in enumerate(windows):
        if number in plain or count == 0 or (number + 1) % step != 0:
            blocks.append(shape.block(dense, window=window))
            continue
        block = shape.block([*attention_parts, *sparse, *last], window=window)
        block = replace(
            block,
            inner=case.number("moe_intermediate_size"),
            experts=count,
            experts_per_token=case.number("num_experts_per_tok"),
            shared_inner=shared,
        )
        blocks.append(block)
    return blocks


_DENSE = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}

FAMILIES = {
    "qwen2": Family(DECODER_TASKS, _qwen2, _DENSE),
    "qwen3": Family(DECODER_TASKS, _qwen3, {**_DENSE, "head_dim": 128, "attention_bias": False}),
    "qwen2_moe": Family(
        DECODER_TASKS,
        _qwen2_moe,
        {
            **_DENSE,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts_per_tok": 4,
            "num_experts": 60,
            "mlp_only_layers": None,
            "qkv_bias": True,
        },
    ),
    "qwen3_moe": Family(
        DECODER_TASKS,
        _qwen3_moe,
        {
            **_DENSE,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 24,
            "num_key_value_heads": 4,
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "num_experts": 128,
            "mlp_only_layers": None,
        },
        aliases={"num_local_experts": "num_experts"},
    ),
}
