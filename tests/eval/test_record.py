"""Records of measures: JSON, CSV, Markdown and HTML say the same, and what was not computed says why."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from xgem.eval import plots
from xgem.eval.record import Example, FamilyResult, Metric, Reference
from xgem.eval.registry import spec
from xgem.eval.report import as_csv, as_html, as_json, as_markdown, write_results
from xgem.eval.schema import read_record, record_of
from xgem.metrics.bootstrap import Comparison, Estimate, Sampled
from xgem.types import DataError, InputError, OutputError


@pytest.fixture
def result() -> FamilyResult:
    value, draws = Estimate(1.5, 1.0, 2.0, 30), np.array([1.0, 1.5, 2.0])
    own, shuffled = Sampled(1.5, draws, 30), Sampled(0.5, draws - 1.25, 30)
    return FamilyResult(
        "fidelity",
        [
            Metric(
                "fid", value, extractor="own", weights="0123456789abcdef",
                references={"floor": Reference(Estimate(0.5, 0.4, 0.6, 30))},
            ),
            Metric("fid", value, of="Edema", extractor="own"),
            Metric.measured("alignment", Comparison(own, shuffled), unpaired={"ceiling": value}),
            Metric.missing("fid", "no weights of rad-dino", extractor="rad-dino"),
            Metric("kid", Estimate(float("nan"), float("nan"), float("nan"), 3)),
        ],
        {"seed": 0, "real": {"n": np.int64(30)}},
        plots={"a plot": plots.bars(["a"], {"x": [value]}, label="y")},
        examples=[Example("worst <one> & more", [np.zeros((8, 8), dtype=np.uint8)])],
        tables={"FID.csv": "FID\n1.5\n"},
        route="T->F",
    )  # fmt: skip


def test_json_holds_value_interval_n_references_and_reasons(result: FamilyResult) -> None:
    family = json.loads(as_json([result]))["families"][0]
    assert family["route"] == "T->F"
    first, _, alignment, missing, undefined = family["metrics"]
    assert first["value"] == {"value": 1.5, "low": 1.0, "high": 2.0, "n": 30}
    assert first["references"]["floor"]["value"]["value"] == 0.5
    assert first["higher_is_better"] is False
    assert alignment["references"]["shuffled"]["difference"]["value"] == 1.0
    assert "difference" not in alignment["references"]["ceiling"]
    assert (missing["extractor"], missing["not_computed"]) == ("rad-dino", "no weights of rad-dino")
    assert missing.get("value") is None
    assert undefined["value"]["value"] is None  # NaN is no JSON
    assert family["settings"]["real"]["n"] == 30


def test_a_record_is_read_as_it_was_written(result: FamilyResult, tmp_path: Path) -> None:
    path = write_results([result], tmp_path, "fidelity", settings={"model": {"hash": "0"}})
    record = read_record(path)
    assert record.families == record_of([result]).families
    assert record.settings == {"model": {"hash": "0"}}
    assert as_markdown(record) == as_markdown([result])
    (tmp_path / "other.json").write_text('{"format": "another"}')
    with pytest.raises(DataError, match="expected a record of format xgem-measures 2"):
        read_record(tmp_path / "other.json")


def test_only_registered_metrics_of_the_family_are_reported() -> None:
    with pytest.raises(InputError, match="not registered"):
        Metric("sharpness of mine", None)
    with pytest.raises(InputError, match="registered for text, not fidelity"):
        FamilyResult("fidelity", [Metric.missing("bleu_1", "")], {})


def test_paired_references_must_be_paired() -> None:
    own, other = Sampled(1.0, np.arange(3.0), 9), Sampled(1.0, np.arange(4.0), 9)
    with pytest.raises(InputError, match="give it as unpaired"):
        Metric.measured("fid", own, paired={"independent": other})
    assert Metric.measured("fid", own, unpaired={"floor": other}).references["floor"].difference is None


def test_csv_and_markdown_have_every_number(result: FamilyResult) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv([result]))))
    values = [row for row in rows if row["number"] == "value"]
    assert [row["value"] for row in values] == ["1.5", "1.5", "1.5", "", ""]
    assert values[3]["not_computed"] == "no weights of rad-dino"
    text = as_markdown([result])
    assert "| FID (Frechet distance) | 1.500 [1.000, 2.000] | 30 | floor 0.500 [0.400, 0.600] | own |" in text
    assert "- Not computed: FID (Frechet distance) (rad-dino) (no weights of rad-dino)." in text
    assert text.startswith("### Fidelity, T->F")
    assert "Edema" not in text  # single findings are in the CSV


def test_html_is_one_file_and_escapes(result: FamilyResult) -> None:
    page = as_html([result])
    assert "FID (Frechet distance), Edema" in page
    assert "worst &lt;one&gt; &amp; more" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("<!doctype html>", "")
    assert "Not computed: FID (Frechet distance) (rad-dino) (no weights of rad-dino)." in page
    places = [page.index(part) for part in ("Summary</h2>", 'id="family-1"', "<figure", 'id="glossary"')]
    assert places == sorted(places)  # a summary first, pictures before tables, the glossary last
    assert page.index("<figure") < page.index("<table>", page.index('id="family-1"'))
    assert page[places[0] : places[1]].count("<tr>") == 3  # heads, and two numbers of the whole set
    assert all(f"<dt>{spec(name).label}</dt>" in page[places[-1] :] for name in ("fid", "alignment", "kid"))


def test_a_metric_is_found_by_name(result: FamilyResult) -> None:
    assert result.find("fid", extractor="own").weights == "0123456789abcdef"
    edema = result["fid/Edema"].value
    assert edema is not None
    assert edema.n == 30
    for ambiguous in ("nothing", "fid"):
        with pytest.raises(KeyError):
            _ = result[ambiguous]


def test_results_are_written_whole_and_not_over_others(result: FamilyResult, tmp_path: Path) -> None:
    record = write_results([result], tmp_path, "fidelity")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "T_to_F_FID.csv",
        "fidelity.csv",
        "fidelity.html",
        "fidelity.json",
        "fidelity.md",
    ]
    with pytest.raises(OutputError, match="--overwrite"):
        write_results([result], tmp_path, "fidelity")
    assert write_results([result], tmp_path, "fidelity", overwrite=True) == record


def test_plots_are_png() -> None:
    values = [Estimate(0.5, 0.4, 0.7, 9), None]
    made = [
        plots.bars(["a", "b"], {"x": values, "y": values}, counts=[9, 0]),
        plots.histogram({"x": [1, 2, 3], "y": [2, 2]}, label="d"),
        plots.curves({"x": ([0, 1], [0, 1])}, x="fpr", y="tpr", diagonal=True),
        plots.scatter({"x": np.zeros((4, 2))}),
    ]
    assert all(png.startswith(b"\x89PNG") for png in made)
