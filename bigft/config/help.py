"""Help pages and the settings reference, made from the sections' own docstrings.

Knows no particular setting: callers hand in the section models.
"""

import inspect
import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bigft.config.flags import FLAGS
from bigft.config.options import COMMANDS, options_of
from bigft.config.section import Section
from bigft.config.typed import fields_of, section_of

_WIDTH = 96
_INDENT = " " * 6

_FILES = {
    "config": 'DeepSpeed JSON: stage, offload, precision. `"auto"` in it is filled in.',
    "recipe": "YAML with the same keys as the flags; flags win over it.",
}
_LAUNCH = """\
usage: bigft train --config ds_configs/zero3.json [settings]
       deepspeed [--num_gpus N] launch_scripts/run.py --config ds_configs/zero3.json [settings]
"""
_RULES = """\
Every setting is a dotted path, e.g. --data.train_on all; the everyday ones have a short flag
too. A default yields to the recipe, and the recipe to a flag.
"""
_CONFIG_RULE = """\
--ds.PATH=VALUE edits the DeepSpeed JSON in memory, e.g. --ds.zero_optimization.stage=2.
"""


def render_overview(version: str) -> str:
    """Return the page of `bigft --help`."""
    verbs = [f"  {name:12} {command.summary}" for name, command in COMMANDS.items()]
    lines = [
        f"bigft {version}: full-parameter fine-tuning under DeepSpeed ZeRO",
        "",
        "usage: bigft COMMAND [settings]",
        "",
        *verbs,
        "",
        "`bigft COMMAND --help` lists the settings of a command, `bigft explain SETTING` one of",
        "them. `bigft --version` prints the version.",
    ]
    return "\n".join(lines) + "\n"


def render_command(name: str, run: type[Section]) -> str:
    """Return the page of `bigft COMMAND --help`.

    Args:
        name: The verb.
        run: Section model of a training run, or of the part of it that the command takes.
    """
    command = COMMANDS[name]
    if command.options is not None:
        word = command.word if command.is_word_required else f"[{command.word}]"
        entries = [_entry(f"--{path}", info) for path, info in options_of(command.options)]
        tail = " -- train [settings]" if command.takes_rest else ""
        usage = " ".join(f"usage: bigft {name} {word} [options]{tail}".split())
        about = inspect.cleandoc(command.options.__doc__ or "")
        return "\n".join([usage, "", about, "", *entries]) + "\n"
    word = f" [{command.word}]" if command.word else ""
    usage = _LAUNCH if name == "train" else f"usage: bigft {name}{word} [settings]\n"
    rules = _RULES + (_CONFIG_RULE if command.takes_config else "")
    flags = _flag_entries(run, takes_config=command.takes_config)
    own = _own_entries(name, command.own) if command.own is not None else ()
    return (
        "\n".join([usage, command.summary, "", *own, rules, *flags, *_dotted_entries(run)]) + "\n"
    )


def describe_type(info: FieldInfo) -> str:
    """Say which values a setting takes: `"adamw | adamw_8bit"`, `"whole number"`, `"text"`."""
    names = {int: "whole number", float: "number", bool: "true | false", str: "text"}
    kinds = [k for k in _union(info.annotation) if k is not type(None)]
    return " or ".join(names.get(kind, "") or _describe_generic(kind) for kind in kinds)


def show_default(info: FieldInfo) -> str:
    """Return the default as it would be typed; `none` when the setting is absent."""
    return show_value(info.get_default(call_default_factory=True))


def show_value(value: Any) -> str:
    """Return a value as it would be typed on a command line."""
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value, default=lambda section: section.model_dump(exclude_unset=True))
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else '""'


def render_reference(run: type[Section]) -> str:
    """Return the settings reference as Markdown; `docs/reference/settings.md` is this text."""
    short = {path: flag for flag, path in FLAGS.items()}
    lines = [
        "# Settings",
        "",
        "Generated from the sections; do not edit. Every setting is a dotted path; the everyday",
        "ones have a short flag too. DeepSpeed's own settings are in the JSON (`--config`) and in",
        "`--ds.PATH=VALUE`.",
        "",
        "| flag | meaning |",
        "|---|---|",
        *(f"| `--{flag}` | {meaning} |" for flag, meaning in _FILES.items()),
        "| `--dry_run` | resolve, check, print, stop |",
    ]
    for title, summary, fields in _groups(run):
        lines += ["", f"## {title}", "", summary, "", "| setting | values | default | meaning |"]
        lines.append("|---|---|---|---|")
        for path, info in fields:
            flag = f" (`--{short[path]}`)" if path in short else ""
            kind = describe_type(info).replace("|", "\\|")
            meaning = _sentence(info).replace("|", "\\|")
            lines.append(f"| `{path}`{flag} | {kind} | `{show_default(info)}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _groups(run: type[Section]) -> Iterator[tuple[str, str, list[tuple[str, FieldInfo]]]]:
    own = {name: info for name, info in run.model_fields.items() if section_of(info) is None}
    yield "run", "The run as a whole.", list(own.items())
    for name, info in run.model_fields.items():
        section = section_of(info)
        if section is not None:
            yield name, _paragraph(section.__doc__ or ""), list(fields_of(section, f"{name}."))


def _flag_entries(run: type[Section], *, takes_config: bool) -> Iterator[str]:
    fields = dict(fields_of(run))
    yield "Everyday settings:"
    for name, meaning in _FILES.items():
        if name != "config" or takes_config:
            yield _wrap(f"--{name} FILE", meaning)
    for flag, path in FLAGS.items():
        if path in fields:
            yield _entry(f"--{flag}", fields[path])
    for path, info in fields.items():
        if "." not in path and path not in FLAGS.values():
            yield _entry(f"--{path}", info)
    if takes_config:
        yield _wrap("--dry_run", "Resolve, check, print, stop.")


def _own_entries(name: str, own: type[Section]) -> Iterator[str]:
    yield f"Options of `bigft {name}`:"
    for path, info in fields_of(own):
        yield _entry(f"--{path}", info)
    yield ""


def _dotted_entries(run: type[Section]) -> Iterator[str]:
    short = set(FLAGS.values())
    for title, summary, fields in list(_groups(run))[1:]:
        rest = [(path, info) for path, info in fields if path not in short]
        if rest:
            yield f"\n{title}: {summary}"
        for path, info in rest:
            yield _entry(f"--{path}", info)


def _entry(flag: str, info: FieldInfo) -> str:
    text = f"{_sentence(info)} [{describe_type(info)}; default {show_default(info)}]"
    return _wrap(flag, text)


def _wrap(flag: str, text: str) -> str:
    body = textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join([f"  {flag}", *body])


def _sentence(info: FieldInfo) -> str:
    return _paragraph(info.description or "")


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _union(annotation: Any) -> tuple[Any, ...]:
    is_generic = typing.get_origin(annotation) in (list, dict, typing.Literal)
    arguments = typing.get_args(annotation)
    return (annotation,) if is_generic or not arguments else arguments


def _describe_generic(kind: Any) -> str:
    names: Mapping[Any, str] = {int: "whole number", float: "number", str: "text"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin is typing.Annotated:
        return names.get(arguments[0], "") or _describe_generic(arguments[0])
    if origin is list:
        return f"several of {_describe_generic(arguments[0])}, separated by commas"
    if origin is dict:
        if isinstance(arguments[1], type) and issubclass(arguments[1], Section):
            return "a mapping of names to settings, as JSON"
        return "name and number pairs, as JSON"
    return names.get(kind, str(kind))
