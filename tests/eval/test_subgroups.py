from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from xgem.data.sets import EvalSet, Item
from xgem.eval.subgroups import age_band, group_of, mitigation, plan_top_up, selected, subgroups
from xgem.judges.settings import Stage, UtilitySettings
from xgem.metrics.bootstrap import Bootstrap, Sampled
from xgem.metrics.fairness import Group, by_group, gap, group_correlation
from xgem.types import InputError

CLASSES = ("Edema", "Fracture")


def people(n: int, seed: int = 0) -> EvalSet:
    rng = np.random.default_rng(seed)
    items = [
        Item(
            str(k),
            Path(f"{k}.png"),
            subject=str(k),
            age=float(rng.integers(19, 90)),
            sex="FM"[int(rng.integers(2))],
            race=("White", "Black", "Asian")[int(rng.integers(3))],
            labels={name: float(rng.random() < 0.4) for name in CLASSES},
        )
        for k in range(n)
    ]
    return EvalSet("people", tuple(items))


def scored(items: EvalSet, seed: int = 0, *, worse: str = "") -> np.ndarray:
    """Scores that tell a finding well; those of one sex are of random labels."""
    rng = np.random.default_rng(seed)
    labels = items.labels(CLASSES).copy()
    for row, item in enumerate(items.items):
        if item.sex == worse:
            labels[row] = rng.random(2) < 0.4
    return np.clip(0.3 * labels + rng.random(labels.shape) * 0.7, 0, 1)


def test_bands_of_age() -> None:
    ages = [18.9, 19.0, 40.9, 41.0, 65.5, 66.0, 91.0, None, float("nan")]
    assert [age_band(age) for age in ages] == [None, "19-40", "19-40", "41-65", "41-65", "66+", "66+", None, None]


def test_groups_and_their_intersections() -> None:
    items = EvalSet(
        "x",
        (
            Item("a", sex="F", age=30),
            Item("b", sex="F", age=70, race="White"),
            Item("c", sex="M", age=70),
            Item("d", age=71),
        ),
    )
    found = {axis: {name: rows.tolist() for name, rows in of.items()} for axis, of in subgroups(items).items()}
    assert found["sex"] == {"F": [0, 1], "M": [2]}
    assert found["age"] == {"19-40": [0], "66+": [1, 2, 3]}
    assert found["sex x age"] == {"F, 19-40": [0], "F, 66+": [1], "M, 66+": [2]}
    assert found["sex x race x age"] == {"F, White, 66+": [1]}
    assert set(subgroups(items, ("sex", "age"), intersections=False)) == {"sex", "age"}
    assert group_of(items.items[3], ("sex", "age")) is None
    with pytest.raises(InputError, match="expected some of sex, race, age"):
        subgroups(items, ("height",))


def test_agrees_with_scikit_learn_in_every_group() -> None:
    items = people(300)
    scores, labels = scored(items), items.labels(CLASSES)
    bootstrap = Bootstrap(300, draws=20)
    for axis in subgroups(items).values():
        for measure in ("weighted F1", "AUROC macro"):
            for group in by_group(measure, scores, labels, axis, bootstrap, min_n=8):
                rows = axis[group.name]
                assert group.n == len(rows)
                if group.value is None:
                    assert len(rows) < 8
                elif measure == "weighted F1":
                    expected = f1_score(labels[rows], scores[rows] >= 0.5, average="weighted")
                    assert group.value.value == pytest.approx(expected)
                elif all(0 < labels[rows, k].mean() < 1 for k in (0, 1)):
                    assert group.value.value == pytest.approx(roc_auc_score(labels[rows], scores[rows]))


def test_groups_that_are_too_small_or_cannot_be_tested_say_so() -> None:
    items = people(60)
    labels = items.labels(CLASSES).copy()
    rows = {"few": np.arange(5), "healthy": np.arange(5, 40)}
    labels[rows["healthy"]] = 0
    few, healthy = by_group("AUROC macro", scored(items), labels, rows, Bootstrap(60, draws=5))
    assert (few.value, few.reason) == (None, "n 5, below 20")
    assert (healthy.value, healthy.reason) == (None, "no class of its images can be tested")
    assert gap("AUROC macro", [few, healthy], scored(items), labels, rows) is None


def test_several_runs_are_averaged() -> None:
    items = people(100)
    labels, bootstrap = items.labels(CLASSES), Bootstrap(100, draws=5)
    runs = np.stack([scored(items, seed) for seed in (0, 1)])
    rows = {"all": np.arange(100)}
    each = [by_group("weighted F1", one, labels, rows, bootstrap)[0].value for one in runs]
    both = by_group("weighted F1", runs, labels, rows, bootstrap)[0].value
    assert both is not None
    assert both.value == pytest.approx(np.mean([one.value for one in each if one is not None]))


@pytest.mark.parametrize("measure", ["weighted F1", "AUROC macro"])
def test_a_planted_bias_is_found_and_none_where_there_is_none(measure: str) -> None:
    items = people(400)
    labels, bootstrap, rows = items.labels(CLASSES), Bootstrap(400, draws=200), subgroups(items)["sex"]
    for worse, biased in (("F", True), ("", False)):
        scores = scored(items, worse=worse)
        groups = by_group(measure, scores, labels, rows, bootstrap)  # pyright: ignore[reportArgumentType]
        found = gap(measure, groups, scores, labels, rows, permutations=99)  # pyright: ignore[reportArgumentType]
        assert found is not None
        values = [one.value.value for one in groups if one.value]
        assert found.value.value == pytest.approx(max(values) - min(values))
        if biased:
            assert (found.best, found.worst) == ("M", "F")
            assert found.p == 0.01
            assert found.value.estimate().low > found.chance.value
        else:
            assert found.p > 0.05
            assert found.value.value < np.quantile(found.chance.draws, 0.95)


