"""``xgem eval rank | compare | metrics | schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xgem.eval.record import FamilyResult, Metric
from xgem.eval.registry import FAMILIES, metrics
from xgem.eval.report import write_results
from xgem.eval.schema import json_schema
from xgem.metrics.bootstrap import Bootstrap
from xgem.utils.tables import csv_text


def run_folder(folder: Path, shift: float) -> Path:
    """A run on 40 studies: ROUGE-L of each, higher by ``shift``, and a distance lower by it."""
    scores = np.linspace(0.2, 0.5, 40) + np.random.default_rng(0).normal(0, 0.01, 40) * (shift > 0) + shift
    bootstrap = Bootstrap(40, draws=50)
    text = FamilyResult(
        "text",
        [Metric.measured("rouge_l", bootstrap.mean(scores))],
        {"seed": 0},
        tables={"text_cases.csv": csv_text(("id", "rouge_l"), [(f"s{i}", score) for i, score in enumerate(scores)])},
    )
    distance = Metric.measured("fid", bootstrap.mean(1 - scores), extractor="rad-dino", weights="a" * 8)
    write_results([text, FamilyResult("fidelity", [distance], {"seed": 0})], folder, "all")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return run_folder(tmp_path / "weak", 0.0), run_folder(tmp_path / "strong", 0.1)


def test_rank_goes_by_each_metrics_direction(xgem: Any, runs: tuple[Path, Path]) -> None:
    weak, strong = (folder / "all.json" for folder in runs)
    ran = xgem("eval", "rank", f"weak={weak}", f"strong={strong}")
    assert ran.code == 0, ran.err
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ran.out.splitlines()]
    assert rows[0] == ["model", "text rouge_l", "fidelity fid rad-dino", "mean rank", "rank"]
    assert rows[2:4] == [["weak", "2", "2", "2.00", "2"], ["strong", "1", "1", "1.00", "1"]]
    ran = xgem("eval", "rank", f"weak={weak}", f"strong={strong}", "--family", "text")
    assert "fidelity" not in ran.out
    assert xgem("eval", "rank", str(weak)).err.count("expected NAME=FILE") == 1


@pytest.mark.parametrize("tables", [False, True])
def test_compare_finds_the_better_run_case_by_case(xgem: Any, runs: tuple[Path, Path], tables: bool) -> None:
    weak, strong = (folder / "text_cases.csv" if tables else folder for folder in runs)
    ran = xgem("eval", "compare", strong, weak, "--json")
    assert ran.code == 0, ran.err
    (name, test), *others = json.loads(ran.out).items()
    assert not others
    assert name == ("rouge_l" if tables else "text: rouge_l")
    assert test["difference"]["value"] == pytest.approx(0.1, abs=0.01)
    assert test["difference"]["n"] == test["n_used"] == 40
    assert test["p"] == test["p_holm"] < 1e-6
    table = xgem("eval", "compare", strong, weak).out
    assert f"| {name} | 0." in table
    assert "Holm" in table
    same = json.loads(xgem("eval", "compare", weak, weak, "--json").out)
    assert same[name]["p"] == 1


def test_compare_refuses_what_has_no_cases_in_common(xgem: Any, runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for second, reason in (
        (tmp_path / "empty", "no table *_cases.csv in both"),
        (runs[1] / "text_cases.csv", "expected two tables of cases or two run folders"),
    ):
        ran = xgem("eval", "compare", runs[0], second)
        assert (ran.code, ran.err.count("\n"), reason in ran.err) == (2, 1, True), ran.err
    ran = xgem("eval", "compare", *runs, "--seed", -1)
    assert (ran.code, ran.err) == (2, "xgem: error: --seed -1: expected at least 0\n")


def test_metrics_lists_the_registry(xgem: Any) -> None:
    rows = json.loads(xgem("eval", "metrics", "--json").out)
    assert [row["name"] for row in rows] == [one.name for one in metrics()]
    table = xgem("eval", "metrics").out
    assert [line for line in table.splitlines() if line.startswith("### ")] == [
        f"### {name.capitalize()}" for name in FAMILIES
    ]
    assert "| `fid` | lower |" in xgem("eval", "metrics", "--family", "fidelity").out
    assert "expected one of" in xgem("eval", "metrics", "--family", "beauty").err


def test_schema_is_printed(xgem: Any) -> None:
    assert json.loads(xgem("eval", "schema").out) == json_schema()
