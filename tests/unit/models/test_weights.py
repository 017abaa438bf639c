"""The weights on disk against the model in memory."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from making import llama_config, make_model
from safetensors.torch import load_file, save_file
from torch import nn

from bigft.errors import CheckpointError
from bigft.models.weights import check_names, check_values, read_headers


class Whole:
    """ZeRO below stage 3: every parameter is whole already."""

    def gathered(self, parameters: Any, *, modifier_rank: int | None = None) -> Any:
        return contextlib.nullcontext()


def _skeleton(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _save(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    file = folder / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    return file


def _problems(config: Any, file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_names(_skeleton(config), read_headers([file]), "some/model")
    return str(caught.value)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def test_headers_are_read_from_every_file(tmp_path):
    one = _save(tmp_path, {"a": torch.zeros(2, 3), "b": torch.zeros(())})
    two = tmp_path / "two.safetensors"
    save_file({"c": torch.zeros(4, dtype=torch.bfloat16)}, two)
    (tmp_path / "pytorch_model.bin").write_bytes(b"another format")
    found = read_headers([one, two, tmp_path / "pytorch_model.bin"])
    assert {name: header.shape for name, header in found.items()} == {
        "a": (2, 3),
        "b": (),
        "c": (4,),
    }
    assert found["c"].file == two


@pytest.mark.parametrize("tied", [False, True])
def test_files_of_the_model_fit(tmp_path, tied):
    folder = make_model(tmp_path / "model", tie_word_embeddings=tied)
    headers = read_headers([folder / "model.safetensors"])
    assert ("lm_head.weight" in headers) is not tied
    check_names(_skeleton(llama_config(tie_word_embeddings=tied)), headers, "m")


def test_missing_unexpected_and_mismatched_are_named_at_once(model):
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    weights["model.layers.2.mlp.down_proj.weight"] = torch.zeros(1)
    weights["lm_head.weight"] = torch.zeros(7, 48)
    text = _problems(llama_config(), _save(model, weights))
    assert "--model some/model" in text
    assert "1 missing from the files (model.layers.1.mlp.down_proj.weight)" in text
    assert "1 in the files but not in the model (model.layers.2.mlp.down_proj.weight)" in text
    assert "1 of another shape (lm_head.weight: file (7, 48), model (512, 48))" in text


def test_long_lists_are_cut(model):
    text = _problems(llama_config(num_hidden_layers=4), model / "model.safetensors")
    assert "18 missing from the files" in text
    assert "and 10 more" in text
    assert text.count("model.layers.") == 8


def test_tied_embedding_that_no_name_brings_is_missing(tmp_path):
    folder = make_model(tmp_path / "model", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    table = weights.pop("model.embed_tokens.weight")
    config = llama_config(tie_word_embeddings=True)
    assert "model.embed_tokens.weight" in _problems(config, _save(folder, weights))
    # Under the head's name it is there.
    weights["lm_head.weight"] = table
    check_names(_skeleton(config), read_headers([_save(folder, weights)]), "m")


def test_base_model_without_the_prefix_fits_but_for_its_head(model):
    weights = {
        name.removeprefix("model."): value
        for name, value in load_file(model / "model.safetensors").items()
        if name != "lm_head.weight"
    }
    text = _problems(llama_config(), _save(model, weights))
    assert "1 missing from the files (lm_head.weight)" in text
    assert "but not in the model" not in text
    tied = _skeleton(llama_config(tie_word_embeddings=True))
    check_names(tied, read_headers([model / "model.safetensors"]), "m")


def test_buffers_that_older_files_carry_are_no_error(model):
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(6)
    check_names(_skeleton(llama_config()), read_headers([_save(model, weights)]), "m")


class TestExperts:
    """Mixtral's files name experts one by one; the model holds one tensor of all."""

    @pytest.fixture
    def config(self) -> Any:
        from transformers import MixtralConfig

        return MixtralConfig(
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=32,
            num_local_experts=4,
        )

    @pytest.fixture
    def weights(self, config, tmp_path) -> dict[str, torch.Tensor]:
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in weights
        return weights

    def test_whole_files_fit(self, config, weights, tmp_path):
        check_names(_skeleton(config), read_headers([_save(tmp_path, weights)]), "m")

    def test_fused_files_fit(self, config, tmp_path):
        model = _skeleton(config)
        fused = {name: torch.zeros(p.shape) for name, p in model.state_dict().items()}
        assert "model.layers.0.mlp.experts.gate_up_proj" in fused
        check_names(model, read_headers([_save(tmp_path, fused)]), "m")

    def test_one_lost_expert_is_found(self, config, weights, tmp_path):
        del weights["model.layers.0.block_sparse_moe.experts.3.w2.weight"]
        text = _problems(config, _save(tmp_path, weights))
        assert "model.layers.0.mlp.experts.down_proj: 384 numbers in 3 tensors" in text
        assert "model 512" in text
        assert "layers.1" not in text

    def test_lost_layers_and_others_are_found(self, config, weights, tmp_path):
        kept = {name: value for name, value in weights.items() if "layers.1" not in name}
        text = _problems(config, _save(tmp_path, kept))
        assert "model.layers.1.mlp.experts.gate_up_proj" in text
        assert "model.layers.1.input_layernorm.weight" in text
        assert "layers.0" not in text


@pytest.mark.parametrize("cut", [1, 1000, "header", "no_size"])
def test_truncated_file_is_named(model, cut):
    file = model / "model.safetensors"
    whole = file.read_bytes()
    end = {"header": 40, "no_size": 5}.get(cut) or len(whole) - cut
    file.write_bytes(whole[:end])
    with pytest.raises(CheckpointError, match="not a complete safetensors file") as caught:
        read_headers([file])
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("header", [[1, 2], {"a": 3}, {"a": {"shape": [1]}}])
def test_header_that_is_none_is_no_safetensors_file(tmp_path, header):
    text = json.dumps(header).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_headers([file])


def test_git_lfs_pointer_is_no_safetensors_file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_headers([file])


def test_values_are_compared_in_each_layer(model):
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    headers = read_headers([model / "model.safetensors"])
    # A matrix and a vector per layer, and three outside of layers.
    assert check_values(module, headers, Whole(), "m") == 7
    with torch.no_grad():
        module.model.layers[1].self_attn.q_proj.weight[3, 3] += 1
    with pytest.raises(CheckpointError, match="layers.1.self_attn.q_proj.weight in memory differs"):
        check_values(module, headers, Whole(), "m")


def test_nan_in_the_files_is_no_fault_of_the_loader(model):
    from transformers import AutoModelForCausalLM

    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    file = _save(model, weights)
    module = AutoModelForCausalLM.from_pretrained(model)
    assert check_values(module, read_headers([file]), Whole(), "m") == 7
