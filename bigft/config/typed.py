"""From text to sections: reads flags and recipes, and validates them against section models.

Nothing is judged one by one: every function collects its problems, so that a user sees all of
them at once.
"""

import copy
import json
import types
import typing
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bigft.config.flags import FLAGS, to_path
from bigft.config.hints import explain_unknown, find_nearest, suggest, suggest_file
from bigft.config.section import Section
from bigft.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Typed:
    """A value that somebody wrote, and where."""

    value: Any
    source: str
    """`flag --learning_rate`, `recipe x.yaml` or `ds_configs/zero3.json: optimizer.params.lr`."""

    def __str__(self) -> str:
        """Show the value the way it was written."""
        shown = self.value if isinstance(self.value, str) else json.dumps(self.value)
        if self.source.startswith("flag "):
            return f"{self.source.removeprefix('flag ')}={shown}"
        return f"{shown} in {self.source}"


def fields_of(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted path and field of every setting of a section and its subsections."""
    for name, info in model.model_fields.items():
        inner = section_of(info)
        if inner is not None:
            yield from fields_of(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{info.alias or name}", info


def section_of(info: FieldInfo) -> type[Section] | None:
    """Return the section model of a field that holds a section, else None."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def is_boolean(info: FieldInfo) -> bool:
    """Say whether a bare flag can set this field."""
    return info.annotation is bool


def read_flags(
    settings: Mapping[str, str], model: type[Section], problems: list[str]
) -> dict[str, Typed]:
    """Turn flags into typed values by dotted path; unknown names become problems."""
    fields = dict(fields_of(model))
    known = [*FLAGS, *fields, "config", "recipe"]
    typed: dict[str, Typed] = {}
    for name, text in settings.items():
        path = to_path(name)
        if find_field(fields, path) is None:
            inside = [p for p in fields if p.startswith(f"{path}.")]
            problems.append(
                f"--{name}: names a section; write --{inside[0]} or another setting of it"
                if inside
                else explain_unknown(name, known)
            )
            continue
        typed[path] = Typed(_from_text(text, fields.get(path)), f"flag --{name}")
    return typed


def read_recipe(path: str, model: type[Section], problems: list[str]) -> dict[str, Typed]:
    """Read a recipe YAML into typed values by dotted path; mistakes become problems."""
    try:
        content = load_yaml(path)
    except ConfigError as error:
        problems.append(str(error))
        return {}
    fields = dict(fields_of(model))
    known = [*FLAGS, *fields, "config"]
    typed: dict[str, Typed] = {}
    written: dict[str, str] = {}
    for name, value in _flatten(content, fields, ""):
        setting = to_path(name)
        if setting in written:
            problems.append(
                f"recipe {path}: {written[setting]} and {name} are one setting. Drop one of them"
            )
        elif setting != "config" and find_field(fields, setting) is None:
            problems.append(f"recipe {path}: {_unknown_key(name, known)}")
        else:
            typed[setting] = Typed(value, f"recipe {path}")
        written[setting] = name
    return typed


def find_field(fields: Mapping[str, FieldInfo], path: str) -> FieldInfo | None:
    """Return the field a path sets; a path may also lead into a mapping field."""
    if path in fields:
        return fields[path]
    parents = (path.rsplit(".", count)[0] for count in range(1, path.count(".") + 1))
    found = next((fields[parent] for parent in parents if parent in fields), None)
    return found if found is not None and _is_mapping(found) else None


def build_section(
    model: type[SectionT], typed: MutableMapping[str, Typed], problems: list[str]
) -> SectionT:
    """Validate typed values into a section; what does not fit is reported and taken out."""
    while True:
        try:
            return model.model_validate(_nest(typed))
        except ValidationError as error:
            # Without the bad ones, the checks that follow can find the other mistakes.
            for path, message in _rejected(error, typed).items():
                problems.append(f"{typed.pop(path)}: {message}")


def _rejected(error: ValidationError, wanted: Mapping[str, Typed]) -> dict[str, str]:
    rejected: dict[str, str] = {}
    for entry in error.errors():
        place = ".".join(str(part) for part in entry["loc"])
        path = next((p for p in wanted if place == p or place.startswith(f"{p}.")), None)
        # A mapping's keys may have been given one by one; then the mapping is the place.
        path = path or next((p for p in wanted if p.startswith(f"{place}.")), None)
        if path is None:
            raise error
        message = entry["msg"][:1].lower() + entry["msg"][1:]
        if place.startswith(f"{path}."):
            message = f"{place.removeprefix(f'{path}.')}: {message}"
        choices = entry.get("ctx", {}).get("expected", "")
        if entry["type"] == "literal_error":
            message += suggest(str(entry["input"]), [c.strip("'") for c in _split(choices)])
        elif entry["type"] == "dict_type":
            message = f"has to be a mapping; write --{path}.NAME VALUE for each of its entries"
        rejected[path] = "; ".join(filter(None, [rejected.get(path), message]))
    return rejected


def _split(choices: str) -> list[str]:
    return [part.strip() for part in choices.replace(" or ", ", ").split(",")]


def _nest(typed: Mapping[str, Typed]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    # Short paths first: single keys of a mapping are laid over the mapping itself.
    for path in sorted(typed, key=len):
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        value = typed[path].value
        # What is laid over it must not change what was written.
        node[last] = copy.deepcopy(value)
    return tree


def _from_text(text: str, info: FieldInfo | None) -> Any:
    """Split lists and mappings that were typed on a command line; other text stays text."""
    if info is None:
        return text
    kinds = _kinds(info.annotation)
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    if any(typing.get_origin(kind) in (list, dict) for kind in kinds):
        if text.startswith(("[", "{")):
            try:
                return json.loads(text)
            except ValueError:
                return text
        if any(typing.get_origin(kind) is list for kind in kinds):
            return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _kinds(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _is_mapping(info: FieldInfo) -> bool:
    return any(typing.get_origin(kind) is dict for kind in _kinds(info.annotation))


def _flatten(
    content: Mapping[str, Any], fields: Mapping[str, FieldInfo], prefix: str
) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and find_field(fields, name) is None:
            yield from _flatten(value, fields, f"{name}.")
        elif value is None and any(path.startswith(f"{name}.") for path in fields):
            continue  # An empty heading: `optim:` with everything below commented out.
        else:
            yield name, value


def _unknown_key(name: str, known: list[str]) -> str:
    if name == "ds" or name.startswith("ds."):
        return f"{name}: DeepSpeed's settings belong into the JSON, or into --ds. flags"
    if name in ("dry_run", "recipe"):
        return f"{name}: can only be a flag"
    nearest = find_nearest(name, known)
    return f"{name}: no such setting" + (f"; did you mean {nearest}?" if nearest else "")


class _StrictLoader(yaml.SafeLoader):
    """YAML without a second value for one key."""


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if key in seen:
            raise ConfigError(f"{key} stands twice, in lines {seen[key]} and {line}")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def load_yaml(shown: str, flag: str = "recipe") -> dict[str, Any]:
    """Read a YAML file that holds one mapping without repeated keys.

    Args:
        shown: Path as typed.
        flag: Which flag named it, for messages.

    Raises:
        ConfigError: It is missing, not YAML, or no mapping.
    """
    file = Path(shown).expanduser()
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        near = suggest_file(file, siblings)
        raise ConfigError(f"--{flag} {shown}: no such file{near}")
    try:
        # _StrictLoader is a SafeLoader.
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506
    except ConfigError as error:
        raise ConfigError(f"--{flag} {shown}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"--{flag} {shown}: not YAML: {text}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--{flag} {shown}: must hold `setting: value` lines")
    return {str(key): value for key, value in content.items()}
