"""Which tokenizer a run gets."""

from pathlib import Path
from typing import Any

import pytest
from making import llama_config, make_model, make_tokenizer

from bigft.errors import ConfigError
from bigft.models.facts import read_facts
from bigft.models.section import ModelSection
from bigft.models.tokenizer import adopt_special_tokens, load_tokenizer


def _load(name: Path, **changes: Any) -> Any:
    section = ModelSection(name=str(name), **changes)
    return load_tokenizer(section, read_facts(section), _Builtin)


class _Builtin:
    pad_token_id = 1
    chat_template = "built in"


def test_model_with_weights_brings_its_own(tmp_path):
    found = _load(make_model(tmp_path / "model"))
    assert len(found) > 256
    assert found.pad_token_id == 0


def test_bare_config_gets_the_builtin_one(tmp_path):
    llama_config().save_pretrained(tmp_path)
    assert isinstance(_load(tmp_path), _Builtin)
    assert isinstance(_load(tmp_path / "config.json"), _Builtin)


def test_random_weights_keep_the_tokenizer_beside_them(tmp_path):
    llama_config().save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    assert not isinstance(_load(tmp_path), _Builtin)
    assert isinstance(_load(tmp_path, tokenizer="builtin"), _Builtin)


def test_named_tokenizer_wins(tmp_path):
    llama_config().save_pretrained(tmp_path)
    make_tokenizer(tmp_path / "other").add_tokens(["<x>"])
    assert not isinstance(_load(tmp_path, tokenizer=str(tmp_path / "other")), _Builtin)


def test_missing_pad_token_becomes_the_end_token(tmp_path):
    model = make_model(tmp_path / "model")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(model)
    assert AutoTokenizer.from_pretrained(model).pad_token_id is None
    assert _load(model).pad_token_id == 0


def test_chat_template_file_replaces_the_tokenizers_own(tmp_path):
    model = make_model(tmp_path / "model")
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[0]['content'] }}!")
    found = _load(model, chat_template=str(template))
    text = found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "hi!"


def test_chat_template_that_cannot_be_read_is_named(tmp_path):
    model = make_model(tmp_path / "model")
    with pytest.raises(ConfigError, match="no such file"):
        _load(model, chat_template=str(tmp_path / "none.jinja"))
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.jinja"):
        _load(model, chat_template=str(tmp_path / "binary.jinja"))


def test_weights_without_a_tokenizer_say_what_to_name(tmp_path):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(llama_config()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"--model\.tokenizer FOLDER_OR_ID"):
        _load(tmp_path)


def test_damaged_tokenizer_is_no_traceback(tmp_path):
    model = make_model(tmp_path / "model")
    file = model / "tokenizer.json"
    file.write_text(file.read_text()[:500])
    with pytest.raises(ConfigError, match="no tokenizer can be loaded"):
        _load(model)


def test_revision_of_the_model_is_not_that_of_another_tokenizer(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    asked = {}

    def remember(source: str, **options: Any) -> Any:
        asked[source] = options["revision"]
        return _Builtin()

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", remember)
    model = make_model(tmp_path / "model")
    _load(model, revision="v1.2")
    _load(model, revision="v1.2", tokenizer="owner/other")
    assert asked == {str(model): "v1.2", "owner/other": "main"}


def test_model_from_scratch_takes_the_tokenizers_special_tokens(tmp_path):
    from transformers import LlamaForCausalLM

    tokenizer = make_tokenizer(tmp_path)
    model = LlamaForCausalLM(llama_config(eos_token_id=77, pad_token_id=78, bos_token_id=79))
    adopt_special_tokens(model, tokenizer, [0, 2])
    assert (model.config.eos_token_id, model.config.pad_token_id) == (0, 0)
    assert model.config.bos_token_id is None
    assert model.generation_config.eos_token_id == [0, 2]


def test_chat_template_may_be_the_name_of_a_built_in_one(tmp_path, caplog):
    section = ModelSection(name=str(make_model(tmp_path / "model")), chat_template="short")
    facts = read_facts(section)
    found = load_tokenizer(section, facts, _Builtin, {"short": "<|im_start|><|im_start|>"})
    assert found.chat_template == "<|im_start|><|im_start|>"
    assert caplog.records == []


def test_tokens_of_the_template_that_the_tokenizer_lacks_are_named_once(tmp_path, caplog):
    section = ModelSection(name=str(make_model(tmp_path / "model")), chat_template="other")
    text = "{{ '<|eot_id|>' }}<|eot_id|><end_of_turn><|im_end|>{{ bos_token }}"
    load_tokenizer(section, read_facts(section), _Builtin, {"other": text})
    (record,) = caplog.records
    assert "template other writes <|eot_id|>, <end_of_turn>, which" in record.getMessage()


def test_unknown_chat_template_is_shown_with_the_nearest_name(tmp_path):
    section = ModelSection(name=str(make_model(tmp_path / "model")), chat_template="lama3")
    with pytest.raises(ConfigError, match=r"chat_template lama3: .*did you mean llama3\?"):
        load_tokenizer(section, read_facts(section), _Builtin, {"llama3": "", "gemma": ""})
