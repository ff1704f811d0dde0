from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xgem.data.sets import EvalSet, Item
from xgem.eval.families.consistency import CASES, evaluate
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.report import as_html
from xgem.metrics.bootstrap import Estimate, derangements
from xgem.pipeline.embedding import PromptEncoders
from xgem.types import DataError, NotComputed

SIZE, N = 32, 40
FOUND: tuple[str, ...] = ("Edema", "Pneumothorax")
AFFIRMED = {"Edema": "Pulmonary edema is present.", "Pneumothorax": "Right pneumothorax is seen."}


@dataclass(frozen=True)
class _Halves:
    name: str = "halves"
    weights: str = "0123"
    size: int = SIZE
    classes: tuple[str, ...] = FOUND

    def scores(self, images: np.ndarray) -> np.ndarray:
        return np.stack([one.mean(axis=(1, 2)) / 255 for one in np.split(images, 2, axis=2)], axis=1)


ENCODERS = PromptEncoders(
    "planted",
    "4567",
    SIZE,
    lambda images: _Halves().scores(images) - 0.45,
    lambda reports: np.array([[float(AFFIRMED[name] in text) - 0.45 for name in FOUND] for text in reports]),
)


def _set(folder: Path, name: str, noise: float, reports_of: np.ndarray | None = None, prefix: str = "") -> EvalSet:
    """Images of planted findings and reports of the same, or those of ``reports_of``; ``noise`` hides findings."""
    rng = np.random.default_rng(5)
    labels = rng.random((N, 2)) < 0.4
    (folder / name).mkdir(parents=True)
    items: list[Item] = []
    for i in range(N):
        levels = np.repeat(np.where(labels[i] ^ (rng.random(2) < noise), 180, 80), SIZE // 2)
        file = folder / name / f"{i:03}.npy"
        np.save(file, (levels + np.linspace(-20, 20, SIZE)[:, None]).astype(np.uint8))
        told = labels[i if reports_of is None else int(reports_of[i])]
        text = " ".join(AFFIRMED[finding] for finding, there in zip(FOUND, told, strict=True) if there)
        items.append(Item(f"{prefix}{i}", file, pair=f"{i}", report=text or "Clear lungs."))
    return EvalSet(name, tuple(items))


def minus(metric: Metric, reference: str) -> Estimate:
    difference = metric.references[reference].difference
    assert difference is not None
    return difference


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> FamilyResult:
    folder = tmp_path_factory.mktemp("good")
    judges = {"halves": _Halves(), "xrv": NotComputed("no weights")}
    apart = _set(folder, "apart", 0.35, prefix="a")
    # In another order: what belongs together is told by ``pair`` alone
    apart = apart.subset(np.random.default_rng(0).permutation(N))
    joint = _set(folder, "joint", 0.05, prefix="g")
    return evaluate(_set(folder, "real", 0.0), joint, encoders=ENCODERS, judges=judges, independent=apart, draws=200)


def test_joint_outputs_agree_more_than_shuffled_and_independent_ones(good: FamilyResult) -> None:
    cosine, distance = good["cosine"], good.find("hamming", extractor="halves")
    assert minus(cosine, "shuffled").low > 0.2
    assert minus(cosine, "independent").low > 0
    assert minus(distance, "shuffled").high < -0.2
    assert minus(distance, "independent").high < 0
    assert distance.references["real pairs"].value.value == 0
    assert cosine.higher_is_better
    assert not distance.higher_is_better
    assert (cosine.extractor, cosine.weights) == ("planted", "4567")
    assert good.details["cosine: generated minus independent"]["p"] < 0.05
    assert cosine.references["independent"].p == good.details["cosine: generated minus independent"]["p"]


def test_distances_add_up_to_the_studies(good: FamilyResult) -> None:
    counts = good.details["hamming, halves: studies at distance 0, 1, ..."]
    assert {key: sum(one) for key, one in counts.items()} == dict.fromkeys(counts, N)
    value = good.find("hamming", extractor="halves").value
    assert value is not None
    assert value.value == pytest.approx(np.dot(counts["generated"], range(len(counts["generated"]))) / N)
    assert counts["real pairs"] == [N, *[0] * (len(counts["real pairs"]) - 1)]


def test_swapped_reports_agree_no_more_than_shuffled_ones(tmp_path: Path) -> None:
    swapped = _set(tmp_path, "swapped", 0.05, derangements(N, 1)[0])
    found = evaluate(_set(tmp_path, "real", 0.0), swapped, encoders=ENCODERS, judges={"halves": _Halves()}, draws=100)
    assert minus(found["cosine"], "shuffled").low < 0
    assert minus(found["hamming"], "shuffled").high > 0
    assert "independent" not in found["cosine"].references


def test_what_is_missing_is_named(good: FamilyResult, tmp_path: Path) -> None:
    assert good.find("hamming", extractor="xrv").reason == "no weights"
    found = evaluate(
        _set(tmp_path, "real", 0.0), _set(tmp_path, "made", 0.1), encoders=NotComputed("no model"), judges={}, draws=10
    )
    assert found["cosine"].reason == "no model"
    assert not found.tables


def test_items_without_a_image_or_a_report_are_refused_by_name(tmp_path: Path) -> None:
    real, made = _set(tmp_path, "real", 0.0), _set(tmp_path, "made", 0.1, prefix="g")
    options: dict[str, Any] = {"encoders": ENCODERS, "judges": {}, "draws": 10}
    for broken in (replace(made.items[3], report=" "), replace(made.items[3], file=None)):
        items = (*made.items[:3], broken, *made.items[4:])
        with pytest.raises(DataError, match="item g3 lacks"):
            evaluate(real, replace(made, items=items), **options)
    with pytest.raises(DataError, match="has 9 of the 40"):
        evaluate(real, made, independent=made.subset(range(9)), **options)
    with pytest.raises(DataError, match="full label sets"):
        evaluate(real, made, uncertain="ignore", **options)


def test_the_report_shows_what_agrees_least(good: FamilyResult) -> None:
    assert good.tables[CASES].splitlines()[0] == 'id,cosine,"hamming, halves"'
    values = [float(line.split(",")[1]) for line in good.tables[CASES].splitlines()[1:]]
    assert f"{min(values):.2f}" in good.examples[0].caption
    assert "Fig. 5" in as_html([good])
