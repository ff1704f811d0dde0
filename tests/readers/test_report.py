"""Reports of simulated readers: planted effects are found, and none where none was planted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Ran
from tests.readers.simulated import answer_all, likert, synthetic_worse
from xgem.metrics.significance import holm
from xgem.readers.analysis import Settings, item_means, mean_score
from xgem.readers.report import Report, as_json, report_of, write_report
from xgem.readers.results import Reading
from xgem.readers.study import Study
from xgem.types import OutputError

QUICK = Settings(draws=500)


def row_of(report: Report, table: str, **of: str) -> dict[str, Any]:
    (row,) = [row for row in report.table(table) if all(row[name] == value for name, value in of.items())]
    return row


@pytest.fixture
def study(new_study: Callable[..., Study]) -> Study:
    return new_study(items=12, turing=True)


def test_planted_effect_is_found(study: Study) -> None:
    answer_all(study, synthetic_worse(1.2, turing=True))
    report = report_of(study, QUICK)
    assert report.state == "All 240 answers of 2 readers."
    row = row_of(report, "scores", task="pair", arm="real", reader="all")
    assert (row["answers"], row["n"], row["missing"]) == (24, 12, 0)
    for row in report.table("tests"):
        assert row["test"] == "Mann-Whitney U"
        assert row["p_holm"] < 0.05
        assert row["low"] < 1.2 < row["high"]
    for row in report.table("guesses"):
        assert row["accuracy_low"] > 0.5
    anna, ben = (row_of(report, "scores", task="pair", arm="real", reader=name)["value"] for name in ("anna", "ben"))
    assert anna - ben == pytest.approx(0.5, abs=0.3)
    for row in report.table("times"):
        assert row["median"] == pytest.approx(10)


def test_no_effect_is_found_where_none_was_planted(study: Study) -> None:
    answer_all(study, synthetic_worse(0, turing=True), seed=2)
    report = report_of(study, QUICK)
    assert min(row["p_holm"] for row in report.table("tests")) > 0.05
    pooled = [row for row in report.table("guesses") if row["reader"] == "all"]
    assert sum(row["accuracy_low"] < 0.5 < row["accuracy_high"] for row in pooled) >= 4  # of five intervals of 95 %


def test_readers_who_agree_and_readers_who_do_not(study: Study) -> None:
    answer_all(study, synthetic_worse(0, turing=True))
    rows = report_of(study, QUICK).table("agreement")
    assert np.mean([row["value"] for row in rows]) > 0.5
    for row in rows:
        assert row["value"] > 0.2
        assert row["n"] == 24
        assert row["measure"] == "kappa" or row["low"] < row["value"] < row["high"]


def test_readers_without_anything_in_common(study: Study) -> None:
    answer_all(study, lambda reader, arm, quality, rng: (int(rng.integers(1, 6)), "real"))
    report = report_of(study, QUICK)
    icc = [row for row in report.table("agreement") if row["measure"] == "ICC(2,1)"]
    assert sum(row["low"] < 0 < row["high"] for row in icc) >= 4
    row = row_of(report, "guesses", task="pair", reader="all")
    assert (row["real_found"], row["synthetic_found"], row["accuracy"]) == (1, 0, 0.5)
    assert row["real_called_real"] == row["synthetic_called_real"] == 24


def test_paired_models_of_chexgen(new_study: Callable[..., Study], sets: dict[str, Path]) -> None:
    generated = {name: str(sets[name]) for name in ("mine", "other")}
    study = new_study(protocol="chexgen", items=20, generated=generated)

    def rule(reader: str, arm: str, quality: float, rng: np.random.Generator) -> tuple[int, None]:
        return likert(0.8 if arm == "mine" else -0.2, quality, rng, -2, 2), None

    answer_all(study, rule)
    report = report_of(study, QUICK)
    (test,) = report.table("tests")
    assert (test["test"], test["first"], test["second"], test["n"]) == ("Wilcoxon signed-rank", "mine", "other", 20)
    assert test["p"] < 0.05
    assert test["low"] < 1.0 < test["high"]
    row = row_of(report, "scores", arm="mine", reader="all")
    assert "RoentGen, second reader -0.14 +- 1.01" in row["published"]
    assert {one.name for one in report.figures} == {"scores.png", "distribution_match.png"}
    assert report.table("guesses") == []


def test_published_scores_stand_beside_those_of_xgems_tasks(study: Study) -> None:
    answer_all(study, synthetic_worse(0, turing=True))
    report = report_of(study, QUICK)
    published = {
        (row["task"], row["arm"]): row["published"] for row in report.table("scores") if row["reader"] == "all"
    }
    assert published["report-of-pair", "real"] == "real 3.4 +- 1.3"
    assert published["report-realism", "mine"] == "XGeM 4.0 +- 0.9"
    assert len(published) == 10


def test_unfinished_study_says_what_is_missing(study: Study) -> None:
    answer_all(study, synthetic_worse(1.2, turing=True), share=0.5)
    report = report_of(study, QUICK)
    assert report.state == "Unfinished: 120 of 240 answers are missing (anna 60, ben 60)."
    assert sum(row["missing"] for row in report.table("scores") if row["reader"] == "all") == 120
    record = json.loads(as_json(report))
    assert record["missing"] == {"anna": 60, "ben": 60}


def test_study_without_answers(study: Study, tmp_path: Path) -> None:
    report = report_of(study, QUICK)
    for name in ("scores", "tests", "agreement"):
        assert all(row["not_computed"] for row in report.table(name))
    assert report.figures == []
    write_report(report, tmp_path / "report")
    assert "expected at least 2" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_agreement_of_one_reader_is_not_computed(new_study: Callable[..., Study]) -> None:
    study = new_study(readers=["anna"], items=4)
    answer_all(study, synthetic_worse(1))
    (row, *_) = report_of(study, QUICK).table("agreement")
    assert "answers of 1 readers" in row["not_computed"]


def reading(item: int, reader: str, score: int | None, arm: str = "real") -> Reading:
    return Reading("t", item, arm, f"c{item}", reader, 0, score, None, None, None, None, 0, 0)


def test_mean_is_over_answers_and_its_interval_over_items() -> None:
    readings = [reading(item, reader, score) for item, score in enumerate((1, 5, 3)) for reader in "ab"]
    found = mean_score(readings, "ab", QUICK)
    assert (found.value, found.n) == (3, 3)
    assert found.low < 2 < 4 < found.high


def test_missing_answer_of_a_strict_reader_does_not_favour_an_item() -> None:
    """The second reader is two points stricter, and lacks the last item."""
    readings = [reading(item, "a", 3 + item) for item in range(3)]
    readings += [reading(item, "b", 1 + item) for item in range(2)] + [reading(2, "b", None)]
    means = item_means(readings, "ab")["real"]
    assert means["c2"] - means["c1"] == pytest.approx(1, abs=0.3)
    assert means["c1"] - means["c0"] == 1


def test_holm_is_over_the_tests_of_all_tasks(study: Study) -> None:
    answer_all(study, synthetic_worse(0.4, turing=True))
    rows = report_of(study, QUICK).table("tests")
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])


def test_files_of_the_report(study: Study, tmp_path: Path, xgem: Callable[..., Ran]) -> None:
    answer_all(study, synthetic_worse(1, turing=True))
    out, answers = tmp_path / "report", tmp_path / "answers.csv"
    done = xgem("readers", "report", study.folder, "--out", out, "--csv", answers, "--bootstrap", 200)
    assert done.code == 0, done.err
    assert "All 240 answers" in done.out
    assert {file.name for file in out.iterdir()} == {
        *("report.json", "report.md", "report.html", "scores.png"),
        *(f"{table}.csv" for table in ("scores", "tests", "agreement", "guesses", "times")),
        *(f"distribution_{task.name}.png" for task in study.plan.all_tasks),
    }
    with answers.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 240
    assert {row["arm"] for row in rows} == {"real", "mine"}
    assert {row["seconds"] for row in rows} == {"10.00"}
    assert {row["correct"] for row in rows} == {"True", "False"}
    again = xgem("readers", "report", study.folder, "--out", out)
    assert (again.code, again.err.count("\n")) == (1, 1)
    with pytest.raises(OutputError):
        write_report(report_of(study, QUICK), out)
