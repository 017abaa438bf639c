"""A tokenizer that knows masks and separates pairs, as BERT's do."""

from typing import Any

import pytest
from making import make_tokenizer


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Byte-level, adds nothing by itself."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def bert_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """WordPiece with [CLS], [SEP], [MASK] and token types."""
    from making import WORDS
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    pieces = sorted({word[:2] for word in WORDS} | {f"##{word[2:]}" for word in WORDS if word[2:]})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*special, *pieces, *WORDS[::3]])}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    return BertTokenizerFast.from_pretrained(folder)
