from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from xgem.data.sets import EvalSet, Item
from xgem.eval.families import fairness
from xgem.eval.report import as_markdown, write_results
from xgem.eval.subgroups import plan_top_up
from xgem.types import InputError, ShapeError

CLASSES = ("Edema", "Fracture")


def people(tmp_path: Path, n: int = 240) -> EvalSet:
    rng = np.random.default_rng(0)
    file = tmp_path / "a.png"
    file.write_bytes(b"an image")
    items = [
        Item(
            str(k),
            file,
            age=float(rng.integers(15, 90)),
            sex="FM"[k % 2],
            race="White" if k % 40 else "Asian",
            labels={name: float(rng.random() < 0.5) for name in CLASSES},
        )
        for k in range(n)
    ]
    return EvalSet("test", tuple(items))


def scored(items: EvalSet, seed: int, *, noise: dict[str, float]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = np.array([noise[item.sex or ""] for item in items.items])[:, None]
    return np.clip(items.labels(CLASSES) * 0.6 + 0.2 + rng.normal(size=(len(items), 2)) * spread, 0, 1)


def test_record_of_a_bias_before_and_after_topping_up(tmp_path: Path) -> None:
    items = people(tmp_path)
    biased, fair = {"F": 0.7, "M": 0.2}, {"F": 0.25, "M": 0.2}
    scores = {"real": scored(items, 1, noise=biased), "topped up": scored(items, 2, noise=fair)}
    synthetic = {"real": scored(items, 3, noise=biased)}
    real = EvalSet("real", tuple(Item(str(k), sex="F" if k < 5 else "M") for k in range(20)))
    more = EvalSet("more", tuple(Item(str(k), sex="F") for k in range(8)))
    result = fairness.evaluate(
        items,
        scores,
        synthetic=synthetic,
        classes=CLASSES,
        draws=100,
        permutations=40,
        judge="a judge",
        plan=plan_top_up(real, more, ("sex",)),
    )
    gap = result["f1_weighted_gap/real, sex"]
    worst = result["f1_weighted_worst_group/real, sex"]
    women, men = (result[f"f1_weighted/real, sex: {sex}"].value for sex in "FM")
    assert gap.value is not None
    assert women is not None
    assert men is not None
    assert gap.value.value == pytest.approx(men.value - women.value)
    assert (gap.settings["best"], gap.settings["worst"]) == ("M", "F")
    assert gap.settings["permutation_p"] == pytest.approx(1 / 41)
    assert gap.references["chance"].value.high < gap.value.low
    assert (worst.value, worst.settings["group"]) == (women, "F")
    change = result["f1_weighted_gap/topped up, sex"].references["real"].difference
    assert change is not None
    assert change.high < 0
    # Groups that cannot be computed are there, with the reason
    assert result["f1_weighted/real, race: Asian"].reason == "n 6, below 20"
    assert result["f1_weighted_gap/real, race"].reason == "fewer than two subgroups could be computed"
    assert "fewer than three" in result["f1_weighted_group_correlation/real, sex"].reason
    r = result["auroc_macro_group_correlation/real, sex x age"].value
    assert r is not None
    assert (r.n, r.value > 0.5) == (6, True)
    children = sum((item.age or 0) < 19 for item in items.items)
    assert result.details["without"] == {"sex": 0, "race": 0, "age": children}
    assert result.details["top_up"] == {
        "axes": ["sex"],
        "real": {"F": 5, "M": 15},
        "wanted": {"F": 10, "M": 0},
        "added": {"F": 8, "M": 0},
    }
    rows = list(csv.DictReader(io.StringIO(result.tables["fairness_subgroups.csv"])))
    of_women = [row for row in rows if (row["metric"], row["judge"], row["group"]) == ("f1_weighted", "real", "F")]
    assert [(int(row["n"]), float(row["value"])) for row in of_women] == [(120, women.value)]
    assert {row["judge"] for row in rows} == {"real", "topped up", "real, synthetic images"}
    assert any("by sex" in title for title in result.plots)
    assert "n 6, below 20" in as_markdown([result])
    write_results([result], tmp_path / "out", "fairness")


def test_uncertain_and_unmentioned_labels(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"an image")
    kinds = [{"Edema": 1.0}, {"Edema": -1.0}, {}, {"Edema": 1.0}]
    items = EvalSet("x", tuple(Item(str(k), file, sex="F", labels=kinds[k % 4]) for k in range(40)))
    scores = {"real": np.full((40, 1), 0.9)}

    def f1(unmentioned: str) -> float:
        found = fairness.evaluate(
            items, scores, classes=("Edema",), axes=("sex",), unmentioned=unmentioned, draws=5, permutations=2
        )["f1_weighted/real, sex: F"].value
        assert found is not None
        return found.value

    assert f1("unknown") == 1
    assert f1("negative") == pytest.approx(2 * 20 / (2 * 20 + 10))


def test_input_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    items = people(tmp_path, 40)
    with pytest.raises(ShapeError, match="one row per test image"):
        fairness.evaluate(items, {"real": np.zeros((39, 2))}, classes=CLASSES)
    with pytest.raises(InputError, match="no scores"):
        fairness.evaluate(items, {}, classes=CLASSES)
    unknown = EvalSet("x", tuple(Item(str(k)) for k in range(4)))
    with pytest.raises(InputError, match="no sex, race, age is given"):
        fairness.evaluate(unknown, {"real": np.zeros((4, 2))}, classes=CLASSES)
