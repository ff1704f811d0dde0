"""The file format of records: what is written is valid, and records of format 1 are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xgem.eval.compare import rank_records
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.report import as_json
from xgem.eval.schema import Record, json_schema, read_record
from xgem.metrics.bootstrap import Bootstrap, Comparison
from xgem.types import DataError


def record_1(value: float) -> dict[str, Any]:
    """A record as version 0.1.0 wrote it."""

    def number(name: str, value: float, **others: Any) -> dict[str, Any]:
        return {"name": name, "value": value, "interval": [value - 0.1, value + 0.1], "n": 30, **others}

    estimate = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 30}
    text = [
        number("bleu_4", value, higher_is_better=True, references={"shuffled": estimate, "less shuffled": estimate}),
        number("xgem-rules micro_f1_14", value, extractor="xgem-rules 1", higher_is_better=True),
        number("share of empty reports", 0.0, higher_is_better=False),
        {"name": "radgraph_simple", "value": None, "not_computed": "no Python"},
    ]
    factual = [number("xgem-classifier auc_macro", value, extractor="xgem-classifier", weights="ab")]
    fidelity = [
        number("fid", value, extractor="rad-dino", weights="cd", higher_is_better=False),
        {"name": "distances in this space", "extractor": "clip", "value": None, "not_computed": "no weights"},
    ]
    fairness = [number("weighted F1: gap", value, of="real, sex", higher_is_better=False)]
    families = {"text": text, "factual": factual, "fidelity": fidelity, "fairness": fairness}
    return {
        "format": "xgem-measures",
        "format_version": 1,
        "xgem": "0.1.0",
        "python": "3.11.7",
        "time": "2026-11-27T10:00:00Z",
        "families": [
            {"family": name, "settings": {"seed": 0}, "metrics": metrics, "details": {}}
            for name, metrics in families.items()
        ],
    }


def test_format_1_is_read_by_the_names_of_today(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(record_1(0.5)))
    text, factual, fidelity, fairness = read_record(tmp_path / "old.json").families
    assert [metric.name for metric in text.metrics] == ["bleu_4", "micro_f1_14", "empty_reports", "radgraph_simple"]
    bleu, f1, empty, radgraph = text.metrics
    assert bleu.value is not None
    assert (bleu.value.value, bleu.value.low, bleu.value.n) == (0.5, 0.4, 30)
    assert list(bleu.references) == ["shuffled"]
    assert bleu.references["shuffled"].difference == bleu.references["shuffled"].value
    assert (f1.extractor, f1.weights) == ("xgem-rules", "xgem-rules 1")
    assert empty.higher_is_better is False
    assert (radgraph.value, radgraph.not_computed) == (None, "no Python")
    assert [(metric.name, metric.extractor) for metric in factual.metrics] == [("auroc_macro", "xgem-classifier")]
    assert [metric.extractor for metric in fidelity.metrics] == ["rad-dino"]
    assert fairness.metrics[0].name == "f1_weighted_gap"


def test_records_of_both_formats_are_ranked_together(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(record_1(0.5)))
    bleu = Metric.measured("bleu_4", Bootstrap(30, draws=9).mean(np.full(30, 0.7)))
    (tmp_path / "new.json").write_text(as_json([FamilyResult("text", [bleu], {})]))
    table = rank_records({name: read_record(tmp_path / f"{name}.json") for name in ("old", "new")})
    assert table.metrics == ("text bleu_4",)
    assert table.ranks[:, 0].tolist() == [2, 1]


def test_what_is_written_satisfies_the_json_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    mean = Bootstrap(8, draws=20).mean
    metrics = [
        Metric.measured(
            "cosine",
            Comparison(mean(np.full(8, 0.5)), mean(np.full(8, 0.1))),
            paired={"ceiling": mean(np.full(8, 0.9))},
            tests={"ceiling": (float("nan"), "Wilcoxon")},
            settings={"labels": (1, float("inf"))},
        ),
        Metric.missing("hamming", "no judge", of="Edema"),
    ]
    results = [
        FamilyResult("consistency", metrics, {"seed": 0}, route="lateral->frontal+report"),
        FamilyResult.missing("text", "no report"),
    ]
    written = json.loads(as_json(results, {"model": {"hash": "0"}}))
    jsonschema.validate(written, json_schema())
    assert Record.model_validate(written).families[1].not_computed == "no report"
    written["families"][0]["metrics"][0]["valeu"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, json_schema())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 3}, "expected a record of format xgem-measures 2"),
        ({"format_version": 2}, "not a valid record of format xgem-measures 2"),
        ({"families": [{"family": "text"}]}, "not a valid record of format xgem-measures 1"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(record_1(0.5) | change))
    with pytest.raises(DataError, match=reason):
        read_record(tmp_path / "bad.json")
