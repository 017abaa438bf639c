"""What each task makes of the data, before there is a model: needs no torch.

`bigft data` shows it, training builds its batches of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bigft.data.labels import count_targets
from bigft.data.layouts.coders import Values
from bigft.data.layouts.layout import Layout
from bigft.data.layouts.masked import Masked
from bigft.data.layouts.next_token import NextToken
from bigft.data.layouts.several import Several
from bigft.data.layouts.source_target import SourceTarget
from bigft.data.layouts.targets import Targets
from bigft.data.section import DataSection
from bigft.errors import BigftError, ConfigError, DataError, list_problems, raise_together
from bigft.tasks.classes import Classes, study_classes
from bigft.tasks.section import TaskSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MASK = "<|mask|>"


class TaskRows(Protocol):
    """How a task reads the data."""

    def complete(self, tokenizer: "PreTrainedTokenizerBase", *, is_new: bool) -> None:
        """Add tokens that the task needs, where the model `is_new` and can learn them."""

    def lay_out(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> Layout:
        """Say how examples become rows."""


class _Complete:
    """Tasks that any tokenizer serves."""

    def complete(self, tokenizer: "PreTrainedTokenizerBase", *, is_new: bool) -> None:
        """Do nothing."""


class NextTokenRows(_Complete):
    """Of `causal_lm` and `distillation`."""

    def lay_out(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> Layout:
        """Return rows of tokens that are predicted from those before them."""
        return NextToken(tokenizer, section)


@dataclass(frozen=True)
class ClassRows(_Complete):
    """Of `classification`."""

    classes: Classes

    def lay_out(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> Layout:
        """Return rows of a text and its classes."""
        return Targets(tokenizer, section, self.classes.build_coder())


@dataclass(frozen=True)
class ValueRows(_Complete):
    """Of `regression`."""

    size: int
    """Numbers of each row."""

    def lay_out(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> Layout:
        """Return rows of a text and its numbers."""
        return Targets(tokenizer, section, Values(self.size))


@dataclass(frozen=True)
class SourceTargetRows(_Complete):
    """Of `seq2seq`."""

    prefix: str
    """Put before every source."""

    def lay_out(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> Layout:
        """Return rows of a source and a target."""
        return SourceTarget(tokenizer, section, self.prefix)


@dataclass(frozen=True)
class MaskedRows:
    """Of `masked_lm`."""

    share: float
    """Of the tokens that are hidden."""

    unit: str
    """`token` or `word`."""

    def complete(self, tokenizer: "PreTrainedTokenizerBase", *, is_new: bool) -> None:
        """Give a new model's tokenizer a mask token, if it has none."""
        if is_new and tokenizer.mask_token_id is None:
            tokenizer.add_special_tokens({"mask_token": _MASK})

    def lay_out(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> Layout:
        """Return rows of which some tokens are hidden."""
        return Masked(tokenizer, section, share=self.share, unit=self.unit)


@dataclass(frozen=True)
class SeveralRows:
    """Of `multitask`."""

    parts: dict[str, TaskRows]
    """By the names of the parts of the data, in their order."""

    def complete(self, tokenizer: "PreTrainedTokenizerBase", *, is_new: bool) -> None:
        """Add what any of the tasks needs."""
        for part in self.parts.values():
            part.complete(tokenizer, is_new=is_new)

    def lay_out(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> Layout:
        """Return rows of all tasks."""
        parts = {name: part.lay_out(tokenizer, section) for name, part in self.parts.items()}
        return Several(tokenizer, parts)


def _build_several(
    section: TaskSection, data: DataSection, model_config: Mapping[str, Any]
) -> TaskRows:
    if not section.parts:
        raise ConfigError("--task multitask: which tasks? Name them in task.parts of a recipe")
    found: dict[str, TaskRows] = {}
    problems: list[str] = []
    kind: type[BigftError] = DataError
    for name, part in section.parts.items():
        own = data.model_copy(update={"train": part.data})
        try:
            found[name] = build_rows(part.to_section(), own, model_config)
        except BigftError as error:
            problems += [f"task.parts.{name}: {problem}" for problem in list_problems(error)]
            kind = type(error)
    if problems:
        raise_together(kind, problems)
    return SeveralRows(found)


_Build = Callable[[TaskSection, DataSection, Mapping[str, Any]], TaskRows]
_BUILD: dict[str, _Build] = {
    "causal_lm": lambda section, data, config: NextTokenRows(),
    "distillation": lambda section, data, config: NextTokenRows(),
    "classification": lambda section, data, config: ClassRows(study_classes(section, data, config)),
    "regression": lambda section, data, config: ValueRows(count_targets(data)),
    "seq2seq": lambda section, data, config: SourceTargetRows(section.prefix),
    "masked_lm": lambda section, data, config: MaskedRows(section.mask_share, section.mask_unit),
    "multitask": _build_several,
}


def build_rows(
    section: TaskSection, data: DataSection, model_config: Mapping[str, Any]
) -> TaskRows:
    """Decide how a task reads the data; some read them first, to learn their labels.

    Args:
        section: Names the task and has its settings.
        data: What it will be trained on.
        model_config: The model's `config.json`, which may name labels.

    Raises:
        ConfigError: Settings do not go with the data.
        DataError: The data are missing, or have no labels where the task needs them.
    """
    return _BUILD[section.name](section, data, model_config)
