"""The numbers are those of the packages that define them."""

import random
import sys

import pytest
import sacrebleu
from making import WORDS
from rouge_score.rouge_scorer import RougeScorer

from bigft.errors import ConfigError
from bigft.evaluation.text_metrics import NAMES, check_packages, join_bleu, judge_answers


def _write(seed, count, references):
    chooser = random.Random(seed)

    def say():
        return " ".join(chooser.choices(WORDS[:8], k=chooser.randint(4, 20)))

    right = [[say() for _ in range(references)] for _ in range(count)]
    answers = []
    for texts in right:
        words = chooser.choice(texts).split()
        words[chooser.randrange(len(words))] = "wrong"
        answers.append(" ".join(words))
    return answers, right


@pytest.mark.parametrize("references", [1, 3])
def test_corpus_metrics_are_sacrebleus(references):
    answers, right = _write(0, 40, references)
    found = judge_answers(answers, right, ["bleu", "chrf"])
    columns = [list(column) for column in zip(*right, strict=True)]
    assert found.totals["bleu"] == sacrebleu.corpus_bleu(answers, columns).score
    assert found.totals["chrf"] == sacrebleu.corpus_chrf(answers, columns).score
    assert 5 < found.totals["bleu"] < 95
    version = sacrebleu.__version__
    assert found.signatures == {
        "bleu": f"nrefs:{references}|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}",
        "chrf": f"nrefs:{references}|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}",
    }


def test_the_counts_of_answers_add_up_to_the_bleu_of_all():
    answers, right = _write(1, 30, 2)
    found = judge_answers(answers, right, ["bleu"])
    sums = [sum(column) for column in zip(*found.bleu_counts, strict=True)]
    assert join_bleu(sums) == pytest.approx(found.totals["bleu"], abs=1e-12)
    few = judge_answers(["dog"], [["a cat"]], ["bleu"])
    assert join_bleu(few.bleu_counts[0]) == few.totals["bleu"]


def test_rouge_is_the_mean_of_rouge_scores_f_measures():
    answers, right = _write(2, 20, 1)
    found = judge_answers(answers, right, ["rouge"]).totals
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    each = [scorer.score(texts[0], answer) for answer, texts in zip(answers, right, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name] == pytest.approx(sum(one[name].fmeasure for one in each) / 20)


def test_references_may_differ_in_number():
    found = judge_answers(["a cat", "two dogs"], [["cat"], ["three", "two dogs"]], NAMES)
    assert found.totals["exact_match"] == found.totals["f1"] == 1.0
    assert found.each["rouge1"] == [pytest.approx(2 / 3), 1.0]
    assert found.totals["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(["a cat", "two dogs"], [["cat", "three"], [None, "two dogs"]]).score
    )


def test_white_space_around_answers_does_not_count():
    assert judge_answers([" cat\n"], [["cat"]], ["exact_match", "rouge"]).totals["rouge1"] == 1.0


def test_no_answers_have_no_metrics():
    assert judge_answers([], [], NAMES).totals == {}


@pytest.mark.parametrize(
    ("name", "module"), [("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("rouge", "rouge_score")]
)
def test_a_missing_package_is_named_with_its_repair(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as error:
        check_packages(["f1", name])
    assert f"--metrics {name}: the package {module.replace('_', '-')} is" in str(error.value)
    assert 'pip install "bigft[eval]"' in str(error.value)
    check_packages(["exact_match", "f1"])
