"""Models of several families on two real ranks under ZeRO-3: loaded, grown, trained, exported."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import VOCAB, llama_config, make_model, make_tokenizer
from model_runs import make_pretrained
from safetensors.torch import load_file, save_file
from small_runs import ds_config, read_losses, small_settings

pytestmark = pytest.mark.distributed

ZERO3 = ds_config("zero3")
FP32 = {"ds.bf16.enabled": "false"}
# Every parameter is partitioned for real: the default keeps small ones whole on each rank.
SMALL_STAY_NOT = {"ds.zero_optimization.stage3_param_persistence_threshold": 0}


def _settings(shared: Path, model: Path, **changes: Any) -> dict[str, Any]:
    return small_settings(shared, **{"model": model, "max_steps": 3, **changes})


# --- Families ---


SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        n_embd=48,
        n_layer=2,
        n_head=4,
        vocab_size=VOCAB,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
    )


def _qwen3() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**SHAPE, intermediate_size=100, head_dim=16, tie_word_embeddings=False)


def _gemma3() -> Any:
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        **SHAPE,
        intermediate_size=100,
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
    )


def _mixtral() -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(**SHAPE, intermediate_size=40, num_local_experts=4, num_experts_per_tok=2)


FAMILIES = {"gpt2": _gpt2, "qwen3": _qwen3, "gemma3": _gemma3, "mixtral": _mixtral}


@pytest.mark.parametrize("family", FAMILIES)
def test_family_trains_and_its_export_equals_the_engine(two_ranks, shared_folder, tmp_path, family):
    import runs_check

    model = make_pretrained(tmp_path / "model", FAMILIES[family]())
    settings = _settings(shared_folder, model, **FP32, **SMALL_STAY_NOT)
    run = str(tmp_path / "run")
    two_ranks.run("runs:train", settings, run, ZERO3)
    losses = read_losses(tmp_path / "run")
    assert losses[-1] < losses[0]
    engine = two_ranks.run("runs_check:engine_logits", settings, run, ZERO3)[0]
    # Loading checks that no key is missing or unexpected.
    plain = runs_check.plain_logits(tmp_path / "run/model")
    assert plain.dtype == torch.float32
    assert not torch.equal(plain, runs_check.plain_logits(model)), "the weights did not move"
    np.testing.assert_allclose(engine, plain.numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_weights_are_partitioned_and_equal_the_files(
    two_ranks, shared_folder, tmp_path, family
):
    from transformers import AutoModelForCausalLM

    model = make_pretrained(tmp_path / "model", FAMILIES[family]())
    settings = _settings(shared_folder, model, **FP32, **SMALL_STAY_NOT)
    found = two_ranks.run("model_runs:load", settings, str(tmp_path / "run"), ZERO3)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for rank in found:
        assert rank["whole"] == []
        assert rank["count"] == sum(p.numel() for p in plain.parameters())
        assert rank["values"].keys() == dict(plain.named_parameters()).keys()
        for name, parameter in plain.named_parameters():
            np.testing.assert_array_equal(rank["values"][name], parameter.detach().numpy())


# --- Weights that do not fit ---


def _change_weights(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_weights_that_do_not_fit_are_all_named(two_ranks, shared_folder, tmp_path):
    model = make_model(tmp_path / "model")

    def change(weights: dict[str, torch.Tensor]) -> None:
        del weights["model.layers.0.self_attn.q_proj.weight"]
        weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(3, 3)
        weights["model.norm.weight"] = torch.ones(47)

    _change_weights(model, change)
    failed = two_ranks.run(
        "runs:try_train", _settings(shared_folder, model), str(tmp_path / "run"), ZERO3
    )
    for kind, text, code in failed:
        assert (kind, code) == ("CheckpointError", 5)
        assert "1 missing from the files (model.layers.0.self_attn.q_proj.weight)" in text
        assert "1 in the files but not in the model (model.layers.7.mlp.up_proj.weight)" in text
        assert "model.norm.weight: file (47,), model (48,)" in text


def test_experts_that_the_files_lack_are_named(two_ranks, shared_folder, tmp_path):
    """Files name experts one by one, the model holds them fused: also then nothing may lack."""
    model = make_pretrained(tmp_path / "model", _mixtral())
    names = load_file(model / "model.safetensors")
    lost = [name for name in names if "layers.1" in name and "expert" in name]
    kept = [name for name in names if "layers.0" in name and "expert" in name]
    assert lost
    assert kept

    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [*lost, "model.layers.1.input_layernorm.weight"]:
            del weights[name]

    _change_weights(model, change)
    kind, text, code = two_ranks.run(
        "runs:try_train", _settings(shared_folder, model), str(tmp_path / "run"), ZERO3
    )[1]
    assert (kind, code) == ("CheckpointError", 5)
    assert "model.layers.1.input_layernorm.weight" in text
    assert "model.layers.1.mlp.experts" in text
    assert "model.layers.0" not in text


def test_tied_model_without_its_one_embedding_is_refused(two_ranks, shared_folder, tmp_path):
    model = make_model(tmp_path / "model", tie_word_embeddings=True)
    _change_weights(model, lambda weights: weights.pop("model.embed_tokens.weight"))
    kind, text, code = two_ranks.run(
        "runs:try_train", _settings(shared_folder, model), str(tmp_path / "run"), ZERO3
    )[0]
    assert (kind, code) == ("CheckpointError", 5)
    assert "model.embed_tokens.weight" in text


def test_index_whose_shards_are_gone_is_refused(two_ranks, shared_folder, tmp_path):
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}})
    )
    kind, text, code = two_ranks.run(
        "runs:try_train", _settings(shared_folder, model), str(tmp_path / "run"), ZERO3
    )[0]
    assert (kind, code) == ("CheckpointError", 5)
    assert "model-00001-of-00002.safetensors" in text


# --- Vocabulary ---


@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary_grows_by_rows_of_the_mean(two_ranks, shared_folder, tmp_path, tied):
    import runs_check
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = make_tokenizer(tmp_path / "model")
    size = len(tokenizer)
    model = make_model(tmp_path / "model", tie_word_embeddings=tied, vocab_size=size)
    tokenizer.add_tokens(["<tool>", *(f"<added_{number}>" for number in range(200))])
    tokenizer.save_pretrained(model)
    grown = -(-(size + 201) // 64) * 64
    old = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    settings = _settings(shared_folder, model, **FP32, **SMALL_STAY_NOT)
    for found in two_ranks.run("model_runs:load", settings, str(tmp_path / "run"), ZERO3):
        assert found["whole"] == []
        assert found["tied"] is tied
        assert found["vocab_size"] == grown
        assert f"vocabulary grown from {size} to {grown}" in found["notes"][0]
        tables = ["model.embed_tokens.weight"] + ([] if tied else ["lm_head.weight"])
        assert ("lm_head.weight" in found["values"]) is not tied
        for name in tables:
            before = dict(old.named_parameters())[name].detach()
            after = torch.from_numpy(found["values"][name])
            assert torch.equal(after[:size], before)
            torch.testing.assert_close(after[size:], before.mean(0).expand(grown - size, -1))
    two_ranks.run("runs:train", settings, str(tmp_path / "run"), ZERO3)
    engine = two_ranks.run("runs_check:engine_logits", settings, str(tmp_path / "run"), ZERO3)[0]
    plain = runs_check.plain_logits(tmp_path / "run/model")
    assert plain.shape[-1] == grown
    np.testing.assert_allclose(engine, plain.numpy(), rtol=2e-5, atol=2e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "run/model").encode("<tool>") == [size]


# --- From scratch ---


@pytest.mark.parametrize("config", ["zero3", "zero2"])
def test_random_weights_follow_the_models_own_rule(two_ranks, shared_folder, tmp_path, config):
    """The initializer of the architecture runs, not torch's; every rank has the same weights."""
    folder = tmp_path / "scratch"
    llama_config(initializer_range=0.05).save_pretrained(folder)
    make_tokenizer(folder)
    settings = _settings(shared_folder, folder, **FP32)
    if config == "zero3":
        settings |= SMALL_STAY_NOT
    one, two = two_ranks.run("model_runs:load", settings, str(tmp_path / "run"), ds_config(config))
    for name, value in one["values"].items():
        np.testing.assert_array_equal(value, two["values"][name])
        if "norm" in name:
            assert (value == 1).all()
        else:
            assert 0.045 < value.std() < 0.055, name
            assert abs(value.mean()) < 0.005


