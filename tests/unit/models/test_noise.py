"""NEFTune's noise: how large, on what, and when."""

import math

import pytest
import torch
from making import llama_config
from task_rows import t5_config
from torch import nn

from bigft.errors import ConfigError
from bigft.models.noise import add_noise, count_lengths

ALPHA, WIDTH = 5.0, 32


@pytest.fixture
def model():
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(hidden_size=WIDTH)).train()


def _look_up(model, **inputs):
    """The embeddings that the layers of a model get."""
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda *call: seen.append(call[2].detach())
    )
    model(**inputs)
    handle.remove()
    return seen


def test_lengths_of_padded_and_packed_examples():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert count_lengths(None, mask).tolist() == [[3] * 4, [4] * 4, [1] * 4]
    positions = torch.tensor([[0, 1, 0, 1, 2], [0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    assert count_lengths(positions, None).tolist() == [
        [2, 2, 3, 3, 3],
        [1, 1, 3, 3, 3],
        [5, 5, 5, 5, 5],
    ]


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_noise_is_uniform_up_to_its_bound(model, kind):
    ids = torch.randint(1, 100, (2, 96))
    inputs = {"input_ids": ids}
    lengths = torch.full((2, 96), 96.0)
    if kind == "padded":
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][1, 40:] = 0
        lengths[1] = 40
    else:
        inputs["position_ids"] = torch.cat([torch.arange(30), torch.arange(66)]).repeat(2, 1)
        lengths[:, :30], lengths[:, 30:] = 30, 66
    plain = _look_up(model, **inputs)[0]
    note = add_noise(model, ALPHA)
    assert note == "NEFTune: noise of alpha 5 on the embeddings, in training alone"
    bound = ALPHA / (lengths * WIDTH).sqrt()
    share = (_look_up(model, **inputs)[0] - plain) / bound.unsqueeze(-1)
    for part in (share[0, :30], share[0, 30:], share[1, :40]):
        assert 0.98 < part.abs().max() <= 1 + 1e-3
        assert abs(part.mean()) < 0.08
        assert part.std() == pytest.approx(1 / math.sqrt(3), rel=0.05)


def test_it_is_that_of_transformers_where_nothing_is_padded(model):
    from transformers.integrations.neftune import neftune_post_forward_hook

    ids = torch.randint(1, 100, (2, 16))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    table = model.get_input_embeddings()
    table.neftune_noise_alpha = ALPHA
    theirs = table.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(7)
    expected = _look_up(model, **inputs)[0]
    theirs.remove()
    add_noise(model, ALPHA)
    torch.manual_seed(7)
    torch.testing.assert_close(_look_up(model, **inputs)[0], expected)


def test_there_is_none_in_evaluation(model):
    ids = torch.randint(1, 100, (2, 8))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    before = model.eval()(**inputs).logits
    add_noise(model, ALPHA)
    names = set(model.state_dict())
    assert model.eval()(**inputs).logits.equal(before)
    assert not model.train()(**inputs).logits.equal(before)
    assert model.eval()(**inputs).logits.equal(before)
    assert set(model.state_dict()) == names


def test_the_decoder_of_an_encoder_and_decoder_is_left_alone():
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration(t5_config(dropout_rate=0.0)).train()
    ids = torch.randint(1, 100, (2, 8))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": ids.clone(),
    }
    parts = [model.get_encoder(), model.get_decoder()]

    def look_up():
        seen = []
        handles = [
            part.get_input_embeddings().register_forward_hook(lambda *call: seen.append(call[2]))
            for part in parts
        ]
        model(**inputs)
        for handle in handles:
            handle.remove()
        return seen

    plain = look_up()
    add_noise(model, ALPHA)
    encoder, decoder = look_up()
    assert not encoder.equal(plain[0])
    assert decoder.equal(plain[1])
    model(**{**inputs, "decoder_input_ids": ids})  # Also where one tensor is both.


def test_a_model_that_looks_its_input_up_elsewhere_is_refused(model):
    add_noise(model, ALPHA)
    own = model.get_input_embeddings()
    model.model.embed_tokens = nn.Embedding.from_pretrained(own.weight.detach())
    ids = torch.randint(1, 100, (2, 8))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model.eval()(**inputs)
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no embeddings of its input"):
        model.train()(**inputs)


def test_a_model_without_embeddings_is_refused():
    class Seeing(nn.Module):
        def get_input_embeddings(self):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="--model.neftune_alpha: Seeing has no embeddings"):
        add_noise(Seeing(), 5.0)
