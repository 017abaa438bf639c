"""The search space: which settings are tried, and with which values.

optim.learning_rate=log(1e-6,1e-4); optim.name=choice(adamw,adamw_8bit)
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from bigft.config.flags import to_path
from bigft.config.hints import suggest
from bigft.config.typed import load_yaml
from bigft.errors import ConfigError

Kind = Literal["log", "uniform", "int", "choice"]
Value = float | int | str
"""A number from a range, or the text of a choice."""

_FORMS = {
    "log": "log(a,b)",
    "uniform": "uniform(a,b)",
    "int": "int(a,b) or int(a,b,step)",
    "choice": "choice(x,y,z)",
}
_ENTRY = re.compile(r"\s*([^\s=]+)\s*=\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_LONGEST_NUMBER = 32
_LARGEST_INT = 2**53  # Optuna keeps numbers as doubles.
_MOST_COMBINATIONS = 10_000
_SHOWN = 80


@dataclass(frozen=True)
class Parameter:
    """One searched setting and the values that it may take."""

    path: str
    """Dotted path of the setting; one of the JSON begins with `ds.`."""

    kind: Kind
    text: str
    """The range as it was written."""

    low: float = 0.0
    high: float = 0.0
    step: int = 1
    count: int | None = None
    """How many values of a `log` or `uniform` range a grid takes."""

    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Show it as it was written."""
        return f"{self.path}={self.text}"

    def probes(self) -> list[str]:
        """Return the values that stand for all: both ends and one between, or every choice."""
        if self.kind == "choice":
            return list(self.choices)
        if self.kind == "int":
            return [write_value(int(end)) for end in (self.low, self.high)]
        # Not the middle, which is often a round number: it must show that fractions will come.
        inner = self._between(math.sqrt(2) / 3)
        return [write_value(value) for value in (self.low, inner, self.high)]

    def grid(self) -> list[Value]:
        """Return every value that a grid tries.

        A `log` or `uniform` range must have a count.
        """
        if self.kind == "choice":
            return list(self.choices)
        if self.kind == "int":
            return list(range(int(self.low), int(self.high) + 1, self.step))
        last = (self.count or 2) - 1
        inner = [self._between(number / last) for number in range(1, last)]
        # Both ends as they were written, not as arithmetic leaves them.
        return [self.low, *inner, self.high]

    def count_grid(self) -> int:
        """Return the number of values that a grid tries, without making them."""
        if self.kind == "choice":
            return len(self.choices)
        if self.kind == "int":
            return int(self.high - self.low) // self.step + 1
        return self.count or 2

    def find(self, value: Any, choices: Mapping[str, Any]) -> Value | None:
        """Return the value of the range that equals a setting's value; None when none does.

        Args:
            value: The setting, e.g. as it stands before the search.
            choices: What each text of a choice becomes as a setting.
        """
        if self.kind == "choice":
            return next((text for text in self.choices if choices.get(text) == value), None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not self.low <= value <= self.high:
            return None
        if self.kind == "int":
            return int(value) if (value - self.low) % self.step == 0 else None
        return float(value)

    def _between(self, share: float) -> float:
        if self.kind == "log":
            low, high = math.log(self.low), math.log(self.high)
            return math.exp(low + share * (high - low))
        return self.low + share * (self.high - self.low)


def write_value(value: Value) -> str:
    """Return a value as it is typed on a command line, without loss."""
    return value if isinstance(value, str) else repr(value)


def read_space(text: str, problems: list[str]) -> list[Parameter]:
    """Read `--search`: entries separated by `;`, or the name of a YAML file.

    Names of settings are not judged here, only the form; mistakes become problems.
    """
    if text.strip().endswith((".yaml", ".yml")) and "=" not in text:
        entries = _read_file(text.strip(), problems)
    else:
        entries = [entry.strip() for entry in text.split(";") if entry.strip()]
        if not entries:
            problems.append(
                "--search: required, not given; write e.g."
                ' --search "optim.learning_rate=log(1e-6,1e-4)"'
            )
    space: dict[str, Parameter] = {}
    for entry in entries:
        try:
            parameter = _read_entry(entry)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if parameter.path in space:
            problems.append(f"--search: {parameter.path} is there twice. Drop one of them")
        space[parameter.path] = parameter
    return list(space.values())


def check_grid(space: Sequence[Parameter]) -> Iterator[str]:
    """Yield what keeps a space from being a grid."""
    for parameter in space:
        if parameter.kind in ("log", "uniform") and parameter.count is None:
            closed = parameter.text.rstrip().removesuffix(")").rstrip()
            yield (
                f"--search {_cut(str(parameter))}: a grid needs a number of values, e.g."
                f" {_cut(closed)},5), or --sampler random"
            )
    count = math.prod(parameter.count_grid() for parameter in space)
    if count > _MOST_COMBINATIONS:
        yield (
            f"--sampler grid: {count:,} combinations, at most {_MOST_COMBINATIONS:,} can be; give"
            " fewer values, or --sampler random"
        )


def check_no_grid(space: Sequence[Parameter], sampler: str) -> Iterator[str]:
    """Yield what only a grid could follow."""
    for parameter in space:
        if parameter.count is not None:
            yield (
                f"--search {_cut(str(parameter))}: the third number is how many values a grid"
                f" takes; drop it, or replace --sampler {sampler} by --sampler grid"
            )


def combine(space: Sequence[Parameter]) -> Iterator[dict[str, Value]]:
    """Yield every combination of a grid; the last setting changes fastest."""
    paths = [parameter.path for parameter in space]
    for values in itertools.product(*(parameter.grid() for parameter in space)):
        yield dict(zip(paths, values, strict=True))


def _read_file(name: str, problems: list[str]) -> list[str]:
    try:
        content = load_yaml(name, "search")
    except ConfigError as error:
        problems.append(str(error))
        return []
    entries = list(_flatten(content))
    if not entries:
        problems.append(f"--search {name}: there is no `setting: range` line in it")
    return entries


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}=choice({','.join(map(_write_plain, value))})"
        else:
            yield f"{prefix}{key}={value}"


