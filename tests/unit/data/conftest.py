"""The built-in tokenizer, trained once per test session, and small stores."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from bigft.data.builtin_tokenizer import load_builtin_tokenizer
from bigft.data.store import StoreWriter, TokenStore
from bigft.data.tokenize import Row

MakeStore = Callable[[Sequence[int]], TokenStore]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bigft-cache")


@pytest.fixture(scope="session")
def session_tokenizer(cache_dir: Path) -> PreTrainedTokenizerFast:
    return load_builtin_tokenizer(cache_dir)


@pytest.fixture
def tokenizer(
    cache_dir: Path, session_tokenizer: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """A fresh object, which a test may change."""
    return load_builtin_tokenizer(cache_dir)


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    """Make a store whose rows have these lengths; token n of row r is 100 * r + n."""

    def make(lengths: Sequence[int]) -> TokenStore:
        folder = tmp_path_factory.mktemp("store")
        writer = StoreWriter(folder)
        for number, length in enumerate(lengths):
            supervised = np.arange(length) >= max(1, length // 2)
            row = Row(np.arange(length, dtype=np.int32) + 100 * number, supervised)
            writer.append([row], digest=number)
        writer.finish()
        return TokenStore(folder)

    return make
