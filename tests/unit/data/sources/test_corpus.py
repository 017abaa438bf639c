import inspect
import json
import os.path
import sys
from pathlib import Path

import pytest

from bigft.data.sources import corpus
from bigft.data.sources.corpus import compute_corpus_digest, read_corpus
from bigft.errors import DataError


def test_corpus_has_thousands_of_different_examples_in_a_fixed_order() -> None:
    examples = list(read_corpus())
    texts = [json.dumps(record) for _, record in examples]
    assert len(set(texts)) == len(texts) > 3000
    assert examples == list(read_corpus())
    names = [name for name, _ in examples]
    assert names == sorted(names)


def test_an_answer_is_the_docstring_of_what_is_asked_for() -> None:
    records = dict(read_corpus())
    question, answer = records["os.path.join"]["messages"]
    assert question["role"] == "user"
    assert "`os.path.join`" in question["content"]
    expected = inspect.getdoc(os.path.join) or ""
    assert answer == {"role": "assistant", "content": expected}


def test_no_text_of_a_module_is_used_twice() -> None:
    answers = [r["messages"][1]["content"] for _, r in read_corpus() if "messages" in r]
    texts = [record["text"] for _, record in read_corpus() if "text" in record]
    assert len(texts) > 50
    assert set(texts).isdisjoint(answers)


def test_nothing_is_imported() -> None:
    before = set(sys.modules)
    corpus.read_docstrings.cache_clear()
    list(read_corpus())
    assert "antigravity" not in sys.modules
    assert set(sys.modules) == before


def test_a_stripped_python_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda _: str(tmp_path))
    functions = (compute_corpus_digest, corpus.read_docstrings)
    for function in functions:
        function.cache_clear()
    with pytest.raises(DataError, match=r"no Python sources.*--data"):
        compute_corpus_digest()
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text(f'"""{"x" * 50}"""')
    with pytest.raises(DataError, match="only 1 docstrings"):
        list(read_corpus())
    for function in functions:
        function.cache_clear()


def test_definitions_are_found_where_they_can_be_reached() -> None:
    doc = '"""' + "d" * 50 + '"""'
    lines = [
        f"def one():\n    {doc}\n    def inner():\n        {doc}",
        f"try:\n    import x\nexcept ImportError:\n    def two():\n        {doc}",
        f"class Three:\n    {doc}\n    def method(self):\n        {doc}",
        f"def _private():\n    {doc}",
        'def short():\n    """Too short."""',
    ]
    tree = corpus.ast.parse("\n".join(lines))
    walked = [corpus.Definition(*found, []) for found in corpus._walk(tree, "m", "module")]
    names = [found.name for found in walked]
    assert names == ["m", "m.one", "m.two", "m.Three", "m.Three.method", "m.short"]
    assert [found.name for found in walked if corpus.find_docstring(found)] == names[1:-1]
