"""Docstrings with labels: one class, several labels, numbers, and pairs of paragraphs."""

import ast
import math
import re
from collections import defaultdict
from collections.abc import Iterator

from bigft.data.sources.corpus import Docstring, find_docstring, read_definitions
from bigft.data.sources.derived.rows import (
    MAX_CHARACTERS,
    Row,
    keep_clear,
    keep_first,
    rank,
    read_short_docstrings,
)
from bigft.data.sources.derived.sentences import find_paragraphs, find_sentence_words

_NUM_MODULES = 22
# The largest has 560 docstrings, the 22nd 50: with at most 90 no class is twice as frequent as
# another one.
_MAX_PER_MODULE = 90
_MIN_WORDS = 5


def read_modules() -> Iterator[Row]:
    """Read docstrings with the top-level module or package that each is from, one of 22."""
    rows: dict[str, list[Row]] = defaultdict(list)
    # What several modules say, like "Close the connection.", is a question without an answer.
    for name, record in keep_clear(_read_modules(), "text", "label"):
        rows[record["label"]].append((name, record))
    largest = sorted(rows, key=lambda module: (-len(rows[module]), module))[:_NUM_MODULES]
    for module in largest:
        yield from sorted(rows[module], key=lambda row: rank(row[0]))[:_MAX_PER_MODULE]


def read_topics() -> Iterator[Row]:
    """Read docstrings of classes and functions with what the source behind each has.

    The labels are `class`, `method`, `returns` (a value), `raises` (itself), `loops` and
    `defaults` (of arguments), in this order; a plain function has none of them.
    """
    return keep_clear(_read_topics(), "text", "labels")


def read_readability() -> Iterator[Row]:
    """Read docstrings with two numbers: characters per word, and log words per sentence."""
    return keep_first(_read_readability(), "text")


def read_pairs() -> Iterator[Row]:
    """Read pairs of paragraphs, of one docstring or of two modules, each half of the rows.

    No paragraph is used twice. In both halves the first is an opening one and the second is not, so
    that its place says nothing.
    """
    found = sorted(_find_pairs(), key=lambda pair: rank(pair[0].name))
    half = len(found) // 2
    for doc, first, second in found[:half]:
        yield doc.name, {"sentence1": first, "sentence2": second, "label": "same"}
    # Sorted by module and moved on by the size of the largest one, each meets another one.
    others = sorted(found[half : 2 * half], key=lambda pair: _find_module(pair[0]))
    modules = [_find_module(doc) for doc, _, _ in others]
    step = max(map(modules.count, modules), default=0)
    for number, (doc, first, _) in enumerate(others):
        other, _, second = others[(number + step) % len(others)]
        if _find_module(doc) != _find_module(other):
            yield doc.name, {"sentence1": first, "sentence2": second, "label": "different"}


def _read_modules() -> Iterator[Row]:
    for doc in read_short_docstrings():
        module = _find_module(doc)
        yield doc.name, {"text": _hide(module, doc.text), "label": module}


def _find_module(doc: Docstring) -> str:
    return doc.name.partition(".")[0]


def _hide(module: str, text: str) -> str:
    """Put "it" in place of the module's name, which would give the label away."""
    return re.sub(rf"\b{re.escape(module)}\b", "it", text, flags=re.IGNORECASE)


def _read_topics() -> Iterator[Row]:
    classes: set[str] = set()
    for definition in read_definitions():
        node, text = definition.node, find_docstring(definition)
        if isinstance(node, ast.ClassDef):
            classes.add(definition.name)
        if text and len(text) <= MAX_CHARACTERS and not isinstance(node, ast.Module):
            is_method = definition.name.rpartition(".")[0] in classes
            yield definition.name, {"text": text, "labels": _find_topics(node, is_method)}


def _find_topics(
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool
) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return ["class"]
    own = list(_walk_own(node))
    returned = [found.value for found in own if isinstance(found, ast.Return)]
    has = {
        "method": is_method,
        "returns": any(value and ast.unparse(value) != "None" for value in returned),
        "raises": any(isinstance(found, ast.Raise) for found in own),
        "loops": any(isinstance(found, ast.For | ast.AsyncFor | ast.While) for found in own),
        "defaults": bool(node.args.defaults) or any(node.args.kw_defaults),
    }
    return [topic for topic, is_there in has.items() if is_there]


def _walk_own(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """Walk through the body of a function, but not into the functions that it defines."""
    pending: list[ast.AST] = list(node.body)
    while pending:
        found = pending.pop()
        yield found
        if not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            pending += ast.iter_child_nodes(found)


def _read_readability() -> Iterator[Row]:
    for doc in read_short_docstrings():
        sentences = find_sentence_words(doc.text)
        words = [word for sentence in sentences for word in sentence]
        if len(words) >= _MIN_WORDS:
            numbers = sum(map(len, words)) / len(words), math.log(len(words) / len(sentences))
            yield doc.name, {"text": doc.text, "label": [round(number, 4) for number in numbers]}


def _find_pairs() -> Iterator[tuple[Docstring, str, str]]:
    seen: set[str] = set()
    for doc in read_short_docstrings():
        first, second, *_ = (*find_paragraphs(doc.text), "", "")
        if second and first != second and seen.isdisjoint((first, second)):
            seen.update((first, second))
            yield doc, first, second
