from __future__ import annotations

import math

import numpy as np
import pytest

from xgem.eval.statistics import Bootstrap, derangements
from xgem.eval.text import class_f1, compare_bleu, compare_f1, corpus_bleu, distinct, most_frequent
from xgem.types import InputError

OUTPUTS = [
    "the heart is normal in size and the lungs are clear",
    "no acute disease",
    "small left effusion with atelectasis at the base",
    "stable cardiomegaly without edema or effusion today",
]
REFERENCES = [
    "the heart is normal in size . the lungs are clear",
    "no acute cardiopulmonary disease",
    "small right effusion with mild atelectasis at the left base",
    "cardiomegaly without edema or effusion",
]


def test_bleu_by_hand() -> None:
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, output longer than the reference
    one, two, three, four = corpus_bleu(["no focal acute lung disease"], ["no focal acute disease"])
    assert one == pytest.approx(4 / 5)
    assert two == pytest.approx(math.sqrt(4 / 5 * 2 / 4))
    assert three == pytest.approx((4 / 5 * 2 / 4 * 1 / 3) ** (1 / 3))
    assert four == 0


def test_brevity_penalty_by_hand() -> None:
    one, *_ = corpus_bleu(["clear lungs"], ["clear lungs and normal heart size"])
    assert one == pytest.approx(math.exp(1 - 6 / 2))


def test_bleu_matches_two_libraries() -> None:
    from sacrebleu.metrics.bleu import BLEU

    ours = corpus_bleu(OUTPUTS, REFERENCES)
    for order, value in enumerate(ours, start=1):
        metric = BLEU(lowercase=True, tokenize="13a", smooth_method="none", max_ngram_order=order)
        assert value * 100 == pytest.approx(metric.corpus_score(OUTPUTS, [REFERENCES]).score)
    bleu_score = pytest.importorskip("torchmetrics.functional.text").bleu_score
    for order, value in enumerate(ours, start=1):
        theirs = bleu_score(OUTPUTS, [[reference] for reference in REFERENCES], n_gram=order)
        assert value == pytest.approx(float(theirs), abs=1e-5)


def test_equal_reports_have_bleu_one_and_case_does_not_count() -> None:
    assert corpus_bleu(OUTPUTS, [text.upper() for text in OUTPUTS]) == pytest.approx((1, 1, 1, 1))


def test_empty_output_has_bleu_zero() -> None:
    assert corpus_bleu([""], ["no acute disease"]) == (0, 0, 0, 0)


def test_f1_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, predicted = rng.random((50, 6)) < 0.3, rng.random((50, 6)) < 0.4
    truth[:, 5] = False  # a class that no reference affirms has no F1
    found = compare_f1(truth, predicted, Bootstrap(50, draws=20))
    assert found["micro_f1"].matched.value == pytest.approx(metrics.f1_score(truth, predicted, average="micro"))
    expected = metrics.f1_score(truth[:, :5], predicted[:, :5], average="macro")
    assert found["macro_f1"].matched.value == pytest.approx(expected)
    hits = np.array([(truth & predicted[order]).sum() for order in derangements(50, 2000)])
    dealt = 2 * hits / (truth.sum() + predicted.sum())
    assert found["micro_f1"].shuffled.value == pytest.approx(np.mean(dealt), abs=0.01)
    assert class_f1(truth, predicted, list("abcdef"))["f"]["support"] == 0


def test_true_labels_beat_shuffled_and_a_constant_does_not() -> None:
    truth = np.random.default_rng(1).random((80, 5)) < 0.3
    bootstrap = Bootstrap(80, draws=300)
    perfect = compare_f1(truth, truth, bootstrap)
    constant = compare_f1(truth, np.tile([True, False, True, False, False], (80, 1)), bootstrap)
    for name in ("micro_f1", "macro_f1"):
        assert perfect[name].matched.value == 1
        assert perfect[name].difference.estimate().above_zero
        assert constant[name].difference.estimate().value == pytest.approx(0, abs=1e-9)
        assert not constant[name].difference.estimate().above_zero


def test_copied_reports_beat_shuffled_on_bleu() -> None:
    texts = [f"finding {i} in zone {i % 7} of grade {i % 3} seen" for i in range(30)]
    found = compare_bleu(texts, texts, Bootstrap(30, draws=100))
    assert found["bleu_4"].matched.value == pytest.approx(1)
    assert found["bleu_4"].difference.estimate().above_zero
    same = compare_bleu(texts[:1] * 30, texts, Bootstrap(30, draws=100))
    assert not same["bleu_4"].difference.estimate().above_zero


def test_most_frequent_and_distinct() -> None:
    assert most_frequent(["a.", "b.", "", "b.", ""]) == "b."
    assert distinct(["No  change.", "no change.", "Clear."]) == 2
    with pytest.raises(InputError, match="constant baseline"):
        most_frequent(["", " "])
