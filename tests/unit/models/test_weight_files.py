"""Which files of a folder count as its weights."""

import pytest
from making import llama_config, make_model

from bigft.errors import CheckpointError
from bigft.models.facts import read_facts
from bigft.models.section import ModelSection


def _facts(folder):
    return read_facts(ModelSection(name=str(folder)))


def test_files_beside_the_weights_do_not_count(tmp_path):
    folder = make_model(tmp_path / "model")
    for other in ("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin"):
        (folder / other).write_bytes(b"something else")
    assert [file.name for file in _facts(folder).weight_files] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["consolidated.safetensors", "tf_model.h5", "model.gguf"])
def test_weights_that_would_not_be_loaded_are_refused(tmp_path, name):
    """Else training would start from random weights without a word."""
    llama_config().save_pretrained(tmp_path)
    assert not _facts(tmp_path).has_weights
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=name) as caught:
        _facts(tmp_path)
    assert "model.safetensors" in str(caught.value)
    # The way out that the message names.
    assert not _facts(tmp_path / "config.json").has_weights
