from transformers import PreTrainedTokenizerFast

from bigft.data.chatml import CHATML_TEMPLATE


def test_template_writes_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    options = {"chat_template": CHATML_TEMPLATE, "tokenize": False}
    head = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(turns, **options) == head + "A<|im_end|>\n"
    prompt = tokenizer.apply_chat_template(turns[:2], add_generation_prompt=True, **options)
    assert prompt == head
