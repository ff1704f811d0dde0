from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.data.sets import EvalSet, Item
from xgem.eval.utility import protocols
from xgem.eval.utility.protocols import SUITES, suite
from xgem.judges.settings import PRESETS, Stage, UtilitySettings, preset
from xgem.types import DataError, InputError, NotComputed

CLASSES = ("Edema", "Fracture", "Cardiomegaly")


def made(name: str, counts: dict[tuple[str, ...], int], pairs: int | None = None) -> EvalSet:
    """``counts``: how many images show exactly these classes. ``pairs``: real studies that they answer to in turn."""
    items: list[Item] = []
    for shown, n in counts.items():
        for _ in range(n):
            k = len(items)
            labels = {one: float(one in shown) for one in CLASSES}
            pair = "" if pairs is None else f"real-{k % pairs}"
            items.append(Item(f"{name}-{k}", Path(f"{name}-{k}.png"), pair, labels=labels, subject=f"{name}-{k}"))
    return EvalSet(name, tuple(items))


REAL = made("real", {("Edema",): 12, ("Fracture",): 3, ("Edema", "Cardiomegaly"): 4, (): 11})
SYNTHETIC = made("synthetic", {("Edema",): 40, ("Fracture",): 40, ("Cardiomegaly",): 30, (): 10}, pairs=30)


def test_mixtures_have_the_sizes_asked_for() -> None:
    assert len(protocols.real_only(REAL).main) == 30
    assert len(protocols.synthetic_only(SYNTHETIC).main) == 120
    assert len(protocols.synthetic_only(SYNTHETIC, count=7).main) == 7
    twice = protocols.mixed(REAL, SYNTHETIC, 2).main
    assert twice.items[:30] == REAL.items
    assert len({item.id for item in twice.items}) == len(twice) == 90
    with pytest.raises(NotComputed, match="needs 150 synthetic images, synthetic has 120"):
        protocols.mixed(REAL, SYNTHETIC, 5)


@given(st.integers(0, 20), st.integers(1, 4))
def test_every_study_is_answered_once_before_any_twice(seed: int, multiple: int) -> None:
    items = protocols.taken(SYNTHETIC, 30 * multiple, seed).items
    assert all(sum(item.pair == f"real-{k}" for item in items) == multiple for k in range(30))


def test_anonymised_replaces_every_real_image_by_its_own() -> None:
    training = protocols.anonymised(REAL, SYNTHETIC)
    assert {item.pair for item in training.main.items} == {item.id for item in REAL.items}
    assert not {item.file for item in training.main.items} & {item.file for item in REAL.items}


def test_equal_ids_of_two_sets_are_kept_apart() -> None:
    copy = EvalSet("copy", tuple(Item(item.id, item.file) for item in SYNTHETIC.items[:2]))
    both = protocols.joined(SYNTHETIC, copy)
    assert both.items[-1].id == f"copy:{copy.items[1].id}"
    assert both.items[-1].pair == copy.items[1].id


def test_balancing_tops_up_to_the_commonest_class() -> None:
    training = protocols.balanced(REAL, SYNTHETIC, CLASSES)
    counts = (training.main.labels(CLASSES) == 1).sum(axis=0)
    np.testing.assert_array_equal(counts, [16, 16, 16])
    assert training.main.items[:30] == REAL.items
    assert not training.notes
    few = protocols.balanced(REAL, made("few", {("Fracture",): 5}), CLASSES)
    assert sorted(few.notes) == [
        "Cardiomegaly: 4 positives of 16, no synthetic ones left",
        "Fracture: 8 positives of 16, no synthetic ones left",
    ]
    even = protocols.balanced(REAL, SYNTHETIC, ["Edema"])
    assert even.main.items == REAL.items
    assert even.notes == ("nothing was topped up, the training set is that of real images (positives: Edema 16)",)


def test_the_commonest_classes() -> None:
    assert protocols.most_represented(REAL, CLASSES, 2) == ("Edema", "Cardiomegaly")
    assert protocols.most_represented(made("x", {("Edema",): 1}), CLASSES) == ("Edema",)