def _write_plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_entry(entry: str) -> Parameter:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise _error(entry, f"write SETTING=RANGE, where RANGE is {', '.join(_FORMS.values())}")
    name, kind, body = match.groups()
    if kind not in _FORMS:
        near = suggest(kind, _FORMS) or f"; write {', '.join(_FORMS.values())}"
        raise _error(entry, f"{_cut(kind)}: no such range{near}")
    text = f"{kind}({body})"
    parts = [part.strip() for part in body.split(",")]
    path = to_path(name.removeprefix("--"))
    if kind == "choice":
        return Parameter(path, "choice", text, choices=_read_choices(entry, parts))
    if not 2 <= len(parts) <= 3:
        raise _error(entry, f"write {_FORMS[kind]}")
    if kind == "int":
        return _read_int(entry, path, text, parts)
    low, high = (_read_number(entry, part) for part in parts[:2])
    _check_order(entry, low, high)
    if kind == "log" and low <= 0:
        raise _error(entry, "a log range begins above 0")
    count = _read_whole(entry, parts[2]) if len(parts) == 3 else None
    if count is not None and not 2 <= count <= _MOST_COMBINATIONS:
        raise _error(entry, f"a grid takes 2 to {_MOST_COMBINATIONS:,} values of a range")
    return Parameter(path, cast("Kind", kind), text, low, high, count=count)


def _read_int(entry: str, path: str, text: str, parts: list[str]) -> Parameter:
    low, high, *rest = (_read_whole(entry, part) for part in parts)
    _check_order(entry, low, high)
    step = rest[0] if rest else 1
    if not 1 <= step <= high - low:
        raise _error(entry, f"the step must be from 1 to {high - low}")
    # The last value that a step reaches is the end.
    return Parameter(path, "int", text, low, low + (high - low) // step * step, step)


def _read_choices(entry: str, parts: list[str]) -> tuple[str, ...]:
    if "" in parts or len(parts) < 2:
        raise _error(entry, "give at least two values, separated by commas")
    twice = next((part for place, part in enumerate(parts) if part in parts[:place]), None)
    if twice is not None:
        raise _error(entry, f"{_cut(twice)} is there twice. Drop one of them")
    return tuple(parts)


def _read_number(entry: str, text: str) -> float:
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        raise _error(entry, f"{_cut(text) or 'nothing'} is not a number")
    number = float(text)
    if not math.isfinite(number):
        raise _error(entry, f"{text} is too large")
    return number


def _read_whole(entry: str, text: str) -> int:
    number = _read_number(entry, text)
    if number != int(number) or abs(number) > _LARGEST_INT:
        raise _error(entry, f"{text} is not a whole number")
    return int(number)


def _check_order(entry: str, low: float, high: float) -> None:
    if low >= high:
        raise _error(entry, "the first number must be below the second")


def _error(entry: str, what: str) -> ConfigError:
    return ConfigError(f"--search {_cut(entry)}: {what}")


def _cut(text: str) -> str:
    """Shorten what could be anything, and spell out what is no printable character."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
