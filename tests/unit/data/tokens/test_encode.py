"""Batches through the library give what the tokenizer gives one by one."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from bigft.data.tokens import encode
from bigft.data.tokens.encode import encode_placed, encode_texts

TEXTS = [
    "The cat sat on the mat.\n\nIt didn't   move: 12345 times!",
    "",
    " leading and trailing ",
    "def f(x):\n    return x\n",
    "\u4f60\u597d, \u00fcber \N{GRINNING FACE}\u200d and caf\u0065\u0301",
    "<s> in the words </s>",
]
# How Llama 3 and Qwen cut words, in a shorter form.
_NEWER_WORDS = (
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(kind: str) -> PreTrainedTokenizerFast:
    specials = ["<s>", "</s>", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer: object = trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=specials, show_progress=False
        )
    else:
        backend = Tokenizer(models.BPE())
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "newer")
        words = pre_tokenizers.Split(Regex(_NEWER_WORDS), "isolated")
        backend.pre_tokenizer = (
            pre_tokenizers.Sequence([words, bytes_]) if kind == "newer" else bytes_
        )
        if kind == "prefixed":
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=specials,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    backend.train_from_iterator(TEXTS * 3, trainer)
    if kind == "wordpiece":
        pair = [("[CLS]", 3), ("[SEP]", 4)]
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=pair
        )
    if kind == "bos":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    backend.enable_truncation(8)
    backend.enable_padding(length=12)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="[UNK]"
    )


KINDS = ("bytes", "newer", "prefixed", "bos", "wordpiece")
BUILT = {kind: build(kind) for kind in KINDS}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_the_tokenizer_gives_one_by_one(kind: str, special: bool) -> None:
    tokenizer = BUILT[kind]
    batch = encode_texts(TEXTS, tokenizer, special=special)
    for text, ids in zip(TEXTS, batch, strict=True):
        assert ids.tolist() == tokenizer(text, add_special_tokens=special)["input_ids"]
        assert ids.dtype == np.int32
    assert encode_texts([], tokenizer, special=special) == []


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_the_tokenizers(kind: str) -> None:
    tokenizer = BUILT[kind]
    for text, (ids, encoding) in zip(TEXTS, encode_placed(TEXTS, tokenizer), strict=True):
        expected = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert ids.tolist() == expected["input_ids"]
        assert encoding.offsets == expected["offset_mapping"]


def test_special_tokens_in_the_text_are_split_where_the_tokenizer_says_so() -> None:
    tokenizer = build("bos")
    assert encode_texts(["</s>"], tokenizer, special=False)[0].tolist() == [1]
    tokenizer.split_special_tokens = True
    expected = tokenizer("</s>", add_special_tokens=False)["input_ids"]
    assert encode_texts(["</s>"], tokenizer, special=False)[0].tolist() == expected != [1]


# Long texts.

pieces = st.sampled_from(
    [*TEXTS, "a b", "x", " ", "  ", "\n", "\n\n", " \n", "\t", "word", "7", "!", "\u4f60", "\u3000"]
)


@settings(max_examples=300)
@given(st.lists(pieces, max_size=30), st.integers(2, 40))
def test_cut_texts_give_the_same_tokens(parts: list[str], size: int) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "_MAX_PIECE", size)
        for kind in KINDS:
            ids = encode_texts([text, "short"], BUILT[kind], special=True)[0]
            assert ids.tolist() == BUILT[kind](text)["input_ids"], kind


def test_a_long_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    words = random.Random(0).choices(["red", "blue", "three\n", "4", "five."], k=20_000)
    text = " ".join(words)
    original = encode._build_ids
    monkeypatch.setattr(encode, "_MAX_PIECE", 10_000)
    monkeypatch.setattr(
        encode, "_build_ids", lambda ids: (sizes.append(len(ids)), original(ids))[1]
    )
    (ids,) = encode_texts([text], BUILT["bytes"], special=True)
    assert len(sizes) >= len(text) // 10_000
    assert sum(sizes) == len(ids)
    monkeypatch.undo()
    assert ids.tolist() == BUILT["bytes"](text)["input_ids"]


def test_a_text_without_white_space_stays_whole() -> None:
    assert list(encode._cut("x" * (encode._MAX_PIECE + 5))) == ["x" * (encode._MAX_PIECE + 5)]


def test_large_batches_go_through_the_library_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_MAX_CHARACTERS", 40)
    assert [len(group) for group in encode._group(["x" * 15] * 7)] == [2, 2, 2, 1]
    assert [len(group) for group in encode._group(["x" * 50, "y", "z"])] == [1, 2]
    expected = [BUILT["bos"](text)["input_ids"] for text in TEXTS]
    assert [ids.tolist() for ids in encode_texts(TEXTS, BUILT["bos"], special=True)] == expected


def test_tokens_of_several_words_forbid_cuts() -> None:
    vocabulary = {entry: n for n, entry in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert encode._allows_cuts(backend)
    joined = {**vocabulary, "a\u0120": 256, "a\u0120b": 257}
    merges = [("a", "\u0120"), ("a\u0120", "b")]
    backend.model = models.BPE(vocab=joined, merges=merges)
    assert not encode._allows_cuts(backend)
    assert not encode._allows_cuts(BUILT["prefixed"].backend_tokenizer)
