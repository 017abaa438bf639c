"""Every weight that is written down is one that transformers builds, and none is left out."""

import pytest
from skeletons import find_skeleton

from bigft.planner.architecture.build import FAMILIES, build_architecture
from bigft.planner.architecture.case import UnknownArchitectureError

TASKS = ("causal_lm", "seq2seq", "masked_lm", "classification", "regression")

# Odd sizes: two that are equal by chance would hide a mistake.
GROUPED = {
    "vocab_size": 111,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MANY_EXPERTS = {
    **GROUPED,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 22,
    "shared_expert_intermediate_size": 26,
}
GPT = {"vocab_size": 111, "n_embd": 48, "n_head": 6, "n_layer": 2, "n_positions": 31}
BERT = {
    "vocab_size": 111,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 31,
}
MODERN = {**BERT, "num_hidden_layers": 4, "pad_token_id": 0, "sep_token_id": 1, "cls_token_id": 2}
T5 = {"vocab_size": 111, "d_model": 48, "d_kv": 7, "d_ff": 70, "num_layers": 2, "num_heads": 6}

BART = {
    "vocab_size": 111,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 70,
    "decoder_ffn_dim": 71,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 31,
}
OPT = {
    "vocab_size": 111,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "ffn_dim": 70,
    "max_position_embeddings": 31,
    "word_embed_proj_dim": 48,
}
BLOOM = {"vocab_size": 111, "hidden_size": 48, "n_layer": 2, "n_head": 6}
FALCON = {
    "vocab_size": 111,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
}
LATENT = {
    **GROUPED,
    "num_key_value_heads": 6,
    "q_lora_rank": 11,
    "kv_lora_rank": 13,
    "qk_nope_head_dim": 9,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "moe_intermediate_size": 22,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
DEBERTA_V3 = {
    **BERT,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
}

TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
BIASED = {"attention_bias": True, "mlp_bias": True}

CASES = {
    "llama": [
        GROUPED,
        {**GROUPED, **TIED, **BIASED},
        {**GROUPED, "head_dim": 10},
        {**GROUPED, "num_key_value_heads": None},
    ],
    "mistral": [GROUPED, {**GROUPED, **TIED, **BIASED, "head_dim": 10}],
    "granite": [{**GROUPED, **TIED}, {**GROUPED, **UNTIED, **BIASED}],
    "smollm3": [GROUPED, {**GROUPED, **UNTIED, **BIASED}],
    "qwen2": [GROUPED, {**GROUPED, **TIED}],
    "qwen3": [GROUPED, {**GROUPED, **TIED, **BIASED, "head_dim": 10}],
    "qwen2_moe": [
        MANY_EXPERTS,
        {**MANY_EXPERTS, **TIED, "qkv_bias": False, "decoder_sparse_step": 2},
        {**MANY_EXPERTS, "mlp_only_layers": [1]},
    ],
    "qwen3_moe": [
        {**MANY_EXPERTS, "head_dim": 10},
        {**MANY_EXPERTS, **TIED, **BIASED, "mlp_only_layers": [0], "decoder_sparse_step": 2},
    ],
    "mixtral": [
        {**GROUPED, "num_local_experts": 5},
        {**GROUPED, **TIED, "num_local_experts": 3, "head_dim": 10},
    ],
    "gemma": [GROUPED, {**GROUPED, **UNTIED, **BIASED, "head_dim": 10}],
    "gemma2": [GROUPED, {**GROUPED, **UNTIED, **BIASED, "head_dim": 10}],
    "gemma3_text": [
        {**GROUPED, "num_hidden_layers": 7},
        {**GROUPED, **UNTIED, **BIASED, "head_dim": 10, "sliding_window_pattern": 2},
    ],
    "phi": [
        GROUPED,
        {**GROUPED, **TIED, "qk_layernorm": True, "partial_rotary_factor": 0.75},
    ],
    "phi3": [
        {**GROUPED, "bos_token_id": 1, "sliding_window": 9},
        {**GROUPED, **TIED, "partial_rotary_factor": 0.5, "head_dim": 8},
    ],
    "olmo": [GROUPED, {**GROUPED, **TIED, **BIASED}],
    "olmo2": [GROUPED, {**GROUPED, **TIED, **BIASED}],
    "olmoe": [MANY_EXPERTS, {**MANY_EXPERTS, **TIED, **BIASED}],
    "deepseek_v2": [LATENT, {**LATENT, **TIED, **BIASED, "q_lora_rank": None}],
    "deepseek_v3": [LATENT, {**LATENT, **TIED, **BIASED, "q_lora_rank": None}],
    "stablelm": [
        GROUPED,
        {**GROUPED, **TIED, "use_qkv_bias": True, "qk_layernorm": True},
        {**GROUPED, "use_parallel_residual": True, "partial_rotary_factor": 0.75},
    ],
    "starcoder2": [GROUPED, {**GROUPED, **UNTIED, "use_bias": False, "sliding_window": 9}],
    "cohere": [GROUPED, {**GROUPED, **UNTIED, **BIASED, "use_qk_norm": True}],
    "gptj": [{**GPT, "rotary_dim": 4}, {**GPT, **TIED, "rotary_dim": 6, "n_inner": 71}],
    "gpt_neox": [BERT, {**BERT, **TIED, "attention_bias": False, "rotary_pct": 0.5}],
    "opt": [
        OPT,
        {**OPT, **UNTIED, "word_embed_proj_dim": 20, "do_layer_norm_before": False},
        {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False},
    ],
    "bloom": [BLOOM, {**BLOOM, **UNTIED}],
    "falcon": [
        FALCON,
        {**FALCON, "multi_query": False, "alibi": True, "bias": True, "parallel_attn": False},
        {**FALCON, **UNTIED, "new_decoder_architecture": True, "num_kv_heads": 2},
        {**FALCON, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 71},
    ],
    "distilbert": [
        {"vocab_size": 111, "dim": 48, "hidden_dim": 70, "n_layers": 2, "n_heads": 6},
        {**UNTIED, "vocab_size": 111, "hidden_size": 48, "hidden_dim": 70, "n_layers": 2},
    ],
    "albert": [
        {**BERT, "embedding_size": 20, "num_hidden_layers": 5},
        {**BERT, **UNTIED, "embedding_size": 20, "num_hidden_groups": 2, "inner_group_num": 2},
    ],
    "deberta-v2": [
        DEBERTA_V3,
        {**DEBERTA_V3, **UNTIED, "conv_kernel_size": 3, "conv_groups": 2, "pooler_hidden_size": 48},
        {**DEBERTA_V3, "share_att_key": False, "position_buckets": -1, "embedding_size": 20},
        {**BERT, "type_vocab_size": 3},
    ],
    "gpt2": [GPT, {**GPT, **UNTIED, "n_inner": 71}],
    "bert": [BERT, {**BERT, **UNTIED, "type_vocab_size": 5}],
    "roberta": [BERT, {**BERT, **UNTIED}],
    "xlm-roberta": [BERT, {**BERT, **UNTIED}],
    "electra": [{**BERT, "embedding_size": 20}, {**BERT, **UNTIED, "embedding_size": 48}],
    "modernbert": [
        MODERN,
        {**MODERN, **UNTIED, **BIASED, "norm_bias": True, "classifier_bias": True},
        {**MODERN, "decoder_bias": False, "global_attn_every_n_layers": 2},
    ],
    "t5": [
        T5,
        {**T5, **UNTIED, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 3},
    ],
    "bart": [BART, {**BART, **UNTIED}],
    "mbart": [BART, {**BART, **UNTIED}],
    "mt5": [T5, {**T5, "feed_forward_proj": "relu", "num_decoder_layers": 1}],
}


def names_and_shapes(weights):
    return [(weight.name, weight.shape) for weight in weights]


def test_every_family_has_an_oracle():
    assert set(CASES) == set(FAMILIES)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        pytest.param(model_type, config, id=f"{model_type}-{number}")
        for model_type, configs in CASES.items()
        for number, config in enumerate(configs)
    ],
)
def test_weights_are_those_that_transformers_builds(model_type, config):
    config = {"model_type": model_type, **config}
    known = []
    for task in TASKS:
        expected = find_skeleton(config, task, num_labels=5)
        if expected is None:
            with pytest.raises(UnknownArchitectureError, match=task):
                build_architecture(config, task=task)
            continue
        known.append(task)
        found = build_architecture(config, task=task, num_labels=5)
        assert names_and_shapes(found.weights) == expected.weights
        assert names_and_shapes(found.buffers) == expected.buffers
        assert found.class_name == expected.class_name
        check_blocks(found)
    assert known


def check_blocks(found):
    """Hold blocks to the weights, and the numbers beside them to each other."""
    names = {weight.name for weight in found.weights}
    for block in found.blocks:
        assert {weight.name for weight in block.weights} <= names
        assert block.heads % block.key_value_heads == 0
        assert (block.experts > 0) == (block.experts_per_token > 0)
        # Its MLP: the middle's width is a side of some weight, once or gate and up together.
        widths = {side for weight in block.weights for side in weight.shape}
        assert widths & {block.inner, 2 * block.inner}
