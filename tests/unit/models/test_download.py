import json
from pathlib import Path

import pytest

from bigft.models.download import fetch_weights
from bigft.models.facts import ModelFacts
from bigft.models.section import ModelSection


def _facts(name: str, *files: Path) -> ModelFacts:
    return ModelFacts(
        source=name,
        config={},
        hidden_size=1,
        num_layers=1,
        vocab_size=1,
        model_type="llama",
        tied=False,
        has_weights=True,
        weight_files=files,
    )


def test_a_local_model_keeps_its_own_files(tmp_path: Path) -> None:
    files = (tmp_path / "model.safetensors",)
    section = ModelSection(name=str(tmp_path))
    assert fetch_weights(section, _facts(str(tmp_path), *files)) == files


def test_hub_shards_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache as huggingface_hub lays it out, so that no network is needed."""
    snapshot = tmp_path / "models--org--name/snapshots/0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--org--name/refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (snapshot / "model.safetensors.index.json").write_text(
        json.dumps(
            {"metadata": {"total_size": 8}, "weight_map": dict(zip("ab", shards, strict=True))}
        )
    )
    for shard in shards:
        (snapshot / shard).write_bytes(b"")
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    files = fetch_weights(ModelSection(name="org/name"), _facts("org/name"))
    assert [file.name for file in files] == shards
    assert all(file.parent == snapshot for file in files)


def test_a_model_with_other_formats_is_left_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fetch_weights(ModelSection(name="org/name"), _facts("org/name")) == ()
