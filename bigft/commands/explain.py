"""`bigft explain [SETTING]`: meaning, default, value and origin of settings."""

import os
import sys
from collections.abc import Iterator

from pydantic.fields import FieldInfo

from bigft.config.deepspeed import find_value, has_value, leaves
from bigft.config.deepspeed_keys import KEYS
from bigft.config.flags import FLAGS, to_flag, to_path
from bigft.config.help import describe_type, show_default, show_value
from bigft.config.hints import explain_unknown, suggest
from bigft.config.request import Request
from bigft.config.typed import fields_of, find_field
from bigft.errors import ConfigError
from bigft.redact import redact_text
from bigft.run.report import origin_of, read_setting
from bigft.run.resolve import resolve
from bigft.run.resolved import Resolved
from bigft.run.settings import Run

_FILES = {
    "config": "The DeepSpeed JSON: stage, offload, precision, buffers.",
    "recipe": "A YAML with the same keys as the flags; flags win over it.",
    "dry_run": "Resolve, check, print, stop.",
}


def main(request: Request) -> None:
    """Print one setting, or the table of all of them, as resolved from the same flags."""
    name = request.words[0].lstrip("-") if request.words else ""
    if name:
        _check_exists(name)
    resolved = resolve(request, os.environ, needs_config=False)
    page = _explain(name, resolved) if name else "\n".join(_table(resolved))
    sys.stdout.write(redact_text(page) + "\n")


def _check_exists(name: str) -> None:
    """Refuse an unknown name before anything else is looked at."""
    fields = dict(fields_of(Run))
    if name in _FILES or find_field(fields, to_path(name)) is not None or _section(name, fields):
        return
    if name.startswith("ds."):
        return
    raise ConfigError(explain_unknown(name, [*FLAGS, *fields]).replace(f"--{name}", name, 1))


def _explain(name: str, resolved: Resolved) -> str:
    if name.startswith("ds."):
        return "\n".join(_explain_ds(name.removeprefix("ds."), resolved))
    if name in _FILES:
        return f"--{name}: {_FILES[name]}"
    fields = dict(fields_of(Run))
    path = to_path(name)
    info = find_field(fields, path)
    if info is None:
        return "\n".join(_rows(resolved, _section(name, fields)))
    owner = path if path in fields else path.rpartition(".")[0]
    meaning = " ".join((info.description or "").split())
    flags = [f"--{owner}"] if to_flag(owner) == f"--{owner}" else [to_flag(owner), f"--{owner}"]
    lines = [
        ", ".join(flags),
        f"  {meaning}",
        f"  values   {describe_type(info)}",
        f"  default  {show_default(info)}",
        f"  value    {show_value(read_setting(resolved.run, owner))}",
        f"  from     {origin_of(resolved, owner)}",
    ]
    return "\n".join(lines)


def _explain_ds(path: str, resolved: Resolved) -> Iterator[str]:
    kind = find_value(KEYS, path)
    if kind is None and not has_value(resolved.ds, path):
        parent = path.rpartition(".")[0]
        section = find_value(KEYS, parent) if parent else KEYS
        known = [f"{parent}.{key}".lstrip(".") for key in section or {}]
        raise ConfigError(f"ds.{path}: DeepSpeed has no such key{suggest(path, known, 'ds.')}")
    yield f"--ds.{path}"
    yield "  A setting of DeepSpeed: https://www.deepspeed.ai/docs/config-json/"
    if isinstance(kind, str):
        yield f"  values   {kind}"
    value = find_value(resolved.ds, path)
    if isinstance(value, dict):
        for leaf, inner in leaves(value, f"{path}."):
            yield f"  {leaf} = {show_value(inner)}   {resolved.origin.get(f'ds.{leaf}', '')}"
    elif value is None:
        yield "  value    not set" + ("" if resolved.config else " (no --config was given)")
    else:
        yield f"  value    {show_value(value)}"
        yield f"  from     {resolved.origin.get(f'ds.{path}', 'default')}"


def _section(name: str, fields: dict[str, FieldInfo]) -> list[str]:
    return [path for path in fields if path.startswith(f"{name}.")]


def _table(resolved: Resolved) -> Iterator[str]:
    yield from _rows(resolved, [path for path, _ in fields_of(Run)])
    if resolved.config:
        yield ""
        yield f"DeepSpeed ({resolved.config}):"
        rows = [
            (f"ds.{path}", show_value(value), resolved.origin[f"ds.{path}"])
            for path, value in leaves(resolved.ds)
        ]
        yield from _aligned(rows)


def _rows(resolved: Resolved, paths: list[str]) -> Iterator[str]:
    rows = [
        (path, show_value(read_setting(resolved.run, path)), origin_of(resolved, path))
        for path in paths
    ]
    yield from _aligned(rows)


def _aligned(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        yield f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}"
