"""Choices made while a model is loaded: experts, attention, configuration."""

import contextlib
from typing import Any

import pytest
import torch
from making import llama_config, make_model, make_tokenizer
from model_runs import Expert, RoutedBlock, RoutedModel
from torch import nn

from bigft.errors import CheckpointError, ConfigError
from bigft.models.facts import read_facts
from bigft.models.load import (
    build_config,
    count_parameters,
    find_expert_blocks,
    load_model,
    pick_attention,
    plan_parameters,
)
from bigft.models.section import ModelSection

CPU = torch.device("cpu")


class NoZero:
    """ZeRO below stage 3."""

    partitions_parameters = False
    leaves: Any = None

    def building(self) -> Any:
        return contextlib.nullcontext()

    def gathered(self, parameters: Any, *, modifier_rank: int | None = None) -> Any:
        return contextlib.nullcontext()

    def partition(self, module: nn.Module) -> None:
        pass

    def set_leaf_modules(self, module: nn.Module, classes: list[type[nn.Module]]) -> None:
        self.leaves = classes

    def check_partitioned(self, module: nn.Module) -> None:
        pass


def _load(folder: Any, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    section = ModelSection(name=str(folder), **changes)
    return load_model(
        section,
        read_facts(section),
        NoZero(),
        auto_class=AutoModelForCausalLM,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dtype=torch.float32,
        device=CPU,
        seed=0,
    )


# --- Configuration ---


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("intermediate_size", "48", "shape"), ("num_hidden_layers", "1", "layers.1")],
)
def test_loaded_weights_keep_their_shapes(tmp_path, name, value, text):
    folder = make_model(tmp_path / "model")
    with pytest.raises(CheckpointError, match=text):
        _load(folder, config={name: value})


# --- Experts ---


def test_blocks_with_a_gate_and_alike_children_are_found():
    assert find_expert_blocks(RoutedModel()) == [RoutedBlock]


def test_experts_in_a_dictionary_are_found():
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(8, 2)
            self.experts = nn.ModuleDict({f"expert_{i}": Expert(8) for i in range(2)})

    assert find_expert_blocks(nn.Sequential(Switch(), Switch())) == [Switch]


def test_experts_of_a_list_class_are_found():
    class Experts(nn.ModuleList):
        pass

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(8, 3)
            self.experts = Experts(Expert(8) for _ in range(3))

    assert find_expert_blocks(Block()) == [Block]


@pytest.mark.parametrize("part", ["layers", "mixed", "single"])
def test_other_lists_are_no_experts(part):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if part == "layers":
                self.layers = nn.ModuleList(Expert(8) for _ in range(3))
                self.norm = nn.LayerNorm(8)
            elif part == "mixed":
                self.gate = nn.Linear(8, 2)
                self.parts = nn.ModuleList([nn.Linear(8, 8), nn.ReLU()])
            else:
                self.gate = nn.Linear(8, 2)
                self.parts = nn.ModuleList([nn.Linear(8, 8)])

    assert find_expert_blocks(Model()) == []


def test_fused_experts_of_transformers_need_nothing_and_dense_models_have_none():
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=32,
        num_local_experts=4,
    )
    mixture = AutoModelForCausalLM.from_config(config)
    assert any(p.ndim == 3 for p in mixture.parameters()), "the experts are not fused any more"
    assert find_expert_blocks(mixture) == []
    assert find_expert_blocks(AutoModelForCausalLM.from_config(llama_config())) == []


def test_experts_of_a_list_in_transformers_are_found():
    """Switch Transformers still keeps its experts apart."""
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig(
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        num_experts=3,
        vocab_size=32,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    )
    model = SwitchTransformersForConditionalGeneration(config)
    apart = {
        type(child).__name__
        for child in model.modules()
        if sum("expert_" in name for name, _ in child.named_children()) > 1
    }
    assert [c.__name__ for c in find_expert_blocks(model)] == (
        ["SwitchTransformersSparseMLP"] if apart else []
    )


# --- Attention ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sdpa_is_picked_where_flash_attention_cannot_run(dtype):
    assert pick_attention("auto", CPU, dtype) == "sdpa"


def test_explicit_attention_is_kept():
    assert pick_attention("eager", CPU, torch.float32) == "eager"


def test_the_asked_attention_is_in_the_model(tmp_path):
    folder = make_model(tmp_path / "model")
    assert _load(folder).attention == "sdpa"
    eager = _load(folder, attention="eager")
    assert eager.attention == eager.module.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["flash_attention_2", "sdap"])
def test_attention_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=f"--model.attention {name}"):
        _load(make_model(tmp_path / "model"), attention=name)


# --- Configuration ---


def test_vocabulary_of_random_weights_fits_the_tokenizer(tmp_path):
    llama_config(vocab_size=100).save_pretrained(tmp_path)
    section = ModelSection(name=str(tmp_path))
    assert build_config(section, read_facts(section), 300).vocab_size == 320
    assert build_config(section, read_facts(section), 90).vocab_size == 100


def test_config_file_describes_a_model_from_scratch(tmp_path):
    llama_config(num_hidden_layers=3).save_pretrained(tmp_path)
    section = ModelSection(name=str(tmp_path / "config.json"))
    config = build_config(section, read_facts(section), 10)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 3, 48)
    assert config.use_cache is False


def test_random_weights_follow_the_seed(tmp_path):
    llama_config().save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    one, other = _load(tmp_path), _load(tmp_path)
    assert "random" in one.notes[0]
    for left, right in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(left, right)


def test_parameters_are_counted_without_building_them(tmp_path):
    for tied in (False, True):
        folder = make_model(tmp_path / str(tied), tie_word_embeddings=tied)
        section = ModelSection(name=str(folder))
        from transformers import AutoModelForCausalLM

        loaded = _load(folder)
        planned = plan_parameters(section, read_facts(section), AutoModelForCausalLM, 100)
        assert planned == count_parameters(loaded.module)
        assert planned == sum(p.numel() for p in loaded.module.parameters())


def test_model_of_another_kind_is_refused(tmp_path):
    from transformers import ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="no ModelForCausalLM for model_type 'vit'"):
        _load(tmp_path)


def test_unknown_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "from_the_future"}')
    make_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="transformers cannot read its config"):
        _load(tmp_path)