def test_correlation_over_groups_in_closed_form() -> None:
    def groups(*values: float) -> list[Group]:
        return [Group(str(k), 30, Sampled(v, np.array([v, v + 1.0 * (k == 0)]), 30)) for k, v in enumerate(values)]

    found = group_correlation(groups(1, 2, 3), groups(2, 4, 6))
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(1), 3)
    opposite = group_correlation(groups(1, 2, 3), groups(3, 1, 1))
    assert opposite is not None
    assert opposite.value == pytest.approx(np.corrcoef([1, 2, 3], [3, 1, 1])[0, 1])
    assert opposite.draws[1] == pytest.approx(np.corrcoef([2, 2, 3], [4, 1, 1])[0, 1])
    assert group_correlation(groups(1, 2), groups(2, 4)) is None
    lacking = [*groups(1, 2, 3)[:2], Group("2", 3, None, "n 3")]
    assert group_correlation(lacking, groups(1, 2, 3)) is None


def of_sexes(name: str, **counts: int) -> EvalSet:
    items = [Item(f"{name}-{sex}{k}", sex=sex, age=50) for sex, n in counts.items() for k in range(n)]
    return EvalSet(name, (*items, Item(f"{name}-unknown")))


def test_topping_up_to_parity_or_a_share_of_it() -> None:
    real = of_sexes("real", F=10, M=40)
    plan = plan_top_up(real, of_sexes("more", F=100, M=100), ("sex",))
    assert (dict(plan.counts), dict(plan.wanted)) == ({"F": 10, "M": 40}, {"F": 30, "M": 0})
    assert not plan.lacking
    added = selected(plan, of_sexes("more", F=100, M=100), seed=1)
    assert [item.sex for item in added.items] == ["F"] * 30
    assert {item.id for item in added.items} != {f"more-F{k}" for k in range(30)}
    half = plan_top_up(real, of_sexes("more", F=100), ("sex", "age"), share=0.5)
    assert dict(half.wanted) == {"F, 41-65": 10, "M, 41-65": 0}
    short = plan_top_up(real, of_sexes("more", F=4), ("sex",))
    assert short.lacking == {"F": 26}
    assert len(selected(short, of_sexes("more", F=4))) == 4
    # One subgroup alone: to parity, or to twice its size where it is the largest
    assert dict(plan_top_up(real, real, ("sex",), only="F").wanted)["M"] == 0
    largest = plan_top_up(real, real, ("sex",), only="M")
    assert dict(largest.wanted) == {"F": 0, "M": largest.counts["M"]}
    with pytest.raises(InputError, match="at most 1"):
        plan_top_up(real, real, ("sex",), share=2)
    with pytest.raises(InputError, match="no image has its race"):
        plan_top_up(real, real, ("race",))


def imaged(folder: Path, name: str, seed: int, **counts: int) -> EvalSet:
    """Edema is a bright disc in men and a dark one in women."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    items: list[Item] = []
    for sex, n in counts.items():
        for k in range(n):
            positive = bool(k % 2)
            pixels = rng.integers(80, 170, (32, 32))
            if positive:
                disc = (y - rng.integers(8, 24)) ** 2 + (x - rng.integers(6, 12)) ** 2 <= 16
                pixels[disc] += 60 if sex == "M" else -60
            file = folder / f"{name}-{sex}{k}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
            own = f"{name}-{sex}{k}"
            items.append(Item(own, file, subject=own, sex=sex, labels={"Edema": float(positive)}))
    return EvalSet(name, tuple(items))


def test_topping_up_narrows_a_planted_gap(tmp_path: Path) -> None:
    real = imaged(tmp_path, "real", 0, M=160, F=6)
    synthetic = imaged(tmp_path, "synthetic", 1, M=40, F=180)
    test = imaged(tmp_path, "test", 2, M=80, F=80)
    settings = UtilitySettings(
        "classification",
        "small",
        32,
        Stage(steps=90, batch_size=24, learning_rate=3e-3, schedule="one_cycle"),
        width=6,
        runs=1,
    )
    alike = imaged(tmp_path, "alike", 3, M=80, F=80)
    items = zip(alike.items, test.items, strict=True)
    alike = replace(alike, items=tuple(replace(own, pair=item.id, labels={}) for own, item in items))
    held_out = imaged(tmp_path, "held-out", 4, M=30, F=30)
    found = mitigation(
        real, synthetic, test, settings, axes=("sex",), classes=["Edema"], matched=alike, held_out=held_out
    )
    assert found.worst == "F"
    assert dict(found.plan.had) == {"F": 154, "M": 0}
    assert found.test.items == test.items
    for name in ("real", "topped up"):  # what is wrong for one sex is wrong on synthetic images too
        assert found.synthetic[name].shape == (1, 160, 1)
        assert np.corrcoef(found.synthetic[name].ravel(), found.scores[name].ravel())[0, 1] > 0.3
    labels, rows, bootstrap = test.labels(["Edema"]), subgroups(test)["sex"], Bootstrap(160, draws=200)
    gaps = {}
    for name, one in found.scores.items():
        groups = by_group("AUROC macro", one, labels, rows, bootstrap)
        gaps[name] = gap("AUROC macro", groups, one, labels, rows, permutations=20)
    before, after = gaps["real"], gaps["topped up"]
    assert before is not None
    assert after is not None
    assert (before.worst, before.p) == ("F", pytest.approx(1 / 21))
    assert (before.value - after.value).estimate().above_zero
    assert after.value.value < before.value.value / 2
    with pytest.raises(InputError, match="no image has its race"):
        mitigation(real, synthetic, test, settings, axes=("race",), classes=["Edema"])
