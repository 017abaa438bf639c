"""The built-in tokenizer, trained once per test session, and small stores."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import make_chunk, write_store
from transformers import PreTrainedTokenizerFast

from bigft.data.section import DataSection
from bigft.data.store.store import TokenStore
from bigft.data.tokens.builtin import load_builtin_tokenizer
from bigft.data.tokens.tokenize import Row

MakeStore = Callable[[Sequence[int]], TokenStore]
MakeSection = Callable[..., DataSection]
WriteLines = Callable[[str, Sequence[object]], str]


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
        rows = [
            Row(
                np.arange(length, dtype=np.int32) + 100 * number,
                np.arange(length) >= max(1, length // 2),
            )
            for number, length in enumerate(lengths)
        ]
        return write_store(tmp_path_factory.mktemp("store"), make_chunk(rows))

    return make


@pytest.fixture
def make_section(tmp_path: Path) -> MakeSection:
    """Make settings whose cache is this test's own."""

    def make(**settings: Any) -> DataSection:
        loading = {"cache_dir": str(tmp_path / "cache"), **settings.pop("loading", {})}
        return DataSection.model_validate({"loading": loading, **settings})

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Write objects as JSON lines, and texts as they stand; give the path."""

    def write(name: str, lines: Sequence[object]) -> str:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(text + "\n" for text in texts))
        return str(path)

    return write
