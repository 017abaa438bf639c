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

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """Answers, and what they are worth."""

    scores: TextScores
    digests: list[int]
    """Of the example that each answer belongs to."""

    sources: list[int]
    """Number of the part of the data that each comes from."""

    def list_numbers(self, names: Sequence[str]) -> dict[str, float]:
        """List the metrics of all answers, and the number of these.

        Args:
            names: Of the parts of the data; of several, metrics that are means over answers have a
                value for each.
        """
        parts = self._average_parts(names) if len(names) > 1 else {}
        return {**self.scores.totals, **parts, "examples": len(self.sources)}

    def _average_parts(self, names: Sequence[str]) -> dict[str, float]:
        found = {}
        for metric, values in self.scores.each.items():
            for number, name in enumerate(names):
                own = [v for v, part in zip(values, self.sources, strict=True) if part == number]
                if own:
                    found[f"{metric}/{name}"] = sum(own) / len(own)
        return found


@dataclass(frozen=True)
class Questions:
    """Prompts of some examples, in an order of which any first part is as good as a random one."""

    prompts: list[Prompt]
    digests: list[int]
    """Of the example that each belongs to."""

    sources: list[int]
    """Number of the part of the data that each comes from."""

    def judge(self, answers: Sequence[str], metrics: Sequence[str]) -> Written:
        """Compare the answers to the first prompts with the right ones.

        Args:
            answers: One for each prompt, or fewer.
            metrics: Names of `bigft.evaluation.text_metrics`.
        """
        done = len(answers)
        references = [prompt.references for prompt in self.prompts[:done]]
        scores = judge_answers(answers, references, metrics)
        return Written(scores, self.digests[:done], self.sources[:done])


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
    tell: Tell,
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
    chosen = choose_examples(section, max_examples)
    longest = find_longest_prompt(model)
    questions = build_questions(chosen, layout, longest, f"--data={section.train}", tell)
    prompts = [prompt.input_ids for prompt in questions.prompts]
    answers = write_answers(model, tokenizer, prompts, decoding, tell)
    if len(answers) < len(prompts):
        tell(f"--max_seconds: {len(answers):,} of {len(prompts):,} answers were written")
    return questions.judge(answers, metrics)


def build_questions(
    chosen: Sequence[Chosen], layout: Layout, longest: int | None, setting: str, tell: Tell
) -> Questions:
    """Turn examples into prompts, and say which ones cannot be.

    Args:
        chosen: The examples.
        layout: Makes prompts of them.
        longest: Tokens of a prompt at most.
        setting: What named the data, for messages.
        tell: Shows a line.

    Raises:
        DataError: No example has a prompt.
    """
    assert isinstance(layout, PromptLayout), "the task was checked"
    asked, prompts, reasons = [], [], []
    for one, found in zip(
        chosen, layout.build_prompts([one.example for one in chosen]), strict=True
    ):
        if isinstance(found, ValueError):
            reasons.append(str(found))
        elif longest is not None and len(found.input_ids) > longest:
            reasons.append(f"a prompt of {len(found.input_ids)} tokens, with room for {longest}")
        else:
            asked.append(one)
            prompts.append(found)
    shown = "; ".join(list(dict.fromkeys(reasons))[:_SHOWN_REASONS])
    if not prompts:
        raise DataError(f"{setting}: no row can be answered: {shown or 'no rows'}")
    if reasons:
        tell(f"{len(reasons):,} of {len(chosen):,} examples are not answered: {shown}")
    return Questions(prompts, [one.digest for one in asked], [one.source for one in asked])
