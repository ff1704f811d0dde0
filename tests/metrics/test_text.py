from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgem.metrics.bootstrap import Bootstrap, derangements
from xgem.metrics.classification import compare_f1_scores
from xgem.metrics.text import (
    MAX_ORDER,
    bleu_from_statistics,
    bleu_statistics,
    compare_bleu,
    compare_mean,
    distinct,
    intra_study_bleu,
    meteor,
    most_frequent,
    most_typical,
    rouge_l,
)
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


def corpus_bleu(outputs: list[str], references: list[str]) -> tuple[float, ...]:
    total = bleu_statistics(outputs, references).sum(axis=0)
    return tuple(float(bleu_from_statistics(total, order)) for order in range(1, MAX_ORDER + 1))


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
    found = compare_f1_scores(truth.astype(float), predicted.astype(float), Bootstrap(50, draws=20))
    assert found["micro_f1"].matched.value == pytest.approx(metrics.f1_score(truth, predicted, average="micro"))
    expected = metrics.f1_score(truth[:, :5], predicted[:, :5], average="macro")
    assert found["macro_f1"].matched.value == pytest.approx(expected)
    hits = np.array([(truth & predicted[order]).sum() for order in derangements(50, 2000)])
    dealt = 2 * hits / (truth.sum() + predicted.sum())
    assert found["micro_f1"].shuffled.value == pytest.approx(np.mean(dealt), abs=0.01)


def test_true_labels_beat_shuffled_and_a_constant_does_not() -> None:
    truth = np.random.default_rng(1).random((80, 5)) < 0.3
    bootstrap = Bootstrap(80, draws=300)
    labels = truth.astype(float)
    perfect = compare_f1_scores(labels, labels, bootstrap)
    constant = compare_f1_scores(labels, np.tile([1.0, 0.0, 1.0, 0.0, 0.0], (80, 1)), bootstrap)
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


def test_meteor_by_hand() -> None:
    equal, stem, swapped, other, empty = meteor(
        ["lungs are clear", "lung is clear", "clear are lungs", "heart enlarged", ""], ["Lungs are clear."] * 5
    )
    assert equal == pytest.approx(1 - 0.5 * (1 / 3) ** 3)  # three words in one chunk
    # "lung" by its stem and "clear": precision and recall 2 / 3, two matches in two chunks
    assert stem == pytest.approx(2 / 3 * (1 - 0.5 * (2 / 2) ** 3))
    assert swapped == pytest.approx(1 - 0.5 * (3 / 3) ** 3)
    assert other == empty == 0


def test_the_most_typical_report_need_not_be_the_most_frequent() -> None:
    common = [
        "the lungs are clear and the heart is normal",
        "lungs are clear and heart is normal",
        "the lungs are clear",
    ]
    assert most_typical([*common, "pacemaker", "pacemaker", ""]) == common[0]
    with pytest.raises(InputError, match="template baseline"):
        most_typical(["", "1."])


def test_most_frequent_and_distinct() -> None:
    assert most_frequent(["a.", "b.", "", "b.", ""]) == "b."
    assert distinct(["No  change.", "no change.", "Clear."]) == 2
    with pytest.raises(InputError, match="constant baseline"):
        most_frequent(["", " "])


# At least four words an output: NLTK counts one n-gram for a sentence that is too short to have any
PRETOKENISED = [
    ("the heart is large .", "the heart is mildly large ."),
    ("there is no effusion", "no pleural effusion is seen"),
    ("clear lungs without any focal air space disease", "clear lungs without focal air space disease"),
]


def test_bleu_matches_nltk_on_pretokenised_text() -> None:
    translate = pytest.importorskip("nltk.translate.bleu_score")
    outputs, references = [a for a, _ in PRETOKENISED], [b for _, b in PRETOKENISED]
    split = [[one.split()] for one in references], [one.split() for one in outputs]
    for order, value in enumerate(corpus_bleu(outputs, references), start=1):
        assert value == pytest.approx(translate.corpus_bleu(*split, weights=[1 / order] * order))


@given(st.lists(st.sampled_from(OUTPUTS + REFERENCES), min_size=4, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_corpus_bleu_knows_no_order_and_no_copies(texts: list[str], random: Random) -> None:
    pairs = list(zip(texts, reversed(texts), strict=True))
    shuffled = random.sample(pairs, len(pairs))
    expected = corpus_bleu([a for a, _ in pairs], [b for _, b in pairs])
    assert corpus_bleu([a for a, _ in shuffled], [b for _, b in shuffled]) == pytest.approx(expected)
    assert corpus_bleu([a for a, _ in pairs] * 3, [b for _, b in pairs] * 3) == pytest.approx(expected)


def test_rouge_l_by_hand_and_by_an_own_table() -> None:
    # "clear lungs no effusion" against "lungs are clear no effusion": 3 words in order of 4 and of 5
    assert rouge_l(["clear lungs no effusion"], ["lungs are clear no effusion"])[0] == pytest.approx(2 * 3 / (4 + 5))
    for output, reference in zip(OUTPUTS, REFERENCES, strict=True):
        a, b = ([word for word in text.split() if word != "."] for text in (output, reference))
        table = np.zeros((len(a) + 1, len(b) + 1))
        for i, j in np.ndindex(len(a), len(b)):
            table[i + 1, j + 1] = table[i, j] + 1 if a[i] == b[j] else max(table[i, j + 1], table[i + 1, j])
        assert rouge_l([output], [reference])[0] == pytest.approx(2 * table[-1, -1] / (len(a) + len(b)))


def test_rouge_l_ignores_case_and_marks_and_an_empty_output_scores_zero() -> None:
    assert rouge_l(["No acute disease!", "", "Clear."], ["no ACUTE disease", "clear", "normal"]).tolist() == [1, 0, 0]


def test_swapped_reports_lose_rouge_l_and_copies_have_none_to_lose() -> None:
    texts = [f"finding {i} in zone {i % 7} of grade {i % 3} seen" for i in range(30)]
    bootstrap = Bootstrap(30, draws=100)
    found = compare_mean(rouge_l, texts, texts, bootstrap)
    assert found.matched.value == 1
    assert found.difference.estimate().above_zero
    assert compare_mean(rouge_l, texts[:1] * 30, texts, bootstrap).difference.value == pytest.approx(0)


def test_bleu_within_a_study_sees_only_its_own_reports() -> None:
    bootstrap = Bootstrap(2, draws=10)
    same = [["the heart is large today"] * 2, ["no acute lung disease"] * 2]
    assert intra_study_bleu(same, bootstrap)["bleu_4"].value == pytest.approx(1)
    unlike = [[same[0][0], same[1][0]], [same[1][0], same[0][0]]]
    assert intra_study_bleu(unlike, bootstrap)["bleu_1"].value == 0
    three = [["a b", "a b", "c d"], ["a b", "a b"]]
    # Study 0: of six ordered pairs two match both words of two; study 1: both of two pairs
    assert intra_study_bleu(three, bootstrap)["bleu_1"].value == pytest.approx((2 * 2 + 2 * 2) / (6 * 2 + 2 * 2))
    with pytest.raises(InputError, match="at least 2"):
        intra_study_bleu([["a", "b"], ["a"]], bootstrap)
