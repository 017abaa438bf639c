import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bigft.data.example import Conversation, Labelled, PromptAnswer, Text
from bigft.data.formats.table import Recognizer
from bigft.data.sources import corpus
from bigft.data.sources.corpus import compute_corpus_digest
from bigft.data.sources.derived.table import DERIVED, compute_derived_digest, read_derived
from bigft.errors import DataError

# Name -> columns, format, kind of example, and the least number of rows on Python 3.10 to 3.13,
# with or without tkinter and distutils.
EXPECTED = {
    "modules": ({"text", "label"}, "labelled", Labelled, 1200),
    "pairs": ({"sentence1", "sentence2", "label"}, "labelled", Labelled, 800),
    "topics": ({"text", "labels"}, "labelled", Labelled, 3000),
    "readability": ({"text", "label"}, "labelled", Labelled, 3000),
    "signatures": ({"source", "target"}, "translation", PromptAnswer, 1800),
    "summaries": ({"source", "target"}, "translation", PromptAnswer, 1200),
    "reading": ({"question", "context", "answers"}, "pairs", Conversation, 900),
    "code": ({"text"}, "text", Text, 3000),
    "prose": ({"text"}, "text", Text, 3000),
}

_PRINT_DIGESTS = """
import hashlib, json
from bigft.data.sources.derived.table import DERIVED, read_derived
for name in DERIVED:
    rows = json.dumps(list(read_derived(name)))
    print(name, hashlib.sha256(rows.encode()).hexdigest())
"""


def test_every_set_is_looked_at() -> None:
    assert list(EXPECTED) == list(DERIVED)


@pytest.mark.parametrize("name", DERIVED)
def test_rows_are_many_sorted_different_and_read_in_the_right_format(name: str, read_set) -> None:
    columns, format_name, kind, least = EXPECTED[name]
    rows = read_set(name)
    assert len(rows) >= least
    assert [documented for documented, _ in rows] == sorted(documented for documented, _ in rows)
    recognizer = Recognizer()
    for _, record in rows:
        assert set(record) == columns
        found, example = recognizer.read(record)
        assert found == format_name
        assert isinstance(example, kind)
    texts = [record.get("text") or record.get("source") for _, record in rows]
    if name in ("pairs", "reading"):
        texts = [record.get("sentence1") or record.get("context") for _, record in rows]
    assert len(set(texts)) == len(texts)
    assert all(isinstance(text, str) and text == text.strip() for text in texts)


def test_rows_are_the_same_in_another_process(read_set) -> None:
    expected = [
        f"{name} {hashlib.sha256(json.dumps(read_set(name)).encode()).hexdigest()}"
        for name in DERIVED
    ]
    result = subprocess.run(
        [sys.executable, "-c", _PRINT_DIGESTS],
        capture_output=True,
        text=True,
        check=True,
        # Sets and dictionaries of text have another order with another seed.
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert result.stdout.split("\n")[:-1] == expected


def test_nothing_is_imported() -> None:
    before = set(sys.modules)
    next(read_derived("signatures"))
    assert "antigravity" not in sys.modules
    assert set(sys.modules) == before


def test_digests_are_those_of_the_sources_and_of_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [compute_derived_digest(name) for name in DERIVED]
    assert len({*digests, compute_corpus_digest()}) == len(DERIVED) + 1
    assert digests == [compute_derived_digest(name) for name in DERIVED]
    monkeypatch.setattr("bigft.data.sources.derived.table._VERSION", "0")
    assert set(digests).isdisjoint(compute_derived_digest(name) for name in DERIVED)


def test_a_stripped_python_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text("def load(): pass\n" * 50)
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path))
    corpus.read_docstrings.cache_clear()
    for name in DERIVED:
        with pytest.raises(DataError, match=r"its sources (hold|give) only 0 .*--data"):
            next(read_derived(name))


def test_the_guide_lists_the_sets() -> None:
    guide = Path(__file__).parents[5] / "docs" / "guides" / "data.md"
    shown = re.findall(r"^\| `builtin/([a-z]+)` \| [\d,]+ \|", guide.read_text(), re.MULTILINE)
    assert shown == list(DERIVED)
