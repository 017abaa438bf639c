import ast
import math
import re
from collections import Counter

import pytest

from bigft.data.sources.corpus import find_docstring
from bigft.data.sources.derived import labels


def test_modules_are_about_equally_frequent_classes(read_set) -> None:
    counts = Counter(record["label"] for _, record in read_set("modules"))
    assert len(counts) == 22
    assert max(counts.values()) <= 2.5 * min(counts.values())


def test_no_text_names_the_module_that_it_is_from(read_set) -> None:
    for name, record in read_set("modules"):
        module = record["label"]
        assert name.split(".")[0] == module
        assert not re.search(rf"\b{module}\b", record["text"], re.IGNORECASE), record
    assert (
        labels._hide("json", "JSON: see json.loads, not jsonl.") == "it: see it.loads, not jsonl."
    )


def test_what_two_modules_say_is_asked_of_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"ftplib.FTP.close": "Close the connection.", "smtplib.SMTP.close": "Close the one."}
    texts |= {"poplib.POP3.close": "Close the connection."}
    docs = [labels.Docstring(name, "function", text) for name, text in texts.items()]
    monkeypatch.setattr(labels, "read_short_docstrings", lambda: iter(docs))
    assert list(labels.read_modules()) == [
        ("smtplib.SMTP.close", {"text": "Close the one.", "label": "smtplib"})
    ]


def test_pairs_are_half_of_one_docstring_and_half_of_two_modules(read_set) -> None:
    rows = read_set("pairs")
    counts = Counter(record["label"] for _, record in rows)
    assert counts["same"] == counts["different"] == len(rows) / 2
    seconds = [record["sentence2"] for _, record in rows]
    sentences = [record["sentence1"] for _, record in rows] + seconds
    assert len(set(sentences)) == len(sentences)

    paragraphs: dict[str, set[str]] = {}
    for doc in labels.read_short_docstrings():
        for paragraph in labels.find_paragraphs(doc.text):
            paragraphs.setdefault(paragraph, set()).add(doc.name)
    for name, record in rows:
        assert name in paragraphs[record["sentence1"]]
        others = paragraphs[record["sentence2"]]
        if record["label"] == "same":
            assert name in others
        else:
            assert any(other.split(".")[0] != name.split(".")[0] for other in others)
            assert name not in others


def test_each_topic_is_had_by_many_and_lacked_by_many(read_set) -> None:
    rows = read_set("topics")
    counts = Counter(label for _, record in rows for label in record["labels"])
    assert set(counts) == {"class", "method", "returns", "raises", "loops", "defaults"}
    assert all(0.1 < count / len(rows) < 0.9 for count in counts.values())
    assert any(not record["labels"] for _, record in rows)


def test_topics_are_those_of_the_source(read_set, some_definitions) -> None:
    rows = dict(read_set("topics"))
    assert rows["json.decoder.JSONDecodeError"]["labels"] == ["class"]
    # An oracle that reads the words of the sources, where these are plain to see.
    for definition in some_definitions:
        node = definition.node
        if not isinstance(node, ast.FunctionDef) or definition.name not in rows:
            continue
        topics = rows[definition.name]["labels"]
        code = ast.unparse(node.body[1:])
        if "def " not in code and find_docstring(definition) == rows[definition.name]["text"]:
            assert ("raises" in topics) == bool(re.search(r"^\s*raise\b", code, re.M))
            assert ("returns" in topics) == bool(re.search(r"^\s*return (?!None$)", code, re.M))
            assert ("loops" in topics) == bool(re.search(r"^\s*(for|while) ", code, re.M))
            assert ("defaults" in topics) == ("=" in ast.unparse(node.args))


@pytest.mark.parametrize(
    ("source", "topics"),
    [
        ("def f(a): pass", []),
        ("def f(a, *, b): return", []),
        ("def f(a, *, b=1): return None", ["defaults"]),
        (
            "def f(a=0):\n  while a:\n    raise a\n  return 1",
            "returns raises loops defaults".split(),
        ),
        ("def f():\n  def g():\n    return 1\n  class C:\n    for x in y: raise x", []),
        ("async def f():\n  async for x in y:\n    if x: return x", ["returns", "loops"]),
        ("class C:\n  def f(self, a=1): return a", ["class"]),
    ],
)
def test_topics_are_of_the_function_itself(source: str, topics: list[str]) -> None:
    assert labels._find_topics(ast.parse(source).body[0], is_method=False) == topics


def test_readability_is_counted(read_set) -> None:
    for _, record in read_set("readability"):
        assert len(record["label"]) == 2
        for number in record["label"]:
            assert isinstance(number, float)
            assert math.isfinite(number)
            assert number == round(number, 4)
    numbers = dict(read_set("readability"))["threading.Condition.notify_all"]
    # "Wake up all threads waiting on this condition." and a second sentence of 15 words.
    text = numbers["text"]
    words = re.findall(r"[A-Za-z]+", text)
    sentences = [part for part in re.split(r"\.(?:\s|$)", text) if part]
    expected = [sum(map(len, words)) / len(words), math.log(len(words) / len(sentences))]
    assert numbers["label"] == [round(number, 4) for number in expected]