@given(st.integers(0, 10), st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_larger_shares_hold_the_smaller_ones(seed: int, first: float, second: float) -> None:
    low, high = (protocols.fraction_of(REAL, share, seed=seed) for share in sorted([first, second]))
    assert {item.id for item in low.items} <= {item.id for item in high.items}
    assert len(high) == max(2, round(30 * max(first, second)))


def test_scarcity_and_pretraining() -> None:
    scarce = protocols.scarce(REAL, SYNTHETIC, 0.2, 3.0, seed=1)
    assert len(scarce.main) == 6 + 18
    before = protocols.pretrained(REAL, SYNTHETIC, 0.2, seed=1)
    assert before.pretraining is SYNTHETIC
    assert before.main.items == scarce.main.items[:6]
    with pytest.raises(InputError, match="at most 1"):
        protocols.fraction_of(REAL, 1.5)


@given(st.integers(0, 10), st.sampled_from([1, 2, 3]))
def test_few_shots_of_each_class(seed: int, shots: int) -> None:
    training = protocols.few_shot(REAL, shots, CLASSES, seed=seed)
    labels = training.main.labels(CLASSES) == 1
    assert (labels.sum(axis=0) >= shots).all()
    assert (~labels.any(axis=1)).sum() == shots
    assert len(training.main) <= shots * 4
    assert not training.notes


def test_few_shots_that_are_not_there_are_noted() -> None:
    assert protocols.few_shot(REAL, 5, CLASSES).notes == (
        "Fracture: 3 positives of 5",
        "Cardiomegaly: 4 positives of 5",
    )


@pytest.mark.parametrize("name", SUITES)
def test_suites_compare_only_what_they_hold(name: str) -> None:
    found = suite(name, REAL, SYNTHETIC, CLASSES)
    names = {one.name for one in found}
    assert len(names) == len(found)
    assert {one.against for one in found if one.against} <= names
    sizes = {one.name: len(one.make(0).main) for one in found}
    assert min(sizes.values()) >= 2
    if name == "augmentation":
        assert sizes == {"real": 30, "synthetic": 120, "real + 1x": 60, "real + 2x": 90}


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(InputError, match="expected one of augmentation"):
        suite("everything", REAL, SYNTHETIC)


def images(tmp_path: Path, name: str, items: list[tuple[str, str, str]]) -> EvalSet:
    found: list[Item] = []
    for number, (own, subject, pair) in enumerate(items):
        file = tmp_path / f"{name}-{number}.png"
        file.write_bytes(f"{name} {number}".encode())
        found.append(Item(own, file, pair, subject=subject))
    return EvalSet(name, tuple(found))


def test_training_that_knows_the_test_set_is_refused(tmp_path: Path) -> None:
    test = images(tmp_path, "test", [("t1", "p1", ""), ("t2", "", "")])
    protocols.refuse_overlap(images(tmp_path, "fine", [("a", "p2", ""), ("b", "", "a")]), test)
    with pytest.raises(DataError, match="share subject 'p1'"):
        protocols.refuse_overlap(images(tmp_path, "subject", [("a", "p1", "")]), test)
    with pytest.raises(DataError, match="share study 't2'"):
        protocols.refuse_overlap(images(tmp_path, "same", [("t2", "", "")]), test)
    with pytest.raises(DataError, match="share study 't1'"):
        protocols.refuse_overlap(images(tmp_path, "prompt", [("a", "", "t1")]), test)
    copy = images(tmp_path, "copy", [("a", "", "")])
    assert copy.items[0].file is not None
    copy.items[0].file.write_bytes(b"test 1")
    with pytest.raises(DataError, match="overlap"):
        protocols.refuse_overlap(copy, test)


def test_presets() -> None:
    paper = preset("classification", "chexgenbench")
    assert (paper.network, paper.size, paper.training.epochs) == ("resnet50", 224, 20)
    assert (paper.training.optimizer, paper.training.learning_rate, paper.training.weight_decay) == ("adam", 1e-4, 1e-5)
    assert all(one.task == task and one.runs == 5 for (task, _), one in PRESETS.items())
    assert preset("severity", runs=2).runs == 2
    with pytest.raises(InputError, match="no settings 'huge'"):
        preset("severity", "huge")


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="either epochs or steps"):
        Stage(epochs=1, steps=1)
    with pytest.raises(InputError, match="either epochs or steps"):
        Stage()
    with pytest.raises(InputError, match="threshold"):
        UtilitySettings("severity", "small", 32, Stage(epochs=1), threshold=1.0)
