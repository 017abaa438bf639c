"""The classes of a classifier: which there are, in which order, and what each weighs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigft.data.labels import Labels, find_labels
from bigft.data.layouts.coders import Coder, ManyClasses, OneClass, name_class
from bigft.data.section import DataSection
from bigft.errors import ConfigError
from bigft.tasks.section import TaskSection


@dataclass(frozen=True)
class Classes:
    """What a classifier chooses from."""

    names: tuple[str, ...]
    """By number."""

    is_multiple: bool = False
    """Whether a row may have several, or none."""

    weights: tuple[float, ...] | None = None
    """Of each class; see `balance`."""

    def build_coder(self) -> Coder:
        """Return how a row's classes are written."""
        return ManyClasses(self.names) if self.is_multiple else OneClass(self.names)


def study_classes(
    section: TaskSection, data: DataSection, model_config: Mapping[str, Any]
) -> Classes:
    """Take the classes that were named, that the model has, or that the data have.

    Raises:
        ConfigError: Settings do not go with rows that have several labels, or there is only one.
        DataError: The data are missing, or no row has a label.
    """
    if section.labels is not None and data.loading.streaming:
        return Classes(tuple(section.labels))
    found = find_labels(data)
    own = list_classes(model_config)
    knows_all = set(found.counts) <= set(own)
    names = section.labels or (own if knows_all else list(found.counts))
    was_multiple = model_config.get("problem_type") == "multi_label_classification"
    is_multiple = found.is_multiple or (names == own and was_multiple)
    if is_multiple and (section.label_smoothing or section.focal_gamma):
        raise ConfigError(
            "--task.label_smoothing and --task.focal_gamma are for one label per row; these data"
            " have lists of labels. Leave them out"
        )
    if len(names) < 2 and not is_multiple:
        raise ConfigError(
            f"--task classification: all rows have the label {names[0]!r}; give data with two"
            " classes or more, or name them with --task.labels"
        )
    weights = tuple(balance(found, names)) if section.class_weights == "balanced" else None
    return Classes(tuple(names), is_multiple, weights)


def list_classes(model_config: Mapping[str, Any]) -> list[str]:
    """List the classes that a model knows, by number; placeholders become their numbers."""
    own = model_config.get("id2label") or {}
    named = [name_class(own[key]) for key in sorted(own, key=int)]
    numbers = [str(number) for number in range(len(named))]
    return numbers if named == [f"LABEL_{number}" for number in numbers] else named


def balance(found: Labels, names: Sequence[str]) -> list[float]:
    """Weigh classes so that each counts alike.

    Returns:
        One label per row: rows / (classes x rows of the class), whose mean over the rows is 1.
        Several: rows without the label / rows with it, for its positive term.
    """
    counts = [found.counts.get(name, 0) for name in names]
    if found.is_multiple:
        return [(found.num_rows - count) / max(count, 1) for count in counts]
    return [found.num_rows / (len(names) * max(count, 1)) for count in counts]
