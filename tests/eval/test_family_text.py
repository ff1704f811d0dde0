from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet, Item
from xgem.eval.families.text import CASES, LABELS, Tables, evaluate
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.report import as_html, as_json
from xgem.judges.external_text import ExternalMetric
from xgem.judges.report_labellers import RuleLabeller, read_label_table
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Estimate, derangements
from xgem.types import DataError, InputError, NotComputed

PARTS = [
    ("The heart is enlarged.", "Heart size is normal."),
    ("There is a left pleural effusion.", "No pleural effusion."),
    ("Pulmonary edema is present.", "No edema."),
    ("Right pneumothorax is seen.", "No pneumothorax."),
]
SOME: dict[str, Any] = {"draws": 100, "permutations": 3}


def _real(n: int = 60, seed: int = 0) -> EvalSet:
    rng = np.random.default_rng(seed)
    found = [" ".join(parts[int(k)] for parts, k in zip(PARTS, rng.integers(0, 2, 4), strict=True)) for _ in range(n)]
    return EvalSet("real", tuple(Item(f"s{i}", report=report) for i, report in enumerate(found)))


def _generated(real: EvalSet, order: np.ndarray | None = None, times: int = 1) -> EvalSet:
    """A report of each study with other words around the same findings; dealt to other studies by ``order``."""
    rows = range(len(real)) if order is None else order
    items = [
        Item(f"g{i}-{k}", pair=real.items[i].id, report=f"Chest. {real.items[int(row)].report} Take {k}.")
        for i, row in enumerate(rows)
        for k in range(times)
    ]
    return EvalSet("generated", tuple(items))


def minus_shuffled(metric: Metric) -> Estimate:
    difference = metric.references["shuffled"].difference
    assert difference is not None
    return difference


@pytest.fixture(scope="module")
def good() -> FamilyResult:
    real = _real()
    return evaluate(real, _generated(real), training=_real(80, seed=1), **SOME)


def test_matched_reports_are_above_shuffled_and_constant_ones(good: FamilyResult) -> None:
    for name in ("bleu_1", "bleu_4", "rouge_l", "micro_f1_14", "macro_f1_5"):
        metric = good[name]
        assert metric.value is not None
        assert minus_shuffled(metric).low > 0, name
        assert metric.value.low > metric.references["constant"].value.high, name
        assert metric.value.n == 60
    labels = good["weighted_f1_10+"].value
    assert labels is not None
    assert labels.value == pytest.approx(1)


def test_perplexity_stands_beside_that_of_real_reports(good: FamilyResult) -> None:
    real, training = _real(), _real(80, seed=1)
    rng = np.random.default_rng(0)
    mixed = [replace(item, report=" ".join(rng.permutation(item.report.split()))) for item in real.items]
    as_real = evaluate(real, real, training=training, **SOME)
    out_of_order = evaluate(real, replace(real, name="mixed", items=tuple(mixed)), training=training, **SOME)
    for found, low, high in ((as_real, 1, 1), (good, 2, np.inf), (out_of_order, 3, np.inf)):
        perplexity, ratio = found["perplexity"], found["perplexity_ratio"].value
        assert perplexity.value is not None
        assert ratio is not None
        assert low <= ratio.value <= high
        assert ratio.low <= ratio.value <= ratio.high
        assert ratio.value == pytest.approx(perplexity.value.value / perplexity.references["real"].value.value)
        assert perplexity.higher_is_better is None
    assert "--training" in evaluate(real, real, **SOME)["perplexity"].reason


def test_swapped_reports_lose_everything(good: FamilyResult) -> None:
    real = _real()
    swapped = evaluate(real, _generated(real, derangements(60, 1)[0]), **SOME)
    for name in ("bleu_4", "rouge_l", "micro_f1_14"):
        own, other = good[name].value, swapped[name].value
        assert own is not None
        assert other is not None
        assert other.high < own.low
        assert minus_shuffled(swapped[name]).low < 0.05
        assert "constant" not in swapped[name].references


def test_what_is_not_given_is_named_with_its_reason(good: FamilyResult) -> None:
    for name in ("radgraph_simple", "radgraph_partial", "radgraph_complete", "ratescore", "intra_study_bleu_1"):
        assert good[name].value is None
    assert "--radgraph-python" in good["radgraph_simple"].reason
    assert "no real report has a positive label for it" in good["f1/Fracture"].reason
    real = _real(10)
    found = evaluate(real, _generated(real), labellers={"CheXbert": NotComputed("no weights")}, **SOME)
    assert found["micro_f1_14"].reason == "no weights"
    with pytest.raises(KeyError):
        found.find("micro_f1_14", extractor="xgem-rules")


def test_settings_and_report_hold_what_the_numbers_were_made_with(good: FamilyResult) -> None:
    assert good.settings["real"]["n"] == good.settings["generated"]["n"] == 60
    assert len(good.settings["real"]["sha256"]) == 64
    assert "tok:13a" in good.settings["bleu"]
    assert good.settings["uncertain"] == "positive"
    assert "(no Python" in as_html([good])
    assert '"micro_f1_14"' in as_json([good])


def test_tables_have_a_row_a_study_and_a_row_a_class(good: FamilyResult) -> None:
    cases = list(csv.DictReader(io.StringIO(good.tables[CASES])))
    assert [row["id"] for row in cases] == [f"s{i}" for i in range(60)]
    assert {row["xgem-rules label agreement"] for row in cases} == {"1.0"}
    labels = {row["class"]: row for row in csv.DictReader(io.StringIO(good.tables[LABELS]))}
    assert set(labels) == set(CHEXPERT_CLASSES)
    assert float(labels["Edema"]["f1"]) == pytest.approx(1)
    assert labels["Fracture"]["f1"] == ""


