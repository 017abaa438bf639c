import ast
import inspect
import shutil
import warnings

import pytest

from bigft.data.sources.corpus import read_docstrings
from bigft.data.sources.derived import texts


def test_signatures_are_those_of_the_sources(read_set, some_definitions) -> None:
    rows = dict(read_set("signatures"))
    assert rows["shutil.copymode"] == {
        "source": "def copymode(src, dst, *, follow_symlinks=True)",
        "target": "Copy mode bits from src to dst.",
    }
    assert (
        rows["shutil.copytree"]["target"]
        == (inspect.getdoc(shutil.copytree) or "").split(" and return")[0]
        + " and return the destination directory."
    )
    shapes: dict[str, list[str]] = {}
    num_plain = 0
    for definition in some_definitions:
        if definition.kind == "function" and definition.name in rows:
            shapes.setdefault(definition.name, []).append(ast.dump(definition.node.args))
            line = definition.lines[definition.node.lineno - 1].strip()
            num_plain += line == f"{rows[definition.name]['source']}:"
    # Most stand in one line, which is copied; all mean what the parser sees.
    assert len(shapes) > num_plain > 0.8 * len(shapes) > 100
    for name, record in rows.items():
        node = ast.parse(f"{record['source']}: pass").body[0]
        assert "\n" not in record["source"]
        assert name not in shapes or ast.dump(node.args) in shapes[name]


@pytest.mark.parametrize(
    ("source", "signature"),
    [
        ("def f(a, b = {1: 2}): pass", "def f(a, b = {1: 2})"),
        ("def f(\n    a,  # a: first\n    *, b=(1,\n 2)\n): pass", "def f(a, *, b=(1, 2))"),
        ("async def f(a=lambda: 0) -> A[B, C]:\n  pass", "async def f(a=lambda: 0) -> A[B, C]"),
        ("@wraps(g)\ndef f(a, \\\n      b): pass", "def f(a, b)"),
        ("class C:\n    def f(self, é='ü', ö=1): pass", "def f(self, é='ü', ö=1)"),
    ],
)
def test_a_signature_stands_in_one_line(source: str, signature: str) -> None:
    node = ast.parse(source).body[0]
    if isinstance(node, ast.ClassDef):
        node = node.body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    assert texts._find_signature(node, source.split("\n")) == signature


def test_a_signature_has_one_meaning(read_set) -> None:
    sources = [record["source"] for _, record in read_set("signatures")]
    assert "def close(self)" not in sources


def test_summaries_are_the_two_parts_of_a_docstring(read_set) -> None:
    docs = {doc.name: doc.text for doc in read_docstrings()}
    for name, record in read_set("summaries"):
        source, target = record["source"], record["target"]
        assert " ".join(docs[name].split()) == " ".join(f"{target} {source}".split())
        assert docs[name].endswith(source)
        assert target[0].isupper()
        assert "\n" not in target


def test_code_is_whole_definitions_and_no_line_is_used_twice(read_set) -> None:
    rows = read_set("code")
    whole: set[str] = set()
    for name, record in rows:
        text = record["text"]
        assert 200 <= len(text) <= 4000
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (node,) = ast.parse(text).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        assert node.name == name.split(".")[-1]
        if isinstance(node, ast.ClassDef):
            whole.add(name)
    for name, _ in rows:
        parts = name.split(".")
        assert whole.isdisjoint(".".join(parts[:end]) for end in range(1, len(parts))), name
    assert dict(rows)["shutil.copymode"]["text"] + "\n" == inspect.getsource(shutil.copymode)


def test_code_keeps_its_decorators_and_the_lines_of_its_texts() -> None:
    source = 'class C:\n    @property\n    def f(self):\n        """One\n  two\n        """\n'
    node = ast.parse(source).body[0].body[0]
    cut = texts._cut_out(node, source.split("\n"))
    assert cut == '@property\ndef f(self):\n    """One\n  two\n    """'


def test_prose_is_the_docstrings(read_set) -> None:
    docs = {doc.name: doc.text for doc in read_docstrings()}
    rows = dict(read_set("prose"))
    assert all(record["text"] == docs[name] for name, record in rows.items())
    assert {record["text"] for record in rows.values()} == set(docs.values())