@pytest.mark.parametrize("by", ["folder", "file"])
def test_model_from_scratch_brings_no_tokenizer(two_ranks, shared_folder, tmp_path, by):
    """A bare config trains with the built-in tokenizer, and the export is complete."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "scratch"
    llama_config(vocab_size=100).save_pretrained(folder)
    source = folder if by == "folder" else folder / "config.json"
    settings = _settings(shared_folder, source, **FP32)
    results = two_ranks.run("runs:train", settings, str(tmp_path / "run"), ZERO3, timeout=400)
    assert "random" in results[0]["said"]
    losses = read_losses(tmp_path / "run")
    assert losses[-1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert model.config.vocab_size == 4096
    assert len(tokenizer) <= 4096
    assert model.config.eos_token_id == tokenizer.eos_token_id


# --- Mixtures of experts ---


def test_ranks_that_route_differently_do_not_wait_for_ever(two_ranks):
    """Each rank runs another expert of a `ModuleList`: without leaf modules this deadlocks."""
    losses = two_ranks.run("model_runs:train_routed", 6, timeout=60)
    for rank in losses:
        assert rank[4] < rank[0], "the same expert, four steps later"


# --- Activation checkpointing ---


def test_recomputing_activations_changes_no_loss(two_ranks, shared_folder, tmp_path):
    model = make_pretrained(tmp_path / "model", _mixtral())
    losses = {}
    for mode in ("none", "full", "full_cpu_offload"):
        settings = _settings(
            shared_folder, model, activation_checkpointing=mode, **FP32, **SMALL_STAY_NOT
        )
        two_ranks.run("runs:train", settings, str(tmp_path / mode), ZERO3)
        losses[mode] = read_losses(tmp_path / mode)
    assert losses["none"][-1] < losses["none"][0]
    np.testing.assert_allclose(losses["full"], losses["none"], rtol=1e-6)
    np.testing.assert_allclose(losses["full_cpu_offload"], losses["none"], rtol=1e-6)


# --- Refusals ---


def test_fp16_is_refused_where_it_cannot_be_computed(two_ranks, shared_folder, tmp_path):
    settings = _settings(shared_folder, shared_folder / "model") | {
        "ds.bf16.enabled": "false",
        "ds.fp16.enabled": "true",
    }
    arguments = (settings, str(tmp_path / "run"), ZERO3)
    kind, text, code = two_ranks.run("model_runs:try_train_without_fp16", *arguments)[0]
    assert (kind, code) == ("ConfigError", 2)
    assert "--ds.bf16.enabled=true" in text


@pytest.mark.parametrize("name", ["flash_attention_2", "no_such_attention"])
def test_attention_that_cannot_run_is_refused(two_ranks, shared_folder, tmp_path, name):
    settings = _settings(shared_folder, shared_folder / "model") | {"model.attention": name}
    kind, text, code = two_ranks.run("runs:try_train", settings, str(tmp_path / "run"), ZERO3)[0]
    assert (kind, code) == ("ConfigError", 2)
    assert f"--model.attention {name}" in text
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_tracker_that_is_not_installed_ends_all_ranks(two_ranks, shared_folder, tmp_path):
    """Only rank 0 opens the trackers; the others must not wait for it."""
    settings = _settings(shared_folder, shared_folder / "model")
    (tmp_path / "recipe.yaml").write_text("monitor: {sinks: [wandb]}")
    settings["recipe"] = tmp_path / "recipe.yaml"
    for kind, text, code in two_ranks.run(
        "runs:try_train", settings, str(tmp_path / "run"), ZERO3, timeout=60
    ):
        assert (kind, code) == ("ConfigError", 2)
        assert "pip install 'bigft[wandb]'" in text
