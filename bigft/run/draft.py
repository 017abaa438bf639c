"""The state of a resolution: settings and JSON while they still move.

Only `bigft.run.resolve` and the modules it calls see a draft; everybody else gets the frozen
`Resolved`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigft.config.deepspeed import AUTO, find_value, has_value, set_value
from bigft.config.typed import Typed, build_section
from bigft.models.facts import ModelFacts
from bigft.models.section import ModelSection
from bigft.run.settings import Run


@dataclass
class Draft:
    """Everything known so far, and everything found wrong so far."""

    ds: dict[str, Any]
    label: str
    """How messages name the JSON file."""

    typed: dict[str, Typed]
    """Run settings that a person wrote, by dotted path."""

    world_size: int
    local_size: int = 0
    """Ranks of this host; 0: as many as there are in all."""

    edits: dict[str, str] = field(default_factory=dict)
    """JSON path (also of a section that an edit made) -> the `--ds.` path that set it."""

    facts: ModelFacts | None = None
    adopted: dict[str, Typed] = field(default_factory=dict)
    """Run settings that come from the JSON, the batch equation or the model."""

    ds_origin: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)

    def where(self, path: str) -> str:
        """Name the source of a JSON path in a message."""
        if path in self.ds_origin:
            return self.ds_origin[path]
        for place, edit in self.edits.items():
            if path == place or path.startswith(f"{place}."):
                return f"--ds.{edit}"
        return self.label

    def source(self, path: str) -> str:
        """Name a JSON path with its source, for messages and origins."""
        where = self.where(path)
        return f"flag {where}" if where.startswith("--") else f"{where}: {path}"

    def build_run(self) -> Run:
        """Return the Run as it stands; values that do not fit become problems and are dropped."""
        merged = {**self.typed, **self.adopted}
        run = build_section(Run, merged, self.problems)
        for entries in (self.typed, self.adopted):
            for path in entries.keys() - merged.keys():
                del entries[path]
        return run.model_copy(update={"model": expand_home(run.model)})

    def adopt(self, path: str, value: Any, source: str) -> None:
        """Let the Run take a value that nobody typed as a setting."""
        self.adopted[path] = Typed(value, source)

    def get(self, path: str) -> Any:
        """Return a JSON value; None when it is absent, null or "auto"."""
        value = find_value(self.ds, path)
        return None if value == AUTO else value

    def is_open(self, path: str) -> bool:
        """Say whether the JSON leaves a path to the run: absent, null or "auto"."""
        return self.get(path) is None

    def has(self, path: str) -> bool:
        """Say whether the JSON mentions a path."""
        return has_value(self.ds, path)

    def fill(self, path: str, value: Any, why: str) -> None:
        """Write a JSON value and remember why."""
        set_value(self.ds, path, value)
        self.ds_origin[path] = why


def expand_home(model: ModelSection) -> ModelSection:
    """Spell out `~` in model names: the shell leaves it alone in `--model=~/m`, and so do hubs."""
    names = {"name": model.name, "tokenizer": model.tokenizer}
    full = {key: str(Path(n).expanduser()) for key, n in names.items() if n and n.startswith("~")}
    return model.model_copy(update=full)
