"""Exact match and F1 of answers, by the rules of SQuAD v1.1's evaluation script.

Rajpurkar et al., arXiv 1606.05250; the script is `evaluate-v1.1.py` of the data set.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Write in lower case, without ASCII punctuation and English articles, in single spaces.

    In this order, as the script does it: "A.N." becomes "an", and then nothing.
    """
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def match_exactly(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the answer is one of the references once both are normalised, else 0."""
    normalized = normalize_answer(answer)
    return float(any(normalized == normalize_answer(reference) for reference in references))


def compute_f1(answer: str, references: Sequence[str]) -> float:
    """Return the F1 of the answer's words, 0 to 1: that of the reference where it is highest.

    As in the script, an answer without words has F1 0, even where the reference has none either.
    """
    return max(_compute_f1(answer, reference) for reference in references)


def _compute_f1(answer: str, reference: str) -> float:
    said, wanted = normalize_answer(answer).split(), normalize_answer(reference).split()
    common = sum((Counter(said) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
