"""Reads the DeepSpeed JSON strictly, and edits it in memory.

The file stays DeepSpeed's own: nothing of bigft is in it, and other tools can use it. DeepSpeed
itself reads it with a lenient parser and ignores most unknown keys; here every doubt is an error
that names the line. What the keys mean is judged in `bigft.config.deepspeed_check`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from bigft.config.hints import suggest_file
from bigft.errors import ConfigError

AUTO = "auto"
"""The value that leaves a decision to the run."""

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]:,]')
_WORDS = {"True": True, "False": False, "None": None}


def shipped_configs() -> list[Path]:
    """Return the JSON files in the repository's `ds_configs/`; empty when installed without."""
    folder = Path(__file__).resolve().parents[2] / "ds_configs"
    return sorted(folder.glob("*.json"))


def read_json(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON, refusing what DeepSpeed's own reader lets pass.

    Raises:
        ConfigError: The file is missing, is not JSON, or says something twice.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"--config {path}: {_why_missing(file)}")
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_refuse_constant)
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"--config {path}: {_syntax_error(text, error)}") from None
    except ValueError as error:
        raise ConfigError(f"--config {path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: holds no JSON object; it must start with {{")
    twice = [f"{key} in lines {first} and {second}" for key, first, second in _duplicates(text)]
    if twice:
        raise ConfigError(f"--config {path}: the same key twice: {'; '.join(twice)}")
    return content


def parse_value(text: str) -> Any:
    """Read the value of a `--ds.` flag: JSON where it is JSON, text otherwise."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text


def find_value(tree: dict[str, Any], path: str) -> Any:
    """Return the value at a dotted path, or None when it is absent."""
    node: Any = tree
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    return node


def has_value(tree: dict[str, Any], path: str) -> bool:
    """Say whether a dotted path is present, whatever its value."""
    parent, _, key = path.rpartition(".")
    node = find_value(tree, parent) if parent else tree
    return isinstance(node, dict) and key in node


def set_value(tree: dict[str, Any], path: str, value: Any) -> None:
    """Write a value at a dotted path, making sections on the way.

    Raises:
        ConfigError: The way leads through something that is not a section.
    """
    *sections, key = path.split(".")
    node = tree
    for depth, name in enumerate(sections, 1):
        if node.get(name) is None:
            node[name] = {}
        if not isinstance(node[name], dict):
            raise ConfigError(
                f"--ds.{path}: {'.'.join(sections[:depth])} is {json.dumps(node[name])} in the "
                "JSON, not a section"
            )
        node = node[name]
    node[key] = value


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted path with its value; sections themselves are not yielded."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _why_missing(file: Path) -> str:
    if file.is_dir():
        return "is a folder, not a JSON file"
    inside = sorted(p for p in file.parent.glob("*.json")) if file.parent.is_dir() else []
    near = suggest_file(file, [p.name for p in inside])
    shipped = shipped_configs()
    if not shipped:
        return f"no such file{near}"
    listing = ", ".join(p.name for p in shipped)
    return f"no such file{near or '.'} In {shipped[0].parent}: {listing}"


def _syntax_error(text: str, error: json.JSONDecodeError) -> str:
    lines = text.splitlines()
    line = lines[error.lineno - 1] if error.lineno <= len(lines) else ""
    comment = "//" in line or "#" in line or "/*" in line
    hint = " (JSON has no comments)" if comment else ""
    return (
        f"not JSON: {error.msg} at line {error.lineno} column {error.colno}{hint}\n"
        f"    {line}\n    {' ' * (error.colno - 1)}^"
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _duplicates(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield (key, line, line) for each key that one object holds twice; the text is valid JSON."""
    stack: list[dict[str, int] | None] = []
    last = ("", 0)
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in "{[":
            stack.append({} if word == "{" else None)
        elif word in "}]":
            stack.pop()
        elif word == ":":
            key, start = last
            seen = stack[-1]
            line = text.count("\n", 0, start) + 1
            if seen is not None and key in seen:
                yield key, seen[key], line
            elif seen is not None:
                seen[key] = line
        elif word != ",":
            last = (word, token.start())
