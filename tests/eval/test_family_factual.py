from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xgem.data.sets import EvalSet, Item
from xgem.eval.families.factual import CASES, FINDINGS, evaluate
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.report import as_html, as_markdown
from xgem.metrics.bootstrap import Estimate, derangements
from xgem.types import NotComputed

SIZE = 32
SOME: dict[str, Any] = {"draws": 100, "permutations": 3}
FOUND: tuple[str, ...] = ("Edema", "Pneumothorax")


@dataclass(frozen=True)
class _Corners:
    """Reads each finding off one half of the image; knows Emphysema too, of which no set has labels."""

    name: str = "corners"
    weights: str = "0123"
    size: int = SIZE
    classes: tuple[str, ...] = (*FOUND, "Emphysema")
    thresholds: tuple[float, ...] = (0.5, 0.5, 0.5)

    def scores(self, images: np.ndarray) -> np.ndarray:
        half = SIZE // 2
        left, right = images[:, :, :half].mean(axis=(1, 2)), images[:, :, half:].mean(axis=(1, 2))
        return np.stack([left, right, (left + right) / 2], axis=1) / 255


def _sets(folder: Path, n: int = 60, order: np.ndarray | None = None) -> tuple[EvalSet, EvalSet]:
    """Real images of planted findings, and generations that show the same with noise, or those of ``order``."""
    rng = np.random.default_rng(0)
    labels = (rng.random((n, 2)) < 0.4).astype(float)
    sets: list[EvalSet] = []
    for name, noise in (("real", 0.12), ("generated", 0.2)):
        (folder / name).mkdir(parents=True)
        items: list[Item] = []
        for i in range(n):
            source = labels[int(order[i])] if order is not None and name == "generated" else labels[i]
            levels = np.repeat(0.35 + 0.3 * source + noise * rng.normal(size=2), SIZE // 2)
            file = folder / name / f"{i:03}.npy"
            np.save(file, np.rint(np.clip(np.tile(levels, (SIZE, 1)), 0, 1) * 255).astype(np.uint8))
            # Every fifth real study says nothing of Pneumothorax, one doubts Edema
            known = dict(zip(FOUND[: 1 if i % 5 == 0 else 2], labels[i], strict=False))
            known |= {"Edema": -1.0} if i == 1 else {}
            items.append(Item(f"{name}{i}", file, pair=f"real{i}", labels=known if name == "real" else {}))
        sets.append(EvalSet(name, tuple(items)))
    return sets[0], sets[1]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> FamilyResult:
    judges = {"corners": _Corners(), "xrv": NotComputed("weights of XRV-DenseNet (all) are not given")}
    return evaluate(*_sets(tmp_path_factory.mktemp("good")), judges=judges, **SOME)


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> FamilyResult:
    sets = _sets(tmp_path_factory.mktemp("swapped"), order=derangements(60, 1)[0])
    return evaluate(*sets, judges={"corners": _Corners()}, **SOME)


NUMBERS = (
    *(f"{measure}_{mean}" for measure in ("auroc", "f1") for mean in ("micro", "macro", "weighted")),
    "pearson_flattened",
    "pearson_macro",
)


def corners(result: FamilyResult, name: str, of: str = "") -> Metric:
    return result.find(name, of=of, extractor="corners")


def minus_shuffled(metric: Metric) -> Estimate:
    difference = metric.references["shuffled"].difference
    assert difference is not None
    return difference


@pytest.mark.parametrize("name", NUMBERS)
def test_matched_images_are_above_shuffled_ones(good: FamilyResult, name: str) -> None:
    metric = corners(good, name)
    assert minus_shuffled(metric).low > 0.05
    assert (metric.extractor, metric.weights) == ("corners", "0123")


@pytest.mark.parametrize("name", NUMBERS)
def test_swapped_images_lose_it_clear_of_zero(good: FamilyResult, swapped: FamilyResult, name: str) -> None:
    own, other = corners(good, name).value, corners(swapped, name).value
    assert own is not None
    assert other is not None
    assert other.high < own.low
    assert minus_shuffled(corners(swapped, name)).low < 0.05


def test_the_ceiling_is_the_judge_on_real_images(good: FamilyResult, tmp_path: Path) -> None:
    for measure in ("auroc_macro", "f1_micro"):
        metric = corners(good, measure)
        assert metric.value is not None
        assert metric.references["ceiling"].value.value > metric.value.value
    real, _ = _sets(tmp_path)
    itself = evaluate(real, real, judges={"corners": _Corners()}, **SOME)
    for name, of in (("auroc_macro", ""), ("f1_weighted", ""), ("auroc", "Edema")):
        metric = corners(itself, name, of)
        assert metric.value is not None
        assert metric.value == metric.references["ceiling"].value
    correlation = corners(itself, "pearson_flattened").value
    assert correlation is not None
    assert correlation.value == pytest.approx(1)


def test_every_finding_has_its_own_n(good: FamilyResult) -> None:
    edema, pneumothorax = corners(good, "auroc", "Edema").value, corners(good, "auroc", "Pneumothorax").value
    assert edema is not None
    assert pneumothorax is not None
    assert (edema.n, pneumothorax.n) == (59, 48)  # one doubtful; twelve not mentioned
    rows = list(csv.DictReader(io.StringIO(good.tables[FINDINGS])))
    assert {row["class"] for row in rows if row["metric"] == "pearson"} == {*FOUND, "Emphysema"}
    assert {row["class"] for row in rows if row["metric"] == "auroc"} == set(FOUND)


def test_uncertain_and_unmentioned_count_as_stated(tmp_path: Path) -> None:
    sets = _sets(tmp_path)
    found = evaluate(*sets, judges={"corners": _Corners()}, uncertain="negative", blank="negative", **SOME)
    for name in FOUND:
        value = corners(found, "auroc", name).value
        assert value is not None
        assert value.n == 60
    assert found.settings["not mentioned"] == "negative"


def test_what_cannot_be_computed_has_a_reason(good: FamilyResult, tmp_path: Path) -> None:
    assert "not given" in good.find("auroc_macro", extractor="xrv").reason
    assert "Not computed: AUROC, macro (xrv)" in as_markdown([good])
    real, generated = _sets(tmp_path)
    healthy = EvalSet("healthy", tuple(Item(i.id, i.file, labels={"Edema": 0.0}) for i in real.items))
    found = evaluate(healthy, generated, judges={"corners": _Corners()}, **SOME)
    assert "none with 5 positives and negatives" in corners(found, "auroc_macro").reason
    assert corners(found, "pearson_flattened").value is not None


def test_the_least_faithful_pairs_are_shown_and_listed(good: FamilyResult) -> None:
    cases = {row["id"]: float(row["corners score distance"]) for row in csv.DictReader(io.StringIO(good.tables[CASES]))}
    worst = max(cases, key=lambda name: cases[name])
    assert worst in good.examples[0].caption
    assert [image.shape for image in good.examples[0].images] == [(SIZE, SIZE)] * 2
    page = as_html([good])
    assert "ROC of generated images" in page
    assert page.count("data:image/png") >= 3 + 16
