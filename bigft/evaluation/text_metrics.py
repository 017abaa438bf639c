"""Metrics of texts that a model wrote, against texts that are right."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from bigft.errors import ConfigError
from bigft.evaluation.squad import compute_f1, match_exactly

References = Sequence[Sequence[str]]
"""For each answer the texts that are right, at least one."""

NAMES = ("bleu", "chrf", "rouge", "exact_match", "f1")

_PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score"}
"""Metric -> the module that computes it."""

_ROUGE = ("rouge1", "rouge2", "rougeL")

MAKERS = {**{name: name for name in NAMES if name != "rouge"}, **dict.fromkeys(_ROUGE, "rouge")}
"""Name of a value -> the metric that gives it."""


@dataclass
class TextScores:
    """What a set of answers is worth."""

    totals: dict[str, float] = field(default_factory=dict)
    """Metric -> value of all answers: BLEU and chrF 0 to 100, all others 0 to 1."""

    each: dict[str, list[float]] = field(default_factory=dict)
    """Of the metrics that are means over answers: the value of each answer."""

    bleu_counts: list[list[float]] = field(default_factory=list)
    """Of each answer what BLEU is computed from: see `join_bleu`."""

    signatures: dict[str, str] = field(default_factory=dict)
    """How sacrebleu computed its metrics, in its own words."""


def check_packages(metrics: Sequence[str], flag: str = "--metrics") -> None:
    """Check that what computes these metrics is installed.

    Args:
        metrics: Of `NAMES`.
        flag: The setting that names them, for messages.

    Raises:
        ConfigError: A package is missing; says how to install it.
    """
    for name in metrics:
        if name not in _PACKAGES:
            continue
        try:
            import_module(_PACKAGES[name])
        except ImportError as error:
            raise ConfigError(
                f"{flag} {name}: the package {_PACKAGES[name].replace('_', '-')} is not"
                f' installed ({error}); pip install "bigft[eval]"'
            ) from error


def judge_answers(
    answers: Sequence[str], references: References, metrics: Sequence[str]
) -> TextScores:
    """Compute metrics; no answers have none.

    Args:
        answers: As they were written; white space around them does not count.
        references: As many.
        metrics: Of `NAMES`.

    Raises:
        ConfigError: A package is missing.
    """
    check_packages(metrics)
    scores = TextScores()
    if not answers:
        return scores
    answers = [answer.strip() for answer in answers]
    references = [[text.strip() for text in texts] for texts in references]
    for name in metrics:
        _METRICS[name](answers, references, scores)
    for name, values in scores.each.items():
        scores.totals[name] = sum(values) / len(values)
    return scores


def join_bleu(counts: Sequence[float]) -> float:
    """Compute BLEU, 0 to 100, from the sum of the counts of answers.

    Args:
        counts: `(10,)`: n-grams of 1 to 4 words that are right, n-grams, words, reference words.
    """
    from sacrebleu.metrics.bleu import BLEU

    *grams, words, reference_words = (round(count) for count in counts)
    correct, total = grams[:4], grams[4:]
    # As BLEU() smooths, which changes nothing unless no n-gram of some length is right.
    found = BLEU.compute_bleu(correct, total, words, reference_words, smooth_method="exp")
    return float(found.score)


def _add_bleu(answers: Sequence[str], references: References, scores: TextScores) -> None:
    from sacrebleu.metrics.bleu import BLEU

    _add_corpus_metric("bleu", BLEU(), answers, references, scores)
    # The counts of one sentence do not depend on `effective_order`, which it wants for its score.
    metric = BLEU(effective_order=True)
    for answer, texts in zip(answers, references, strict=True):
        found = metric.sentence_score(answer, list(texts))
        scores.bleu_counts.append([*found.counts, *found.totals, found.sys_len, found.ref_len])


def _add_chrf(answers: Sequence[str], references: References, scores: TextScores) -> None:
    from sacrebleu.metrics.chrf import CHRF

    _add_corpus_metric("chrf", CHRF(), answers, references, scores)


def _add_corpus_metric(
    name: str, metric: Any, answers: Sequence[str], references: References, scores: TextScores
) -> None:
    most = max(map(len, references))
    # sacrebleu wants the first references of all answers, then the second ones, with holes.
    columns = [
        [texts[number] if number < len(texts) else None for texts in references]
        for number in range(most)
    ]
    scores.totals[name] = float(metric.corpus_score(list(answers), columns).score)
    scores.signatures[name] = str(metric.get_signature())


def _add_rouge(answers: Sequence[str], references: References, scores: TextScores) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    # Without stemming, which is rouge-score's default, and is for English only.
    scorer = RougeScorer(list(_ROUGE))
    found = [
        scorer.score_multi(texts, answer) for answer, texts in zip(answers, references, strict=True)
    ]
    for name in _ROUGE:
        scores.each[name] = [float(one[name].fmeasure) for one in found]


def _add_exact_match(answers: Sequence[str], references: References, scores: TextScores) -> None:
    scores.each["exact_match"] = list(map(match_exactly, answers, references))


def _add_f1(answers: Sequence[str], references: References, scores: TextScores) -> None:
    scores.each["f1"] = list(map(compute_f1, answers, references))


_METRICS: Mapping[str, Callable[[Sequence[str], References, TextScores], None]] = {
    "bleu": _add_bleu,
    "chrf": _add_chrf,
    "rouge": _add_rouge,
    "exact_match": _add_exact_match,
    "f1": _add_f1,
}