def test_empty_generated_reports_are_counted_as_zero_and_empty_real_ones_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = _real(20)
    generated = _generated(real)
    half = tuple(replace(item, report="") if k % 2 else item for k, item in enumerate(generated.items))
    full = evaluate(real, generated, **SOME)["rouge_l"].value
    found = evaluate(real, replace(generated, items=half), **SOME)
    rouge, share = found["rouge_l"].value, found["empty_reports"].value
    assert full is not None
    assert rouge is not None
    assert share is not None
    assert rouge.value == pytest.approx(full.value / 2, rel=0.1)
    assert share.value == 0.5
    assert found.details["empty generated reports"] == 10
    blank = replace(real, items=(*real.items[:7], Item("s7"), *real.items[8:]))
    with caplog.at_level("WARNING", logger="xgem"):
        fewer = evaluate(blank, generated.subset(range(10)), **SOME)
    assert fewer.details["real studies left out, without a report"] == 1
    assert (fewer.settings["n"], fewer.settings["unanswered"]) == (9, 10)
    assert "generated answers 9 of the 19 studies of real" in caplog.text
    with pytest.raises(InputError, match="real: no reports"):
        evaluate(replace(real, items=(Item("s0"),)), generated, **SOME)
    with pytest.raises(DataError, match="no reports; these metrics"):
        evaluate(real, EvalSet("images", (Item("s0"),)), **SOME)


def test_several_generations_of_a_study_count_as_one_and_are_compared_with_each_other() -> None:
    real = _real(12)
    once, thrice = evaluate(real, _generated(real), **SOME), evaluate(real, _generated(real, times=3), **SOME)
    assert thrice["bleu_4"].value == once["bleu_4"].value
    within = thrice["intra_study_bleu_1"].value
    assert within is not None
    assert within.n == 12
    words = [len(report.replace(".", " .").split()) for report in _generated(real).reports]
    assert within.value == pytest.approx(1 - 12 / sum(words))  # all but the take's number


def test_labels_of_a_csv_stand_under_their_own_name(tmp_path: Path) -> None:
    real = _real(20)
    generated = _generated(real)
    for one, ids in ((real, [item.id for item in real.items]), (generated, [item.id for item in generated.items])):
        labels = RuleLabeller().label(one.reports)
        cells = [["" if np.isnan(cell) else f"{cell:g}" for cell in row] for row in labels]
        rows = [["id", *CHEXPERT_CLASSES], *([name, *row] for name, row in zip(ids, cells, strict=True))]
        (tmp_path / f"{one.name}.csv").write_text("\n".join(",".join(row) for row in rows))
    tables = Tables(*(read_label_table(tmp_path / f"{name}.csv") for name in ("generated", "real")))
    found = evaluate(real, generated, labellers={"csv": tables, "xgem-rules": RuleLabeller()}, **SOME)
    from_file, by_rules = (found.find("micro_f1_14", extractor=name) for name in ("csv", "xgem-rules"))
    assert from_file.value == by_rules.value
    assert from_file.weights == "generated.csv, real.csv"


def test_uncertain_labels_count_as_stated() -> None:
    real = EvalSet("real", tuple(Item(f"s{i}", report="Pulmonary edema is present.") for i in range(4)))
    doubt = EvalSet("doubt", tuple(Item(f"s{i}", report="Possible edema.") for i in range(4)))
    kept = evaluate(real, doubt, uncertain="positive", **SOME)["f1/Edema"].value
    lost = evaluate(real, doubt, uncertain="negative", **SOME)["f1/Edema"].value
    assert kept is not None
    assert lost is not None
    assert (kept.value, lost.value) == (1, 0)


def test_another_python_scores_matched_shuffled_and_constant_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(self, outputs, references):
        same = [float(reference in output) for output, reference in zip(outputs, references, strict=True)]
        return {"ratescore": np.array(same)}, "RaTEScore 0.6.0"

    monkeypatch.setattr(ExternalMetric, "score", score)
    real = _real(30)
    external = {"ratescore": ExternalMetric("ratescore", "python"), "radgraph": NotComputed("not asked for")}
    found = evaluate(real, _generated(real), training=_real(50, seed=2), external=external, **SOME)
    metric = found["ratescore"]
    assert metric.value is not None
    assert metric.value.value == 1
    assert minus_shuffled(metric).low > 0.5
    assert metric.references["constant"].value.value < 0.4
    assert (metric.extractor, metric.weights) == ("ratescore", "RaTEScore 0.6.0")
    assert found["radgraph_partial"].reason == "not asked for"
    with pytest.raises(InputError, match="'meteor'"):
        evaluate(real, _generated(real), external={"meteor": NotComputed("")}, **SOME)
    assert "ratescore" in found.tables[CASES].splitlines()[0]


@pytest.mark.parametrize(
    ("real", "generated", "outcome"),
    [
        ("real.csv", "gen_missing.csv", (4, 4)),
        ("real.csv", "gen_nan.csv", (8, 0)),
        ("real_blank.csv", "gen_tsv.tsv", (7, 0)),
        ("real_id_int.csv", "gen_id_float.csv", "names one of the 8 of real .*'0.0' for one, against '0'"),
    ],
)
def test_sets_as_users_have_them(cases_dir: Path, real: str, generated: str, outcome: Any) -> None:
    folder = cases_dir / "evalcsv" / "text"
    sets = read_set(folder / real, name="real"), read_set(folder / generated, name="generated")
    if isinstance(outcome, str):
        with pytest.raises(DataError, match=outcome):
            evaluate(*sets, **SOME)
        return
    found = evaluate(*sets, **SOME)
    assert (found.settings["n"], found.settings["unanswered"]) == outcome
