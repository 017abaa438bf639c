"""Which of two values of a metric is better, and which metrics an evaluation gives."""

from collections.abc import Mapping

from bigft.config.hints import suggest
from bigft.errors import ConfigError
from bigft.evaluation.text_metrics import MAKERS

_PREFIX = "eval_"
_SMALLER_IS_BETTER = ("loss", "perplexity", "mae", "mse", "rmse")
_LARGER_IS_BETTER = (
    *("accuracy", "token_accuracy", "f1", "f1_macro", "f1_micro", "matthews"),
    *("r2", "pearson", "spearman", *MAKERS),
)
_COUNTS = ("tokens", "labels", "numbers", "terms", "examples")
"""How much was scored, which is nobody's goal."""


def strip_prefix(metric: str) -> str:
    """Return a metric's own name: `metrics.jsonl` writes it with `eval_` before it."""
    return metric.removeprefix(_PREFIX)


def is_known(metric: str) -> bool:
    """Whether a metric is one that bigft writes, so that its direction needs no guess."""
    return _find_kind(metric) in (*_SMALLER_IS_BETTER, *_LARGER_IS_BETTER)


def is_smaller_better(metric: str) -> bool:
    """Say which way a metric goes: losses and errors down, everything else up."""
    return _find_kind(metric) in _SMALLER_IS_BETTER


def _find_kind(metric: str) -> str:
    """Leave out `eval_`, and the part of the data that it is about."""
    return strip_prefix(metric).partition("/")[0]


def describe_direction(metric: str) -> str:
    """Name a metric and say which values of it are good."""
    better = "smaller" if is_smaller_better(metric) else "larger"
    return f"{_PREFIX}{strip_prefix(metric)}, {better} is better"


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a value beats the best so far; NaN never does, and equal is not better."""
    if best is None:
        return value == value  # noqa: PLR0124 (NaN is not equal to itself)
    return value < best if is_smaller_better(metric) else value > best


def find_score(scores: Mapping[str, float], metric: str, setting: str) -> float:
    """Return a metric of an evaluation.

    Args:
        scores: What the evaluation found.
        metric: Its name, with or without `eval_`.
        setting: The flag that asks for it, and its value.

    Raises:
        ConfigError: The evaluation gives no such metric; those that it gives are named. Every rank
            comes to the same result.
    """
    name = strip_prefix(metric)
    known = [key for key in scores if key not in _COUNTS]
    if name in known:
        return scores[name]
    error = ConfigError(
        f"{setting}: an evaluation of this run gives no {name}{suggest(name, known)}; there are"
        f" {', '.join(known)}"
    )
    error.is_shared = True
    raise error
