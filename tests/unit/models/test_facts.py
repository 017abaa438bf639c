"""What `config.json` says, and what is answered when it does not."""

import json

import pytest

from bigft.errors import CheckpointError, ConfigError
from bigft.models import facts as facts_module
from bigft.models.facts import read_facts
from bigft.models.section import ModelSection

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def facts_of(name):
    return read_facts(ModelSection(name=str(name)))


def write_model(folder, config=None, **files):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_builtin_model_has_random_weights():
    facts = facts_of("builtin")
    assert (facts.hidden_size, facts.num_layers, facts.vocab_size) == (384, 3, 4096)
    assert facts.tied
    assert not facts.has_weights
    assert facts.max_position_embeddings == 2048


def test_folder_with_only_a_config_starts_from_random_weights(tmp_path):
    facts = facts_of(write_model(tmp_path / "m"))
    assert (facts.hidden_size, facts.tied, facts.has_weights) == (64, False, False)
    assert facts.largest_parameter == (256 + 1024) * 64


def test_config_file_starts_from_random_weights(tmp_path):
    facts = facts_of(write_model(tmp_path / "m", model__safetensors="") / "config.json")
    assert not facts.has_weights


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_single_weight_file_is_found(tmp_path, name):
    folder = write_model(tmp_path / "m")
    (folder / name).write_text("")
    assert facts_of(folder).weight_files == (folder / name,)


def test_index_names_its_shards(tmp_path):
    folder = write_model(tmp_path / "m")
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for shard in ("x-1", "x-2"):
        (folder / f"{shard}.safetensors").write_text("")
    assert [file.name for file in facts_of(folder).weight_files] == [
        "x-1.safetensors",
        "x-2.safetensors",
    ]


def test_missing_shards_are_named(tmp_path):
    folder = write_model(tmp_path / "m")
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "x-1.safetensors").write_text("")
    with pytest.raises(CheckpointError, match=r"1 of 2 .* missing: x-2\.safetensors"):
        facts_of(folder)


def test_shards_without_an_index_are_refused(tmp_path):
    folder = write_model(tmp_path / "m")
    (folder / "model-00001-of-00002.safetensors").write_text("")
    with pytest.raises(CheckpointError, match="index"):
        facts_of(folder)


def test_nested_text_config_is_read(tmp_path):
    config = {"model_type": "gemma3", "vision_config": {}, "text_config": CONFIG}
    facts = facts_of(write_model(tmp_path / "m", config))
    assert (facts.hidden_size, facts.model_type) == (64, "gemma3")


def test_fused_experts_count_as_one_parameter(tmp_path):
    config = {**CONFIG, "num_experts": 16, "moe_intermediate_size": 512}
    assert facts_of(write_model(tmp_path / "m", config)).largest_parameter == 2 * 16 * 512 * 64


def test_missing_path_names_its_neighbour(tmp_path):
    write_model(tmp_path / "qwen-small")
    with pytest.raises(ConfigError, match="no such file or folder; did you mean .*qwen-small"):
        facts_of(tmp_path / "qwen-smal")


def test_run_folder_points_to_its_model(tmp_path):
    write_model(tmp_path / "run" / "model")
    (tmp_path / "run" / "resolved").mkdir()
    with pytest.raises(ConfigError, match=r"run folder; did you mean .*run/model\?"):
        facts_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("checkpoints/", "without an exported model"),
        ("manifest.json", "training checkpoint"),
        ("adapter_config.json", "adapter"),
        ("", "empty"),
        ("notes.txt", "has no config.json"),
    ],
)
def test_folder_without_config_is_told_apart(tmp_path, content, answer):
    if content.endswith("/"):
        (tmp_path / content).mkdir()
    elif content:
        (tmp_path / content).write_text("")
    with pytest.raises(ConfigError, match=answer):
        facts_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "answer"),
    [('{"a": 1,}', "line 1 column 9"), ("[]", "model_type"), ('{"hidden_size": 1}', "model_type")],
)
def test_unusable_config_is_explained(tmp_path, text, answer):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=answer):
        facts_of(tmp_path)


def test_hub_errors_are_plain_words(monkeypatch):
    from huggingface_hub.errors import RevisionNotFoundError

    def fail(*args, **kwargs):
        raise RevisionNotFoundError.__new__(RevisionNotFoundError)

    monkeypatch.setattr(facts_module, "_is_hub_reachable", lambda endpoint: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ConfigError, match="has no revision 'v9'"):
        read_facts(ModelSection(name="owner/name", revision="v9"))


def test_unreachable_hub_is_answered_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(facts_module, "_is_hub_reachable", lambda endpoint: False)
    with pytest.raises(ConfigError, match="hub cannot be reached"):
        facts_of("nobody/has-this-model-cached")
