"""Score the answers that a model writes to the prompts of some data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bigft.data.choose import Chosen, choose_examples
from bigft.data.layouts.layout import Layout, PromptLayout
from bigft.data.section import DataSection
from bigft.data.tokens.prompts import Prompt
from bigft.errors import ConfigError, DataError
from bigft.evaluation.answers import Decoding, find_longest_prompt, write_answers
from bigft.evaluation.text_metrics import TextScores, check_packages, judge_answers

_SHOWN_REASONS = 3


@dataclass(frozen=True)
class Written:
    """Answers, and what they are worth."""

    scores: TextScores
    digests: list[int]
    """Of the example that each answer belongs to."""

    sources: list[int]
    """Number of the part of the data that each comes from."""

    def average_parts(self, names: Sequence[str]) -> dict[str, float]:
        """Average the metrics that are means over answers for each of several parts of the data.

        Args:
            names: Of the parts.
        """
        if len(names) < 2:
            return {}
        found = {}
        for metric, values in self.scores.each.items():
            for number, name in enumerate(names):
                own = [v for v, part in zip(values, self.sources, strict=True) if part == number]
                if own:
                    found[f"{metric}/{name}"] = sum(own) / len(own)
        return found


def check_metrics(metrics: Sequence[str], task_name: str) -> None:
    """Check that a task's models write text, and that the packages are installed.

    Raises:
        ConfigError: They do not, or are not.
    """
    if metrics and task_name not in ("causal_lm", "seq2seq"):
        raise ConfigError(
            f"--metrics {','.join(metrics)}: for models that write text, and this one does"
            f" {task_name}, whose own metrics are always given; leave --metrics out"
        )
    check_packages(metrics)


def score_answers(
    model: Any,
    tokenizer: Any,
    layout: Layout,
    section: DataSection,
    metrics: Sequence[str],
    decoding: Decoding,
    max_examples: int | None,
    tell: Callable[[str], None],
) -> Written:
    """Write an answer to the prompt of each example and compare it with the right one.

    Args:
        model: A transformers model in evaluation mode.
        tokenizer: Its tokenizer.
        layout: Makes prompts of examples.
        section: Names the data in `train`.
        metrics: Names of `bigft.evaluation.text_metrics`.
        decoding: How answers are written.
        max_examples: Examples to answer, always the same ones; None for all.
        tell: Shows a line.

    Raises:
        ConfigError: A package is missing.
        DataError: The data are missing, or no row has a prompt.
    """
    assert isinstance(layout, PromptLayout), "check_metrics was called"
    chosen = choose_examples(section, max_examples)
    asked, prompts = _find_prompts(chosen, layout, find_longest_prompt(model), section, tell)
    answers = write_answers(model, tokenizer, [one.input_ids for one in prompts], decoding, tell)
    if len(answers) < len(prompts):
        tell(f"--max_seconds: {len(answers):,} of {len(prompts):,} answers were written")
    done = len(answers)
    references = [prompt.references for prompt in prompts[:done]]
    return Written(
        judge_answers(answers, references, metrics),
        [one.digest for one in asked[:done]],
        [one.source for one in asked[:done]],
    )


def _find_prompts(
    chosen: Sequence[Chosen],
    layout: PromptLayout,
    longest: int | None,
    section: DataSection,
    tell: Callable[[str], None],
) -> tuple[list[Chosen], list[Prompt]]:
    asked, prompts, reasons = [], [], []
    for one, found in zip(
        chosen, layout.build_prompts([one.example for one in chosen]), strict=True
    ):
        if isinstance(found, ValueError):
            reasons.append(str(found))
        elif longest is not None and len(found.input_ids) > longest:
            reasons.append(f"a prompt of {len(found.input_ids)} tokens, for a model with {longest}")
        else:
            asked.append(one)
            prompts.append(found)
    shown = "; ".join(list(dict.fromkeys(reasons))[:_SHOWN_REASONS])
    if not prompts:
        raise DataError(f"--data={section.train}: no row can be answered: {shown or 'no rows'}")
    if reasons:
        tell(f"{len(reasons):,} of {len(chosen):,} examples are not answered: {shown}")
    return asked, prompts
