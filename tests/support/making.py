"""Tiny models, tokenizers and data files for tests; nothing is downloaded."""

import json
import random
from pathlib import Path
from typing import Any

VOCAB = 512

WORDS = "red green blue one two three cat dog bird runs sleeps eats the a and but near far".split()


def make_tokenizer(folder: Path, *, chat: bool = True) -> Any:
    """Train a byte-level tokenizer of 512 entries and save it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    raw.train_from_iterator((" ".join(WORDS) + " " + "".join(WORDS) for _ in range(3)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    if chat:
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    tokenizer.save_pretrained(folder)
    return tokenizer


def llama_config(**changes: Any) -> Any:
    """A two-layer Llama with odd sizes, so that partitions need padding."""
    from transformers import LlamaConfig

    values = dict(
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaConfig(**{**values, **changes})


def make_model(folder: Path, *, dtype: str = "float32", seed: int = 0, **changes: Any) -> Path:
    """Save a tiny Llama with weights and a tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(**changes)).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_messages(path: Path, rows: int = 64, seed: int = 0) -> Path:
    """Write conversations of varying length as JSON lines."""
    chooser = random.Random(seed)
    with path.open("w") as file:
        for _ in range(rows):
            question = " ".join(chooser.choices(WORDS, k=chooser.randint(1, 8)))
            answer = " ".join(chooser.choices(WORDS, k=chooser.randint(1, 20)))
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path
