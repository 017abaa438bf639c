"""Answers written in batches, against the likeliest token taken one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from making import llama_config, make_tokenizer
from task_rows import TEXTS, t5_config

from bigft.evaluation.answers import Decoding, find_longest_prompt, write_answers
from bigft.evaluation.plain import load_plain

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return make_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(max_position_embeddings=64, initializer_range=0.5)).eval()


@pytest.fixture(scope="module")
def t5():
    from transformers import T5ForConditionalGeneration

    torch.manual_seed(0)
    return T5ForConditionalGeneration(t5_config(initializer_factor=3.0, eos_token_id=5)).eval()


def _encode(tokenizer, texts=TEXTS):
    return [np.array(tokenizer(text)["input_ids"], dtype=np.int32) for text in texts]


@torch.no_grad()
def _continue(model, prompt, count):
    """Take the likeliest token, without padding, cache or `generate`."""
    ids = torch.tensor(prompt.tolist())[None]
    written = []
    start = torch.tensor([[0]])  # What T5's decoders begin with here.
    for _ in range(count):
        if model.config.is_encoder_decoder:
            so_far = torch.cat([start, torch.tensor([written], dtype=torch.int64)], 1)
            logits = model(input_ids=ids, decoder_input_ids=so_far, use_cache=False).logits
        else:
            so_far = torch.cat([ids, torch.tensor([written], dtype=torch.int64)], 1)
            logits = model(input_ids=so_far, use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
    return written


def _write(model, tokenizer, prompts, **changes):
    decoding = Decoding(**{"batch_size": 4, "max_new_tokens": 8, **changes})
    return write_answers(model, tokenizer, prompts, decoding, lambda text: None)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_are_what_each_prompt_gives_alone(request, tokenizer, name, batch_size):
    model = request.getfixturevalue(name)
    prompts = _encode(tokenizer)
    found = _write(model, tokenizer, prompts, batch_size=batch_size)
    for prompt, answer in zip(prompts, found, strict=True):
        written = _continue(model, prompt, 8)
        ends = [0, 5, tokenizer.convert_tokens_to_ids("<|im_end|>")]
        cut = next((n for n, token in enumerate(written) if token in ends), 8)
        assert answer == tokenizer.decode(written[:cut], skip_special_tokens=True)
    assert len(set(found)) > 1


def test_an_answer_ends_at_the_token_that_ends_a_turn(tokenizer, llama, monkeypatch):
    prompts = _encode(tokenizer)[1:2]
    written = _continue(llama, prompts[0], 8)
    end = written[3]
    assert end not in written[:3]
    monkeypatch.setattr(llama.generation_config, "eos_token_id", end)
    (answer,) = _write(llama, tokenizer, prompts)
    assert answer == tokenizer.decode(written[:3])


def test_answers_stay_within_the_positions_of_the_model(tokenizer, llama, t5):
    assert find_longest_prompt(llama) == 63
    assert find_longest_prompt(t5) is None
    prompts = [np.full(60, 300, dtype=np.int32), np.full(4, 301, dtype=np.int32)]
    found = _write(llama, tokenizer, prompts, batch_size=2, max_new_tokens=100)
    for prompt, answer in zip(prompts, found, strict=True):
        assert answer == tokenizer.decode(_continue(llama, prompt, 4), skip_special_tokens=True)


def test_when_the_time_is_over_no_batch_is_begun(tokenizer, llama):
    prompts = _encode(tokenizer)
    assert len(_write(llama, tokenizer, prompts, batch_size=2, max_seconds=1e-9)) == 2
    assert len(_write(llama, tokenizer, prompts, batch_size=2, max_seconds=1e9)) == 5


def test_settings_for_sampling_change_nothing(tokenizer, llama, monkeypatch, tmp_path, recwarn):
    prompts = _encode(tokenizer)
    greedy = _write(llama, tokenizer, prompts)
    for name, value in {"do_sample": True, "temperature": 1.7, "top_p": 0.9, "top_k": 3}.items():
        monkeypatch.setattr(llama.generation_config, name, value)
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_plain(str(tmp_path), CPU)
    assert model.generation_config.do_sample is True
    assert _write(model, loaded, prompts) == greedy
    assert not [warning for warning in recwarn if "sample" in str(warning.message)]


def test_beams_are_those_of_transformers(tokenizer, llama):
    prompts = _encode(tokenizer)
    found = _write(llama, tokenizer, prompts, num_beams=3, batch_size=2)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor(prompt.tolist())[None]
        output = llama.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=3, do_sample=False,
            max_new_tokens=8, eos_token_id=[0, tokenizer.convert_tokens_to_ids("<|im_end|>")],
        )  # fmt: skip
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer == text
    assert found != _write(llama, tokenizer, prompts)
