"""The built-in corpus: docstrings of the running Python's own standard library.

A class or function gives a question with its docstring as the answer. A module gives a question
answered by its first paragraph, and its remaining paragraphs as raw text; no sentence is used
twice, so the held-out share holds nothing that is also trained on. The sources are parsed with
`ast` and never imported.
"""

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import decode_source
from pathlib import Path
from typing import Any, Literal

from bigft.errors import DataError

_VERSION = "1"
"""Part of the digest; to be raised whenever the examples change for the same sources."""

_SKIPPED_FOLDERS = frozenset(
    (
        *("__pycache__", "site-packages", "test", "tests", "idlelib", "idle_test", "lib2to3"),
        *("turtledemo", "ensurepip", "pydoc_data", "lib-dynload", "encodings"),
    )
)
# The names that people import, for modules whose sources stand elsewhere.
_ALIASES = {
    "posixpath": "os.path",
    "genericpath": "os.path",
    "_pydecimal": "decimal",
    "_pyio": "io",
}
_MIN_CHARACTERS = 40
# A whole CPython 3.10 to 3.13 gives more than 4,000; a stripped one gives a handful or none.
_MIN_EXAMPLES = 1000

Kind = Literal["module", "class", "function"]
Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_QUESTIONS: Mapping[Kind, tuple[str, ...]] = {
    "module": (
        "What is the module `{}` for?",
        "Describe the Python module `{}`.",
        "When would I use `{}`?",
        "Introduce `{}` from the standard library.",
    ),
    "class": (
        "What is `{}`?",
        "Describe the class `{}`.",
        "What does a `{}` represent?",
        "Explain `{}` from the standard library.",
    ),
    "function": (
        "What does `{}` do?",
        "Describe the function `{}`.",
        "How does `{}` work?",
        "Explain `{}` from the standard library.",
    ),
}


@dataclass(frozen=True)
class Docstring:
    """The documentation of a public name of the standard library."""

    name: str
    """As one would import it: `os.path.join`."""

    kind: Kind
    text: str
    """A few words at least, without the indentation."""


@dataclass(frozen=True)
class Definition:
    """What a public name of the standard library leads to, documented or not."""

    name: str
    kind: Kind
    node: Node
    lines: list[str]
    """Of the whole module, without their ends; `node` counts them from 1."""


def read_corpus() -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the examples in a fixed order: the documented name, and a `messages` or `text` record.

    Raises:
        DataError: This Python was installed without the sources of its standard library.
    """
    seen: set[str] = set()
    for doc in read_docstrings():
        parts = [doc.text]
        if doc.kind == "module":
            parts = doc.text.split("\n\n", 1)
        for number, part in enumerate(part.strip() for part in parts):
            if len(part) >= _MIN_CHARACTERS and part not in seen:
                seen.add(part)
                yield doc.name, _build_record(doc, part) if number == 0 else {"text": part}


@cache
def compute_corpus_digest() -> str:
    """Compute a digest of the sources that the corpus is read from.

    Raises:
        DataError: There are no such sources.
    """
    digest = hashlib.blake2b(_VERSION.encode(), digest_size=16)
    for module, path in _find_modules():
        data = path.read_bytes()
        digest.update(f"\0{module}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def _find_modules() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    modules = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and parts[0] in sys.stdlib_module_names and _SKIPPED_FOLDERS.isdisjoint(parts):
            name = ".".join((_ALIASES.get(parts[0], parts[0]), *parts[1:]))
            if _is_public(name):
                modules.append((name, path))
    if not modules:
        raise build_stripped_error(f"{root} holds no Python sources")
    return sorted(modules)


@cache
def read_docstrings() -> tuple[Docstring, ...]:
    """Read all docstrings, sorted by name; kept, for the tokenizer and the data both want them.

    Raises:
        DataError: This Python was installed without the sources of its standard library.

    Memory: about 3 MB, for as long as the process lives.
    """
    found: dict[str, Docstring] = {}
    for definition in read_definitions():
        text = find_docstring(definition)
        if text and definition.name not in found:
            found[definition.name] = Docstring(definition.name, definition.kind, text)
    if len(found) < _MIN_EXAMPLES:
        raise build_stripped_error(f"its sources hold only {len(found)} docstrings")
    return tuple(found[name] for name in sorted(found))


def read_definitions() -> Iterator[Definition]:
    """Read what public names lead to, module by module.

    A name comes twice where a module defines it twice, for two platforms.

    Raises:
        DataError: There are no sources.

    Memory: the syntax tree of one module.
    """
    for module, path in _find_modules():
        try:
            tree, lines = _parse(path)
        except (SyntaxError, ValueError):
            continue  # Some distributions ship sources of another Python version.
        for name, kind, node in _walk(tree, module, "module"):
            yield Definition(name, kind, node, lines)


def find_docstring(definition: Definition) -> str | None:
    """Find the documentation of a definition, if it has 40 characters."""
    text = ast.get_docstring(definition.node)
    return text.rstrip() if text and len(text) >= _MIN_CHARACTERS else None


def build_stripped_error(reason: str) -> DataError:
    """Say what to do where this Python has too little of its standard library."""
    return DataError(
        f"the built-in corpus is read from this Python's standard library, but {reason} "
        f"({sys.executable} seems to be a stripped installation); give your own text with --data"
    )


def _parse(path: Path) -> tuple[ast.Module, list[str]]:
    data = path.read_bytes()
    with warnings.catch_warnings():
        # Old modules hold escapes like "\d" that the parser warns about.
        warnings.simplefilter("ignore")
        return ast.parse(data), decode_source(data).split("\n")


def _walk(node: Node, name: str, kind: Kind) -> Iterator[tuple[str, Kind, Node]]:
    yield name, kind, node
    if kind == "function":
        return  # What stands inside a function cannot be reached by a name.
    pending: list[ast.stmt] = list(reversed(node.body))
    while pending:
        child = pending.pop()
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if _is_public(child.name):
                inner: Kind = "class" if isinstance(child, ast.ClassDef) else "function"
                yield from _walk(child, f"{name}.{child.name}", inner)
        elif isinstance(child, ast.If | ast.Try | ast.With):
            # Definitions for one platform or without an accelerator module.
            blocks = [child.body, getattr(child, "orelse", []), getattr(child, "finalbody", [])]
            blocks += [handler.body for handler in getattr(child, "handlers", [])]
            pending += reversed([statement for block in blocks for statement in block])


def _build_record(doc: Docstring, answer: str) -> dict[str, Any]:
    phrasings = _QUESTIONS[doc.kind]
    choice = hashlib.blake2b(doc.name.encode(), digest_size=4).digest()
    question = phrasings[int.from_bytes(choice, "little") % len(phrasings)].format(doc.name)
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))
