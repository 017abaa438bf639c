"""DeepSeek-V2 and V3: latent attention, experts beside a shared one."""

from dataclasses import replace

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import (
    LLAMA_NORMS,
    Shape,
    experts,
    finish_gated,
    gated_mlp,
)
from bigft.planner.architecture.parts import linear, norm, norms
from bigft.planner.architecture.weights import Architecture, Block, Weight


def _deepseek_v2(case: Case) -> Architecture:
    return _build(case, "DeepseekV2", mlp_bias=case.flag("mlp_bias"))


def _deepseek_v3(case: Case) -> Architecture:
    # The balance of the experts is kept beside the gradient, by counting.
    count = case.number("n_routed_experts")
    buffers = [
        Weight(f"model.layers.{number}.mlp.gate.e_score_correction_bias", (count,))
        for number in range(case.number("first_k_dense_replace"), case.number("num_hidden_layers"))
    ]
    return _build(case, "DeepseekV3", buffers=buffers)


def _build(
    case: Case, class_stem: str, *, mlp_bias: bool = False, buffers: list[Weight] | None = None
) -> Architecture:
    heads = case.number("num_attention_heads")
    shape = Shape(
        hidden=case.number("hidden_size"),
        heads=heads,
        # Keys and values of all heads are made from one latent vector before the attention.
        key_value_heads=heads,
        head_dim=case.number("qk_nope_head_dim") + case.number("qk_rope_head_dim"),
        inner=case.number("intermediate_size"),
    )
    parts, last = _latent_attention(case, shape), norms(LLAMA_NORMS, shape.hidden)
    dense = shape.block([*parts, *gated_mlp(shape.hidden, shape.inner, bias=mlp_bias), *last])
    sparse = _sparse_block(case, shape, parts, last, mlp_bias)
    blocks = [
        replace(
            sparse if number >= case.number("first_k_dense_replace") else dense,
            value_head_dim=case.number("v_head_dim"),
        )
        for number in range(case.number("num_hidden_layers"))
    ]
    return finish_gated(
        case,
        class_stem,
        shape,
        blocks,
        rotary_dim=case.find_number("head_dim") or case.number("qk_rope_head_dim"),
        buffers=buffers or (),
    )


def _latent_attention(case: Case, shape: Shape) -> list[Weight]:
    bias, rank = case.flag("attention_bias"), case.find_number("q_lora_rank")
    latent, value_dim = case.number("kv_lora_rank"), case.number("v_head_dim")
    if rank is None:
        parts = linear("self_attn.q_proj", shape.hidden, shape.query_width)
    else:
        parts = [
            *linear("self_attn.q_a_proj", shape.hidden, rank, bias=bias),
            *norm("self_attn.q_a_layernorm", rank),
            *linear("self_attn.q_b_proj", rank, shape.query_width),
        ]
    expanded = shape.heads * (case.number("qk_nope_head_dim") + value_dim)
    return [
        *parts,
        *linear(
            "self_attn.kv_a_proj_with_mqa",
            shape.hidden,
            latent + case.number("qk_rope_head_dim"),
            bias=bias,
        ),
        *norm("self_attn.kv_a_layernorm", latent),
        *linear("self_attn.kv_b_proj", latent, expanded),
        *linear("self_attn.o_proj", shape.heads * value_dim, shape.hidden, bias=bias),
    ]


def _sparse_block(
    case: Case, shape: Shape, parts: list[Weight], last: list[Weight], mlp_bias: bool
) -> Block:
    count, inner = case.number("n_routed_experts"), case.number("moe_intermediate_size")
    shared = inner * case.number("n_shared_experts")
    layer = [
        *parts,
        *experts(count, shape.hidden, inner),
        *linear("mlp.gate", shape.hidden, count),
        *gated_mlp(shape.hidden, shared, name="mlp.shared_experts", bias=mlp_bias),
        *last,
    ]
    return replace(
        shape.block(layer),
        inner=inner,
        experts=count,
        experts_per_token=case.number("num_experts_per_tok"),
        shared_inner=shared,
    )


_LATENT = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "attention_bias": False,
    "tie_word_embeddings": False,
}

FAMILIES = {
    "deepseek_v2": Family(
        DECODER_TASKS,
        _deepseek_v2,
        {
            **_LATENT,
            "vocab_size": 102400,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "mlp_bias": False,
            "first_k_dense_replace": 0,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1407,
        },
        aliases={"num_experts": "n_routed_experts"},
        ignored=("head_dim",),
    ),
    "deepseek_v3": Family(
        DECODER_TASKS,
        _deepseek_v3,
        {
            **_LATENT,
            "vocab_size": 129280,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "first_k_dense_replace": 3,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
        },
        aliases={"num_local_experts": "n_routed_experts"},
    ),
}
