"""Every weight that is written down is one that transformers builds, and none is left out."""

import json
import timeit
from pathlib import Path

import pytest
from skeletons import describe, find_skeleton

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
ALBERT = {"embedding_size": 20, "num_hidden_layers": 5}
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
LONGER = {"factor": 4.0, "original_max_position_embeddings": 8}
LONG_ROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
SLIDING = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
BIASED = {"attention_bias": True, "mlp_bias": True}

CASES = {
    "llama": [
        GROUPED,
        {**GROUPED, **TIED, **BIASED},
        {**GROUPED, "head_dim": 10},
        {**GROUPED, "num_key_value_heads": None},
        {**GROUPED, "rope_scaling": {**LONGER, "rope_type": "linear"}},
        {**GROUPED, "rope_parameters": {**LONGER, "rope_type": "yarn", "rope_theta": 1e4}},
    ],
    "mistral": [GROUPED, {**GROUPED, **TIED, **BIASED, "head_dim": 10}],
    "granite": [{**GROUPED, **TIED}, {**GROUPED, **UNTIED, **BIASED}],
    "smollm3": [GROUPED, {**GROUPED, **UNTIED, **BIASED, **SLIDING, "no_rope_layer_interval": 2}],
    "qwen2": [GROUPED, {**GROUPED, **TIED}, {**GROUPED, **SLIDING}],
    "qwen3": [GROUPED, {**GROUPED, **TIED, **BIASED, **SLIDING, "head_dim": 10}],
    "qwen2_moe": [
        MANY_EXPERTS,
        {**MANY_EXPERTS, **TIED, "qkv_bias": False, "decoder_sparse_step": 2},
        {**MANY_EXPERTS, **SLIDING, "mlp_only_layers": [1]},
    ],
    "qwen3_moe": [
        {**MANY_EXPERTS, **SLIDING, "head_dim": 10},
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
        {**GROUPED, "use_bidirectional_attention": True, "sliding_window": 9},
    ],
    "phi": [
        GROUPED,
        {**GROUPED, **TIED, "qk_layernorm": True, "partial_rotary_factor": 0.75},
        {**GROUPED, "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 1e4}},
    ],
    "phi3": [
        {**GROUPED, "bos_token_id": 1, "sliding_window": 9},
        {**GROUPED, **TIED, "partial_rotary_factor": 0.5, "head_dim": 8},
        {**GROUPED, "rope_scaling": LONG_ROPE, "original_max_position_embeddings": 8},
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
    "bloom": [BLOOM, {**BLOOM, **UNTIED}, {**BLOOM, "hidden_size": 64, "n_embed": 48}],
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
        {**BERT, **ALBERT},
        {**BERT, **UNTIED, "embedding_size": 20, "num_hidden_groups": 2, "inner_group_num": 2},
    ],
    "deberta-v2": [
        DEBERTA_V3,
        {**DEBERTA_V3, **UNTIED, "conv_kernel_size": 3, "conv_groups": 2, "pooler_hidden_size": 48},
        {**DEBERTA_V3, "share_att_key": False, "position_buckets": -1, "embedding_size": 20},
        {**BERT, "type_vocab_size": 3},
    ],
    "gpt2": [GPT, {**GPT, **UNTIED, "n_inner": 71}, {**UNTIED, "hidden_size": 48, "n_head": 6}],
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


# With nothing but these keys a config is what transformers' config class makes of it.
NEEDED = {"deepseek_v2": {"num_experts_per_tok": 2}}


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
        check_windows(found, expected)
    assert known


def check_windows(found, expected):
    windows = [block.window for block in found.blocks]
    assert windows == (expected.windows or [None] * len(windows))


def check_blocks(found):
    """Hold the sizes beside the weights to the weights."""
    names = {weight.name for weight in found.weights}
    for block in found.blocks:
        assert {weight.name for weight in block.weights} <= names
        matrices = 3 if block.is_gated else 2
        assert count_mlp(block) == matrices * max(block.experts, 1) * block.hidden * block.inner
        assert (block.experts > 0) == (block.experts_per_token > 0)
        if block.value_head_dim is None:
            queries, keys = block.heads * block.head_dim, block.key_value_heads * block.head_dim
            times = 2 if block.has_cross_attention else 1
            assert count_attention(block) == times * block.hidden * 2 * (queries + keys)


def count_mlp(block):
    """Elements of the matrices that have the middle's width; its router and shared ones aside."""
    dims = 3 if block.experts else 2
    return sum(
        weight.numel
        for weight in block.weights
        if len(weight.shape) == dims and {block.inner, 2 * block.inner} & set(weight.shape)
    )


def count_attention(block):
    """Elements of the projections; what only some families have beside them aside."""
    return sum(
        weight.numel
        for weight in block.weights
        if "att" in weight.name.lower()
        and len(weight.shape) == 2
        and not any(word in weight.name for word in ("norm", "relative", "pos_"))
    )


@pytest.mark.parametrize("model_type", FAMILIES)
def test_keys_that_are_left_out_are_what_transformers_takes(model_type):
    config = {"model_type": model_type, **NEEDED.get(model_type, {})}
    task = FAMILIES[model_type].tasks[0]
    expected = find_skeleton(config, task)
    found = build_architecture(config, task=task)
    assert names_and_shapes(found.weights) == expected.weights
    assert names_and_shapes(found.buffers) == expected.buffers
    check_windows(found, expected)


GROWING = {
    "llama": {**GROUPED, **UNTIED},
    "gemma2": GROUPED,
    "phi": GROUPED,
    "gpt2": GPT,
    "opt": {**OPT, "word_embed_proj_dim": 20},
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "distilbert": CASES["distilbert"][0],
    "t5": T5,
    "bart": BART,
}


@pytest.mark.parametrize("model_type", GROWING)
def test_a_grown_vocabulary_is_one_that_transformers_resizes_to(model_type):
    import transformers

    task = {"t5": "seq2seq", "bart": "seq2seq", "distilbert": "masked_lm"}.get(
        model_type, "causal_lm"
    )
    names = {"seq2seq": "Seq2SeqLM", "masked_lm": "MaskedLM", "causal_lm": "CausalLM"}
    config = transformers.AutoConfig.for_model(model_type, **GROWING[model_type])
    auto_class = getattr(transformers, f"AutoModelFor{names[task]}")
    module = auto_class.from_config(config)
    module.resize_token_embeddings(113, pad_to_multiple_of=64, mean_resizing=False)
    expected = describe(module)
    found = build_architecture(
        {"model_type": model_type, **GROWING[model_type]}, task=task, vocabulary=128
    )
    assert found.vocabulary == found.head_outputs == 128
    assert names_and_shapes(found.weights) == expected.weights
    assert names_and_shapes(found.buffers) == expected.buffers


def test_a_t5_with_a_head_of_its_own_keeps_it(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSeq2SeqLM, T5Config

    config = {"model_type": "t5", **T5, "feed_forward_proj": "gated-gelu", **UNTIED}
    built = AutoModelForSeq2SeqLM.from_config(T5Config(**T5, feed_forward_proj="gated-gelu"))
    built.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = torch.ones(111, 48)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = describe(AutoModelForSeq2SeqLM.from_pretrained(tmp_path))
    found = build_architecture(config, task="seq2seq", has_weights=True)
    assert names_and_shapes(found.weights) == loaded.weights
    assert not found.is_tied
    assert build_architecture(config, task="seq2seq").is_tied


def block_of(config, number=0, **settings):
    return list(build_architecture(config, **settings).blocks)[number]


def test_blocks_tell_what_activations_follow():
    llama = block_of({"model_type": "llama", **GROUPED, "head_dim": 10})
    assert (llama.hidden, llama.heads, llama.key_value_heads, llama.head_dim) == (48, 6, 2, 10)
    assert (llama.inner, llama.is_gated, llama.experts) == (70, True, 0)
    plain = block_of({"model_type": "gpt2", **GPT})
    assert (plain.heads, plain.key_value_heads, plain.head_dim, plain.inner) == (6, 6, 8, 192)
    assert not plain.is_gated
    assert block_of({"model_type": "falcon", **FALCON}).key_value_heads == 1


def test_blocks_of_experts_tell_how_many_and_how_wide():
    config = {"model_type": "qwen2_moe", **MANY_EXPERTS, "mlp_only_layers": [1]}
    sparse, dense = block_of(config, 0), block_of(config, 1)
    assert (sparse.inner, sparse.experts, sparse.experts_per_token) == (22, 5, 2)
    assert sparse.shared_inner == 26
    assert (dense.inner, dense.experts, dense.shared_inner) == (70, 0, 0)
    latent = block_of({"model_type": "deepseek_v3", **LATENT}, 2)
    assert (latent.head_dim, latent.value_head_dim, latent.shared_inner) == (13, 7, 44)


def test_encoder_decoders_tell_both_stacks():
    config = {"model_type": "t5", **T5, "num_decoder_layers": 3}
    found = build_architecture(config, task="seq2seq")
    assert [(stack.kind, len(stack.blocks)) for stack in found.stacks] == [
        ("encoder", 2),
        ("decoder", 3),
    ]
    assert [block.has_cross_attention for block in found.blocks] == [False] * 2 + [True] * 3
    assert not any(block.is_gated for block in found.blocks)


def test_layers_that_share_weights_run_one_by_one_but_count_once():
    found = build_architecture({"model_type": "albert", **BERT, **ALBERT}, task="masked_lm")
    assert len(list(found.blocks)) == 5
    assert found.parameters < sum(block.numel for block in found.blocks)


def test_a_head_of_labels_is_never_tied():
    config = {"model_type": "llama", **GROUPED, **TIED}
    found = build_architecture(config, task="regression", num_labels=3)
    assert (found.head_outputs, found.is_tied, found.vocabulary) == (3, False, 111)
    assert build_architecture(config).is_tied


@pytest.mark.parametrize(
    ("config", "task", "said"),
    [
        ({"model_type": "mamba"}, "causal_lm", "not written down"),
        ({}, "causal_lm", "None"),
        ({"model_type": "gemma3", "text_config": GROUPED}, "causal_lm", "not written down"),
        ({"model_type": "llama", **GROUPED}, "seq2seq", "no model for seq2seq"),
        ({"model_type": "llama", **GROUPED, "hidden_size": "48"}, "causal_lm", "hidden_size"),
        ({"model_type": "llama", **GROUPED, "vocab_size": None}, "causal_lm", "vocab_size"),
        ({"model_type": "llama", **GROUPED, "num_attention_heads": 0}, "causal_lm", "add up"),
        ({"model_type": "gemma2", **GROUPED, "layer_types": 3}, "causal_lm", "add up"),
        ({"model_type": "gpt2", **GPT, "add_cross_attention": True}, "causal_lm", "cross"),
        ({"model_type": "bert", **BERT, "add_cross_attention": True}, "masked_lm", "cross"),
        ({"model_type": "deberta-v2", **BERT, "legacy": False}, "masked_lm", "legacy"),
        ({"model_type": "gemma2", **GROUPED, "layer_types": ["full_attention"]}, "causal_lm", "3"),
    ],
)
def test_what_is_not_known_is_said(config, task, said):
    with pytest.raises(UnknownArchitectureError, match=said) as caught:
        build_architecture(config, task=task)
    assert caught.value.model_type == str(config.get("model_type"))
    assert isinstance(caught.value, LookupError)


def test_the_largest_model_takes_milliseconds():
    config = json.loads((Path(__file__).parent / "published.json").read_text())
    largest = config["meta-llama/Llama-3.1-405B"]["config"]
    best = min(timeit.repeat(lambda: build_architecture(largest), number=1, repeat=5))
    assert best < 0.02
