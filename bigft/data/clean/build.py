"""Settings in, a cleaner of examples out."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bigft.data.clean.augment import find_change
from bigft.data.clean.filters import is_empty, is_lacking, is_matching
from bigft.data.clean.parts import map_texts
from bigft.data.clean.privacy import mask_example
from bigft.data.clean.section import CleanSection
from bigft.data.clean.text import normalize_text, strip_example
from bigft.data.example import Example
from bigft.errors import ConfigError, DataError, raise_together

STEPS = (
    "normalized",
    "stripped",
    "masked_email",
    "masked_card",
    "masked_phone",
    "dropped_empty",
    "dropped_by_keep_pattern",
    "dropped_by_drop_pattern",
    "augmented",
)
"""What can happen to a row here, in the order in which it happens."""


class Cleaner:
    """Changes examples, leaves some out, and counts both.

    A copy in another process (by pickling) starts counting at zero, so that its counts can be
    added to these with `add_touched`.
    """

    def __init__(self, section: CleanSection) -> None:
        """Check the settings that name patterns or files.

        Args:
            section: Of it, `duplicates`, `similarity`, the limits in tokens and `test_fraction` are
                for others: they need more than one row, or its tokens.

        Raises:
            ConfigError: A pattern is no regular expression, or copies are to be made of nothing.
            DataError: The settings are fine but the file of synonyms is not.
        """
        patterns, problems = compile_patterns(section)
        self._change, copy_problems = find_change(section.augment)
        if problems or copy_problems:
            is_file = not problems and section.augment.synonyms is not None
            raise_together(DataError if is_file else ConfigError, [*problems, *copy_problems])
        self._copies = section.augment.copies
        self._seed = section.augment.seed or 0
        self._masks = tuple(section.mask)
        self._steps = _build_steps(section)
        self._drops = _build_drops(section, patterns)
        self.touched: dict[str, int] = dict.fromkeys(STEPS, 0)
        """Rows touched, by the names in `STEPS`; a row counts once per name."""

    @property
    def is_idle(self) -> bool:
        """Whether `clean` returns every example as it is and `augment` never makes a copy."""
        return not (self._steps or self._masks or self._drops or self._change)

    def clean(self, example: Example) -> Example | None:
        """Clean one example; the result stays as it is when cleaned again.

        Returns:
            The cleaned example, the same object when nothing was to be done; None if it is to be
            left out.
        """
        for name, change in self._steps:
            changed = change(example)
            if changed is not example:
                self.touched[name] += 1
                example = changed
        if self._masks:
            example, found = mask_example(example, self._masks)
            for kind in found:
                self.touched[f"masked_{kind}"] += 1
        for name, drops in self._drops:
            if drops(example):
                self.touched[name] += 1
                return None
        return example

    def augment(self, example: Example, digest: int) -> list[Example]:
        """Make changed copies of a training example.

        Raw text, labelled texts, prompts and what users say are changed; what the assistant, the
        system and tools say, and labels, stay as they are.

        Args:
            example: Cleaned already.
            digest: `compute_digest` of it, which decides the copies together with the seed.

        Returns:
            As many copies as were asked for, without those equal to the example or to another.
        """
        if self._change is None:
            return []
        copies: list[Example] = []
        for number in range(self._copies):
            copy = self._change.make_copy(example, digest, self._seed, number)
            if copy != example and copy not in copies:
                copies.append(copy)
        self.touched["augmented"] += bool(copies)
        return copies

    def add_touched(self, counts: Mapping[str, int]) -> None:
        """Add the counts of a cleaner in another process."""
        for name, count in counts.items():
            self.touched[name] += count

    def take_touched(self) -> dict[str, int]:
        """Return the counts since the last call and start again at zero, to send them in parts."""
        taken = self.touched
        self.touched = dict.fromkeys(STEPS, 0)
        return taken

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "touched": dict.fromkeys(STEPS, 0)}


_Step = tuple[str, Callable[[Example], Example]]
_Drop = tuple[str, Callable[[Example], bool]]


def _build_steps(section: CleanSection) -> tuple[_Step, ...]:
    steps: list[_Step] = []
    if section.normalize != "none":
        # Before trimming: some characters become spaces.
        normalize = partial(normalize_text, form=section.normalize)
        steps.append(("normalized", partial(map_texts, function=normalize)))
    if section.strip:
        steps.append(("stripped", strip_example))
    return tuple(steps)


def _build_drops(
    section: CleanSection, patterns: Mapping[str, re.Pattern[str]]
) -> tuple[_Drop, ...]:
    drops: list[_Drop] = []
    if section.empty == "drop":
        drops.append(("dropped_empty", is_empty))
    if "keep_pattern" in patterns:
        is_lacking_it = partial(is_lacking, pattern=patterns["keep_pattern"])
        drops.append(("dropped_by_keep_pattern", is_lacking_it))
    if "drop_pattern" in patterns:
        is_matching_it = partial(is_matching, pattern=patterns["drop_pattern"])
        drops.append(("dropped_by_drop_pattern", is_matching_it))
    return tuple(drops)


def compile_patterns(section: CleanSection) -> tuple[dict[str, re.Pattern[str]], list[str]]:
    """Compile the regular expressions that are set, by their names; and what is wrong with them."""
    patterns, problems = {}, []
    for name in ("keep_pattern", "drop_pattern"):
        text: str | None = getattr(section, name)
        if text is None:
            continue
        try:
            patterns[name] = re.compile(text)
        except (re.error, OverflowError) as error:
            problems.append(
                f"--data.clean.{name}={text}: not a regular expression of Python: {error}; repair "
                "it, or put a backslash before signs that stand for themselves"
            )
    return patterns, problems
