"""Records of measures: JSON, CSV, Markdown and HTML say the same, and what was not computed says why."""

import csv
import io
import json

import numpy as np
import pytest

from xgem.eval import plots
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.eval.report import as_csv, as_html, as_json, as_markdown, write_results
from xgem.metrics.bootstrap import Estimate
from xgem.types import OutputError


@pytest.fixture
def result():
    value = Estimate(1.5, 1.0, 2.0, 30)
    return FamilyResult(
        "fidelity",
        [
            Metric(
                "fid",
                value,
                extractor="own",
                weights="0123456789abcdef",
                references={"floor": Estimate(0.5, 0.4, 0.6, 30)},
            ),
            Metric("fid", value, of="Edema", extractor="own"),
            Metric("gap", value, of="sex"),
            Metric.missing("fid", "no weights of rad-dino", extractor="rad-dino"),
            Metric("undefined", Estimate(float("nan"), float("nan"), float("nan"), 3)),
        ],
        {"seed": 0, "real": {"n": np.int64(30)}},
        plots={"a plot": plots.bars(["a"], {"x": [value]}, label="y")},
        examples=[Example("worst <one> & more", [np.zeros((8, 8), dtype=np.uint8)])],
        tables={"FID.csv": "FID\n1.5\n"},
    )


def test_json_holds_value_interval_n_and_reasons(result):
    record = json.loads(as_json([result]))
    family = record["families"][0]
    assert family["metrics"][0]["value"] == 1.5
    assert family["metrics"][0]["interval"] == [1.0, 2.0]
    assert family["metrics"][0]["n"] == 30
    assert family["metrics"][3] == {
        "name": "fid",
        "extractor": "rad-dino",
        "value": None,
        "not_computed": "no weights of rad-dino",
    }
    assert family["metrics"][4]["value"] is None  # NaN is no JSON
    assert family["settings"]["real"]["n"] == 30


def test_csv_and_markdown_have_a_row_a_number(result):
    rows = list(csv.DictReader(io.StringIO(as_csv([result]))))
    assert [row["value"] for row in rows] == ["1.5", "1.5", "1.5", "", "nan"]
    assert rows[3]["not_computed"] == "no weights of rad-dino"
    text = as_markdown([result])
    assert "| fid | 1.500 [1.000, 2.000] | 30 | floor 0.500 [0.400, 0.600] | own |" in text
    assert "not computed: no weights of rad-dino" in text
    assert "| gap, sex |" in text
    assert "Edema" not in text  # single findings are in the CSV


def test_html_is_one_file_and_escapes(result):
    page = as_html([result])
    assert "fid, Edema" in page
    assert "worst &lt;one&gt; &amp; more" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("<!doctype html>", "")
    assert "not computed: no weights of rad-dino" in page


def test_a_metric_is_found_by_name(result):
    assert result["fid"].extractor == "own"
    assert result["fid/Edema"].value.n == 30
    with pytest.raises(KeyError):
        result["nothing"]


def test_results_are_written_whole_and_not_over_others(result, tmp_path):
    record = write_results([result], tmp_path, "fidelity")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "FID.csv",
        "fidelity.csv",
        "fidelity.html",
        "fidelity.json",
        "fidelity.md",
    ]
    with pytest.raises(OutputError, match="--overwrite"):
        write_results([result], tmp_path, "fidelity")
    assert write_results([result], tmp_path, "fidelity", overwrite=True) == record


def test_plots_are_png():
    values = [Estimate(0.5, 0.4, 0.7, 9), None]
    made = [
        plots.bars(["a", "b"], {"x": values, "y": values}, counts=[9, 0]),
        plots.histogram({"x": [1, 2, 3], "y": [2, 2]}, label="d"),
        plots.curves({"x": ([0, 1], [0, 1])}, x="fpr", y="tpr", diagonal=True),
        plots.scatter({"x": np.zeros((4, 2))}),
    ]
    assert all(png.startswith(b"\x89PNG") for png in made)
