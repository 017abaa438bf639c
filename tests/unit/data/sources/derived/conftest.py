"""The derived sets, each read once: the syntax trees of the whole library take seconds."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from bigft.data.sources import corpus
from bigft.data.sources.derived.table import read_derived

ReadSet = Callable[[str], list[tuple[str, dict[str, Any]]]]


@pytest.fixture(scope="session")
def read_set() -> ReadSet:
    """Read a set as pairs of a name and a record."""
    return cache(lambda name: list(read_derived(name)))


@pytest.fixture
def some_definitions(monkeypatch: pytest.MonkeyPatch) -> Iterator[corpus.Definition]:
    """What a tenth of the library defines, to compare rows with."""
    chosen = ("argparse", "asyncio", "http", "json", "logging", "shutil", "tarfile", "typing")
    found = [module for module in corpus._find_modules() if module[0].split(".")[0] in chosen]
    monkeypatch.setattr(corpus, "_find_modules", lambda: found)
    return corpus.read_definitions()
