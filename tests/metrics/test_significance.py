from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from xgem.eval.compare import compare_cases, comparison_table, rank, rank_records, read_cases
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.report import write_results
from xgem.eval.schema import Record, read_record
from xgem.metrics.bootstrap import Estimate
from xgem.metrics.significance import holm, rank_correlation, wilcoxon
from xgem.types import DataError, InputError


def _enumerated(difference: np.ndarray) -> float:
    """The two-sided p of the signed-rank test over all sign patterns, for distinct magnitudes."""
    ranks = np.argsort(np.argsort(np.abs(difference))) + 1
    total = ranks.sum()
    seen = min(ranks[difference > 0].sum(), ranks[difference < 0].sum())
    patterns = itertools.product((0, 1), repeat=len(ranks))
    sums = [np.dot(ranks, signs) for signs in patterns]
    return sum(min(one, total - one) <= seen for one in sums) / len(sums)


@pytest.mark.parametrize("n", [2, 3, 5, 7, 9])
def test_wilcoxon_against_all_sign_patterns(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(5):
        a, b = rng.normal(size=n), rng.normal(size=n)
        assert wilcoxon(a, b, draws=5).p == pytest.approx(_enumerated(a - b))


def test_five_runs_cannot_be_significant() -> None:
    found = wilcoxon([1.0, 2.0, 3.0, 4.0, 5.5], [0.0, 0.5, 0.7, 0.2, 0.1])
    assert found.p == found.smallest_p == 0.0625


def test_cases_without_a_difference_are_left_out() -> None:
    found = wilcoxon([1.0, 2.0, 3.0, 4.0, 4.0], [0.0, 0.5, 0.7, 4.0, 4.0])
    assert found.n_used == 3
    assert found.smallest_p == found.p == 0.25
    assert found.difference.n == 5
    same = wilcoxon([1.0, 2.0], [1.0, 2.0])
    assert (same.p, same.n_used) == (1.0, 0)


def test_ties_are_exact_at_small_n() -> None:
    # Four differences of one magnitude: ranks 2.5 each; a share of 2 in 16 sign patterns is as far out as all positive
    assert wilcoxon([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]).p == 2 / 16
    assert wilcoxon([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]).p == 10 / 16


def test_wilcoxon_holds_its_level_and_finds_a_planted_shift() -> None:
    rng = np.random.default_rng(0)
    p = [wilcoxon(rng.normal(size=30), rng.normal(size=30), draws=2).p for _ in range(300)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09
    base = rng.normal(size=200)
    found = wilcoxon(base + 0.2 + rng.normal(size=200) * 0.3, base)
    assert found.p < 1e-6
    assert found.difference.above_zero


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="all finite"):
        wilcoxon([1.0, float("nan")], [1.0, 2.0])
    with pytest.raises(InputError, match="at least 2"):
        wilcoxon([1.0], [2.0])


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1: 0.03, 0.04, 0.04
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_family_wise_error() -> None:
    rng = np.random.default_rng(1)
    wrong = np.mean([min(holm(rng.random(10).tolist())) < 0.05 for _ in range(2000)])
    assert 0.03 < wrong < 0.07


def test_cases_of_two_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name, shift in (("one", 0.3), ("two", 0.0)):
        rows = [f"s{i},{rng.normal() * 0.1 + shift},{rng.normal()}" for i in range(40)]
        rows[3] = "s3,0.5," if name == "one" else rows[3]
        (tmp_path / f"{name}.csv").write_text("id,rouge_l,other\n" + "\n".join(rows) + "\n")
    first, second, ids = read_cases(tmp_path / "one.csv", tmp_path / "two.csv")
    assert "s3" not in ids
    assert len(ids) == 39
    found = compare_cases(first, second)
    assert found["rouge_l"].p_holm == pytest.approx(2 * found["rouge_l"].p)
    assert found["rouge_l"].p_holm is not None
    assert found["rouge_l"].p_holm < 0.001
    assert found["other"].p > 0.01
    table = comparison_table(found)
    assert "| other |" in table
    assert "Holm's method" in table
    assert f"| {2.0**-38:.2g} |" in table
    (tmp_path / "bad.csv").write_text("id,rouge_l\ns0,high\n")
    with pytest.raises(DataError, match=r"bad\.csv"):
        read_cases(tmp_path / "one.csv", tmp_path / "bad.csv")


# CheXGenBench, Table 8: ranks by measure, the mean and its rank
TABLE_8 = {
    "SD V1-4": ([9, 9, 9, 9, 4, 8, 5, 7, 8], 7.55, 8),
    "SD V1-5": ([8, 7, 8, 8, 5, 6, 4, 6, 6], 6.44, 6),
    "SD V2": ([10, 11, 10, 10, 7, 9, 6, 9, 10], 9.11, 10),
    "SD V2-1": ([11, 10, 11, 11, 8, 7, 7, 8, 11], 9.33, 11),
    "RadEdit": ([3, 3, 3, 3, 3, 11, 2, 10, 5], 4.78, 4),
    "SD V3-5": ([5, 5, 5, 5, 10, 2, 11, 4, 7], 6.00, 5),
    "Lumina 2.0": ([6, 6, 6, 6, 9, 5, 9, 5, 9], 6.78, 7),
    "Flux.1-Dev": ([7, 8, 7, 7, 11, 10, 10, 11, 4], 8.33, 9),
    "LLM-CXR": ([4, 4, 4, 4, 6, 1, 8, 1, 3], 3.89, 3),
    "Pixart Sigma": ([2, 2, 2, 2, 1, 4, 3, 3, 2], 2.33, 2),
    "Sana": ([1, 1, 1, 1, 2, 3, 1, 2, 1], 1.44, 1),
}


def test_rank_table_is_that_of_the_paper() -> None:
    columns = np.array([ranks for ranks, _, _ in TABLE_8.values()], float).T
    # Any values in the same order: FID-like ones fall, the others rise with quality
    values = {
        f"measure {k}": ((column**2 if k < 4 else -np.sqrt(column)).tolist(), k >= 4)
        for k, column in enumerate(columns)
    }
    table = rank(list(TABLE_8), values)
    np.testing.assert_array_equal(table.ranks, columns.T)
    np.testing.assert_allclose(table.mean_rank, [mean for _, mean, _ in TABLE_8.values()], atol=0.0101)
    assert table.overall.tolist() == [overall for _, _, overall in TABLE_8.values()]
    assert table.as_csv().splitlines()[-1] == "Sana,1,1,1,1,2,3,1,2,1,1.44,1"


def test_ties_share_their_rank() -> None:
    table = rank(["a", "b", "c"], {"f1": ([0.5, 0.5, 0.1], True)})
    assert table.ranks[:, 0].tolist() == [1.5, 1.5, 3]


def test_rank_correlation_is_that_of_the_papers_table_10() -> None:
    fidelity = [2, 1, 5, 7, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14]
    assert rank_correlation(range(14), fidelity)[0] == pytest.approx(0.947, abs=5e-4)


def _run(folder: Path, value: float, *, n: int = 50, missing: bool = False) -> Record:
    def number(one: float) -> Estimate:
        return Estimate(one, one - 0.1, one + 0.1, n)

    text = [
        Metric("bleu_4", number(value)),
        Metric("f1", number(value), of="Edema"),
        Metric.missing("ratescore", "no Python") if missing else Metric("ratescore", number(1.0)),
    ]
    images = [
        Metric("fid", number(10 - value), extractor="inception-v3"),
        Metric("fid", number(value), extractor="rad-dino"),
        Metric("band_power_ratio", number(value)),
    ]
    results = [FamilyResult("text", text, {}), FamilyResult("fidelity", images, {}, route="report->frontal")]
    return read_record(write_results(results, folder, "measures"))


def test_records_of_several_runs_are_ranked(tmp_path: Path) -> None:
    records = {"weak": _run(tmp_path / "a", 0.2, missing=True), "strong": _run(tmp_path / "b", 0.4)}
    table = rank_records(records)
    fid = [f"fidelity report->frontal fid {space}" for space in ("inception-v3", "rad-dino")]
    assert table.metrics == ("text bleu_4", *fid)
    assert table.ranks.tolist() == [[2, 2, 1], [1, 1, 2]]  # the lower distance is the better one, space by space
    assert "not computed for weak" in table.left_out["text ratescore"]
    assert "better" in table.left_out["fidelity report->frontal band_power_ratio"]
    assert "text ratescore: not computed" in table.as_markdown()
    assert "text f1 Edema" in rank_records(records, parts=True).metrics
    assert rank_records(records, families=["text"]).metrics == ("text bleu_4",)


def test_numbers_at_different_n_are_not_ranked(tmp_path: Path) -> None:
    records = {"few": _run(tmp_path / "a", 0.2), "many": _run(tmp_path / "b", 0.4, n=500)}
    with pytest.raises(DataError, match="n 50, 500: expected one of each"):
        rank_records(records)


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError, match="xgem-measures"):
        read_record(tmp_path / "a.json")
