"""Metrics of classes and numbers, by scikit-learn and SciPy."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]


def judge_classes(predicted: Numbers, right: Numbers, num_classes: int) -> dict[str, float]:
    """Judge one class per row.

    Args:
        predicted: `(N,)`, class numbers.
        right: `(N,)`.
        num_classes: How many there are, also those that no row has.

    Returns:
        `accuracy`, `f1_macro` and `matthews`; of two classes also `f1`, of the second one.
    """
    if not len(right):
        return {}
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    scores = {"accuracy": float(accuracy_score(right, predicted))}
    if num_classes == 2:
        scores["f1"] = float(f1_score(right, predicted, pos_label=1, zero_division=0))
    # Classes that neither have nor got a row say nothing.
    scores["f1_macro"] = float(f1_score(right, predicted, average="macro", zero_division=0))
    scores["matthews"] = float(matthews_corrcoef(right, predicted))
    return scores


def judge_many(predicted: Numbers, right: Numbers) -> dict[str, float]:
    """Judge any number of labels per row.

    Args:
        predicted: `(N, L)`, 0 or 1.
        right: `(N, L)`.

    Returns:
        `accuracy` (rows with all labels right), `f1_micro`, `f1_macro`.
    """
    if not len(right):
        return {}
    from sklearn.metrics import f1_score

    kinds = {
        f"f1_{average}": float(f1_score(right, predicted, average=average, zero_division=0))
        for average in ("micro", "macro")
    }
    return {"accuracy": float((predicted == right).all(1).mean()), **kinds}


def judge_numbers(predicted: Numbers, right: Numbers) -> dict[str, float]:
    """Judge numbers, `(N, T)`; means over the T.

    Returns:
        `mae`, `r2`, `pearson`, `spearman`; a correlation of numbers that are all the same is NaN.
    """
    if not len(right):
        return {}
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score

    columns = list(zip(predicted.T, right.T, strict=True))
    return {
        "mae": float(mean_absolute_error(right, predicted)),
        "r2": float(r2_score(right, predicted)) if len(right) > 1 else math.nan,
        "pearson": _average([_correlate(pearsonr, *pair) for pair in columns]),
        "spearman": _average([_correlate(spearmanr, *pair) for pair in columns]),
    }


def _correlate(measure: Any, predicted: Numbers, right: Numbers) -> float:
    if len(right) < 2 or np.ptp(predicted) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(measure(predicted, right).statistic)


def _average(values: list[float]) -> float:
    return float(np.mean(values))
