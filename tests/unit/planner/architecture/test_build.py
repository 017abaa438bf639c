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
