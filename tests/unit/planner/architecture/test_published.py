"""Models that people train: their size is known from elsewhere, and must come out exactly."""

import json
from pathlib import Path

import pytest
from skeletons import find_skeleton

from bigft.planner.architecture.build import build_architecture

# Per model: what of its config.json decides its size; `parameters`: what transformers builds from
# that, by its own skeleton; `published`: elements of the tensors that its publisher's files hold,
# as the model hub counts them from the files' headers, or, where no such count was found, a count
# that users of the model printed; null: none found, the skeleton alone vouches for it. Where the
# two differ, `surplus` says by how much and `why` what it is.
PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())
NAMED = pytest.mark.parametrize("name", PUBLISHED)


def test_the_list_covers_what_people_train():
    families = {model["config"]["model_type"] for model in PUBLISHED.values()}
    first = {"llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma", "gemma2"}
    assert families >= first | {"gemma3_text", "phi", "phi3", "gpt2", "opt", "t5", "bert"}
    assert sum(model["published"] is not None for model in PUBLISHED.values()) >= 70


@NAMED
def test_parameters_are_exact(name):
    model = PUBLISHED[name]
    found = build_architecture(model["config"], task=model["task"])
    assert found.parameters == model["parameters"]
    if model["published"] is not None:
        assert found.parameters + model.get("surplus", 0) == model["published"]
    assert ("surplus" in model) == ("why" in model)


@NAMED
def test_every_tensor_is_one_of_transformers(name):
    model = PUBLISHED[name]
    expected = find_skeleton(model["config"], model["task"])
    found = build_architecture(model["config"], task=model["task"])
    assert [(weight.name, weight.shape) for weight in found.weights] == expected.weights
    assert [(weight.name, weight.shape) for weight in found.buffers] == expected.buffers


@pytest.mark.parametrize("name", ["google/flan-t5-xl", "google/mt5-small"])
def test_files_with_a_head_of_their_own_are_counted_whole(name):
    model = PUBLISHED[name]
    found = build_architecture(model["config"], task=model["task"], has_weights=True)
    assert found.parameters == model["published"]
