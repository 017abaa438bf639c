from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bigft.data.tokens.builtin import load_builtin_tokenizer


def test_it_has_4096_entries_and_its_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == 4096
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.bos_token is None
    assert len(tokenizer("<|im_start|><|im_end|>")["input_ids"]) == 2
    assert max(tokenizer.get_vocab().values()) == 4095


def test_another_training_gives_the_same_files(
    tmp_path: Path, cache_dir: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    load_builtin_tokenizer(tmp_path)
    again = next((tmp_path / "tokenizers").iterdir())
    for file in again.iterdir():
        assert file.read_bytes() == (cache_dir / "tokenizers" / again.name / file.name).read_bytes()


def test_auto_tokenizer_loads_what_was_saved(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello  you"}]
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    expected = tokenizer.apply_chat_template(turns, **options)
    assert loaded.apply_chat_template(turns, **options) == expected
    assert (loaded.eos_token_id, loaded.pad_token_id) == (0, 1)


@given(st.text())
def test_every_text_comes_back_unchanged(
    session_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    assert session_tokenizer.decode(session_tokenizer(text)["input_ids"]) == text
