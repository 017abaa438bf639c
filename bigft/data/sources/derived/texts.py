"""Texts to go on with, and texts with a shorter text to write: code, prose, summaries."""

import ast
import tokenize
from collections.abc import Iterator

from bigft.data.sources.corpus import find_docstring, read_definitions, read_docstrings
from bigft.data.sources.derived.rows import Row, keep_clear, keep_first, read_short_docstrings
from bigft.data.sources.derived.sentences import split_first_sentence

_CODE_CHARACTERS = (200, 4000)
_MIN_REST = 80
_OPENING, _CLOSING = tuple("([{"), tuple(")]}")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def read_prose() -> Iterator[Row]:
    """Read the docstrings as they stand."""
    return keep_first(((doc.name, {"text": doc.text}) for doc in read_docstrings()), "text")


def read_code() -> Iterator[Row]:
    """Read the sources of public functions and classes; no line is used twice."""
    return keep_first(_read_code(), "text")


def read_signatures() -> Iterator[Row]:
    """Read what functions look like, with the first sentence of their docstrings.

    What several functions look like, `def close(self)`, is left out: it does not say what they do.
    """
    return keep_clear(_read_signatures(), "source", "target")


def read_summaries() -> Iterator[Row]:
    """Read docstrings without their first sentence, and that sentence."""
    return keep_clear(_read_summaries(), "source", "target")


def _read_code() -> Iterator[Row]:
    least, most = _CODE_CHARACTERS
    inside = "."
    for definition in read_definitions():
        # The methods of a class that is a row follow it, and are no rows of their own.
        if definition.name.startswith(inside) or isinstance(definition.node, ast.Module):
            continue
        text = _cut_out(definition.node, definition.lines)
        inside = "."
        if least <= len(text) <= most:
            inside = f"{definition.name}."
            yield definition.name, {"text": text}


def _cut_out(node: ast.ClassDef | _Function, lines: list[str]) -> str:
    """Cut out a definition with its decorators, moved to the left edge."""
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    chosen = lines[start - 1 : node.end_lineno]
    margin = chosen[0][: len(chosen[0]) - len(chosen[0].lstrip())]
    # Not textwrap.dedent: a line of a text may stand further left, and stays there.
    return "\n".join(line.removeprefix(margin) for line in chosen)


def _read_signatures() -> Iterator[Row]:
    for definition in read_definitions():
        if isinstance(definition.node, ast.FunctionDef | ast.AsyncFunctionDef):
            split = split_first_sentence(find_docstring(definition) or "")
            if split:
                source = _find_signature(definition.node, definition.lines)
                yield definition.name, {"source": source, "target": split[0]}


def _find_signature(node: _Function, lines: list[str]) -> str:
    """Find what stands before the colon of a function, in one line, without comments."""
    rows: list[str] = []
    depth, place = 0, (0, 0)
    rest = (f"{line}\n" for line in lines[node.lineno - 1 :])
    for token in tokenize.generate_tokens(lambda: next(rest, "")):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT):
            continue
        if token.string == ":" and depth == 0:
            break
        depth += (token.string in _OPENING) - (token.string in _CLOSING)
        number, column = token.start
        if number != place[0]:
            rows.append(token.string)
        else:
            rows[-1] += lines[node.lineno + number - 2][place[1] : column] + token.string
        place = token.end
    return _join(rows)


def _join(rows: list[str]) -> str:
    joined = ""
    for row in rows:
        is_tight = not joined or joined[-1] in _OPENING or row[0] in _CLOSING
        joined += row if is_tight else f" {row}"
    return joined


def _read_summaries() -> Iterator[Row]:
    for doc in read_short_docstrings():
        split = split_first_sentence(doc.text)
        if split and len(split[1]) >= _MIN_REST:
            sentence, rest = split
            yield doc.name, {"source": rest, "target": sentence}
