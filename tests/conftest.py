"""Shared fixtures: ranks, tiny models, and a clean process for every test."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
# A busy machine is not a failing test.
hypothesis.settings.register_profile("bigft", deadline=None)
hypothesis.settings.load_profile("bigft")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def two_ranks() -> Iterator["RankPool"]:  # noqa: F821
    """Two processes with DeepSpeed on the CPU accelerator, shared by the whole session."""
    from ranks import RankPool

    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def one_rank() -> Iterator["RankPool"]:  # noqa: F821
    """One process with a process group of its own."""
    from ranks import RankPool

    pool = RankPool(1)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with weights (`model/`, `tied/`) and data (`chat.jsonl`) for many tests."""
    from making import make_messages, make_model

    folder = tmp_path_factory.mktemp("shared")
    make_model(folder / "model")
    make_model(folder / "tied", tie_word_embeddings=True, seed=1)
    make_messages(folder / "chat.jsonl")
    return folder


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose larger matrices are swapped to NVMe also in bf16: 1 MiB for each of 2 ranks."""
    from making import make_model

    folder = tmp_path_factory.mktemp("wide") / "model"
    return make_model(folder, hidden_size=512, intermediate_size=2048, num_hidden_layers=1)
