"""The registry of metrics: every name that is recorded is in it, and what it says of each can be followed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import xgem
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.registry import FAMILIES, MetricSpec, as_rows, key_of, metrics, register, registered, spec, unregister
from xgem.labels.vocabulary import CLASS_SETS
from xgem.metrics.bootstrap import Bootstrap, Comparison
from xgem.types import InputError

ONE = Bootstrap(8, draws=20).mean


@pytest.fixture
def own() -> Iterator[MetricSpec]:
    metric = register(MetricSpec("sharpness", ("fidelity", "own family"), True, "Variance of the Laplacian.", ">= 0"))
    yield metric
    unregister("sharpness")


def test_every_function_and_family_exists() -> None:
    for metric in metrics():
        assert set(metric.families) <= set(FAMILIES), metric.name
        assert metric.doc.endswith("."), metric.name
        assert metric.range, metric.name
        assert metric.source, metric.name
        if metric.function:
            module, _, name = metric.function.rpartition(".")
            assert hasattr(importlib.import_module(module), name), metric.name


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        ("fid", False), ("kid", False), ("precision", True), ("coverage", True), ("ssim", False), ("bleu_4", True),
        ("empty_reports", False), ("auroc_macro", True), ("hamming", False), ("cosine", True), ("dice", True),
        ("pixel_distance", True), ("latent_near", False), ("reid_score_max", False), ("brier_score", False),
        ("mae", False), ("f1_weighted_gap", False), ("f1_weighted_worst_group", True), ("band_power_ratio", None),
    ],
)  # fmt: skip
def test_directions(name: str, higher: bool | None) -> None:
    assert spec(name).higher_is_better is higher


def test_every_set_of_report_classes_has_its_f1() -> None:
    assert all(registered(f"{mean}_f1_{scope}") for mean in ("micro", "macro", "weighted") for scope in CLASS_SETS)


def test_every_metric_that_the_code_names_is_registered() -> None:
    """Names written out in the families; those made from parts are met by the families' own tests."""
    named = re.compile(r'Metric(?:\.measured|\.missing)?\(\s*"([^"]+)"')
    files = list(Path(xgem.__file__).parent.joinpath("eval").rglob("*.py"))
    names = {name for path in files for name in named.findall(path.read_text(encoding="utf-8"))}
    assert {"hamming", "alignment", "empty_reports"} <= names
    assert [name for name in names if not registered(name)] == []


def test_an_unregistered_metric_or_family_is_refused() -> None:
    with pytest.raises(InputError, match="'beauty' is not registered"):
        Metric.missing("beauty", "no reason")
    with pytest.raises(InputError, match="'bleu_4' is registered for text, not privacy"):
        FamilyResult("privacy", [Metric.missing("bleu_4", "no reason")], {})


def test_a_metric_of_the_users_own(own: MetricSpec) -> None:
    result = FamilyResult("own family", [Metric.measured("sharpness", ONE(np.full(8, 1.0)))], {})
    assert result["sharpness"].higher_is_better is True
    assert own.name in {row["name"] for row in as_rows("fidelity")}
    assert register(own) is own  # the same again changes nothing
    with pytest.raises(InputError, match="registered already"):
        register(MetricSpec("sharpness", ("fidelity",), False, "Another."))


@pytest.mark.parametrize(
    "metric",
    [
        MetricSpec("Two words", ("text",), True, "A line."),
        MetricSpec("x", (), True, "A line."),
        MetricSpec("x", ("text",), True, " "),
    ],
)
def test_incomplete_rows_are_refused(metric: MetricSpec) -> None:
    with pytest.raises(InputError):
        register(metric)


@pytest.mark.parametrize(
    ("title", "key"),
    [("AUROC macro", "auroc_macro"), ("mAP50", "map50"), ("Pearson r", "pearson"), ("Brier score", "brier_score")],
)
def test_tasks_names_have_keys(title: str, key: str) -> None:
    assert key_of(title) == key
    assert registered(key)


def test_references_are_paired_and_the_share_of_the_ceiling_is_between_chance_and_real() -> None:
    value, shuffled, ceiling = (ONE(np.array([x, x + 0.1] * 4)) for x in (0.5, 0.1, 0.9))
    metric = Metric.measured(
        "cosine",
        Comparison(value, shuffled),
        paired={"ceiling": ceiling, "constant": None},
        unpaired={"floor": Bootstrap(5, draws=9).mean(np.full(5, 0.0))},
        tests={"ceiling": (0.03, "Wilcoxon")},
    )
    assert list(metric.references) == ["shuffled", "ceiling", "floor"]
    difference = metric.references["shuffled"].difference
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.4, 0.4, 0.4))
    assert (metric.references["ceiling"].p, metric.references["ceiling"].test) == (0.03, "Wilcoxon")
    assert metric.references["floor"].difference is None
    assert metric.share_of_ceiling is not None
    assert metric.share_of_ceiling.value == pytest.approx(0.5)
    with pytest.raises(InputError, match="give it as unpaired"):
        Metric.measured("cosine", value, paired={"floor": Bootstrap(5, draws=9).mean(np.full(5, 0.0))})
