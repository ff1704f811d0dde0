from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.data.annotations import Box
from xgem.data.sets import EvalSet, Item
from xgem.data.study import Study
from xgem.eval.families import utility
from xgem.eval.report import write_results
from xgem.eval.utility import runner
from xgem.judges.settings import Stage, UtilitySettings
from xgem.metrics import detection as coco
from xgem.types import DataError, InputError

SETTINGS = UtilitySettings(
    "classification", "small", 32, Stage(steps=4, batch_size=8), width=4, runs=2, draws=50, augment=False
)
CLASSES = ("Edema", "Lung Lesion", "Fracture")


def squares(folder: Path, name: str, n: int, seed: int) -> EvalSet:
    """A bright square left is Edema, right Lung Lesion; Fracture is never there."""
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    for k in range(n):
        left, right = rng.random(2) < 0.5
        pixels = rng.integers(60, 120, (32, 32)).astype(np.uint8)
        pixels[8:20, 2:12] += np.uint8(80 * left)
        pixels[8:20, 20:30] += np.uint8(80 * right)
        Image.fromarray(pixels).save(folder / f"{name}-{k}.png")
        labels = {"Edema": float(left), "Lung Lesion": float(right), "Fracture": 0.0}
        own = f"{name}-{k}"
        items.append(Item(own, folder / f"{own}.png", subject=own, labels=labels, severity=float(left) + float(right)))
    return EvalSet(name, tuple(items))


@pytest.fixture(scope="module", name="sets")
def _sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvalSet, EvalSet, EvalSet]:
    folder = tmp_path_factory.mktemp("squares")
    return squares(folder, "real", 16, 0), squares(folder, "synthetic", 32, 1), squares(folder, "test", 30, 2)


def test_record_of_a_classification(sets: tuple[EvalSet, EvalSet, EvalSet], tmp_path: Path) -> None:
    result = utility.evaluate(*sets, SETTINGS, classes=CLASSES, suite_options={"multiples": [1.0, 5.0]}, cache=tmp_path)
    names = {(one.name, one.of) for one in result.metrics if one.value is not None}
    for protocol in ("real", "synthetic", "real + 1x"):
        assert {("auroc_macro", protocol), ("f1_weighted", protocol), ("auroc", f"{protocol}, Edema")} <= names
    added = result["auroc_macro/real + 1x"]
    assert added.value is not None
    assert (added.value.n, added.higher_is_better, set(added.references)) == (30, True, {"real"})
    assert added.settings["runs"] == 2
    reference = added.references["real"]
    real = result["auroc_macro/real"].value
    assert reference.difference is not None
    assert real is not None
    assert reference.value == real
    assert reference.difference.value == pytest.approx(added.value.value - real.value)
    assert reference.test == "bootstrap"
    brier = result["brier_score/real + 1x"]
    assert brier.higher_is_better is False
    assert brier.references["real"].test == "Wilcoxon"
    change = brier.references["real"].difference
    assert change is not None
    assert change.low <= change.value <= change.high
    # what could not be had, and why
    assert result["auroc_macro/real + 5x"].reason == "needs 80 synthetic images, synthetic has 32"
    assert result["auroc/Fracture"].reason == "0 positives and 30 negatives: an AUROC needs at least 5 of each"
    assert result.details["real + 1x"]["images"] == 32
    assert len(result.details["real"]["values_by_run"]["auroc_macro"]) == 2
    assert result.settings["sets"]["test"] == {
        "name": "test",
        "n": 30,
        "sha256": sets[2].sha256,
        "labelled_by": "file",
    }
    assert set(result.plots) == {"AUROC, macro by protocol", "AUROC by class"}
    assert all(png.startswith(b"\x89PNG") for png in result.plots.values())
    assert [len(one.images) for one in result.examples] == [4, 4]  # the image, and three networks' maps
    assert all(image.shape == (32, 32) for one in result.examples for image in one.images)
    rows = list(csv.DictReader(io.StringIO(result.tables["utility_classification_augmentation.csv"])))
    row = next(one for one in rows if one["protocol"] == "real + 1x" and one["metric"] == "auroc_macro")
    assert float(row["difference"]) == pytest.approx(reference.difference.value)
    assert float(row["p"]) == pytest.approx(reference.p)
    case_by_case = next(one for one in rows if one["protocol"] == "real + 1x" and one["metric"] == "brier_score")
    assert float(case_by_case["p"]) == pytest.approx(brier.references["real"].p)
    write_results([result], tmp_path / "out", "utility")
    assert (tmp_path / "out" / "utility.html").is_file()


def test_results_that_are_cached_give_the_same_record(
    sets: tuple[EvalSet, EvalSet, EvalSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"classes": CLASSES, "suite": "anonymisation", "cache": tmp_path}
    first = utility.evaluate(*sets, replace(SETTINGS, runs=1), **options)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runner, "train", fail)
    again = utility.evaluate(*sets, replace(SETTINGS, runs=1), **options)
    assert first.metrics == again.metrics
    for one, other in zip(first.examples, again.examples, strict=True):
        np.testing.assert_array_equal(one.images[1], other.images[1])


def test_amounts_are_drawn_as_lines(sets: tuple[EvalSet, EvalSet, EvalSet], tmp_path: Path) -> None:
    settings = replace(SETTINGS, runs=1, pretraining=SETTINGS.training, finetuning=SETTINGS.training)
    options: dict[str, Any] = {"suite_options": {"fractions": [0.5, 1.0]}, "classes": CLASSES, "cache": tmp_path}
    result = utility.evaluate(*sets, settings, suite="pretraining", **options)
    assert "AUROC, macro by amount" in result.plots
    assert result["auroc_macro/pretrained, 50 % real"].references["50 % real"].difference is not None
    few = utility.evaluate(*sets, settings, suite="few-shot", suite_options={"shots": [2]}, classes=CLASSES)
    assert few.details["2-shot"]["notes"] == ["Fracture: 0 positives of 2"]


def test_overlap_is_refused(sets: tuple[EvalSet, EvalSet, EvalSet]) -> None:
    with pytest.raises(DataError, match="share subject 'test-0'"):
        utility.evaluate(sets[0], sets[2], sets[2], SETTINGS, classes=CLASSES)


def test_lower_errors_are_better(sets: tuple[EvalSet, EvalSet, EvalSet]) -> None:
    result = utility.evaluate(*sets, replace(SETTINGS, task="severity", runs=1))
    assert result["mae/real"].higher_is_better is False
    assert result["pearson/real"].higher_is_better is True
    by_case, whole = (result[f"{name}/real + 1x"].references["real"] for name in ("absolute_error", "mae"))
    assert by_case.difference is not None
    assert whole.difference is not None
    assert by_case.difference.interval == pytest.approx(whole.difference.interval)
    assert (by_case.test, whole.test) == ("Wilcoxon", "bootstrap")
    assert result["absolute_error/real"].higher_is_better is False
    assert not result.examples
    with pytest.raises(InputError, match="is defined by findings"):
        utility.evaluate(*sets, replace(SETTINGS, task="severity"), suite="imbalance")


def test_masks_and_boxes_come_from_studies(
    sets: tuple[EvalSet, EvalSet, EvalSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, task="segmentation", runs=1, training=Stage(steps=1, batch_size=4))
    with pytest.raises(InputError, match="give studies"):
        utility.evaluate(*sets, settings)
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:20, 2:12] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    studies = {
        item.id: Study(
            item.id,
            item.id,
            "train",
            {"frontal": (item.file,)},
            masks={"pneumothorax": (tmp_path / "mask.png",)},
            boxes=(Box("mass", 0.1, 0.2, 0.3, 0.4),),
        )
        for one in sets
        for item in one.items
        if item.file
    }
    result = utility.evaluate(*sets, settings, studies=studies)
    assert result.settings["classes"] == ["pneumothorax"]
    assert result["positive_dice/real, pneumothorax"].value is not None
    assert result["negative_dice/pneumothorax"].reason == "no test image is annotated as free of it"
    boxes = utility.evaluate(*sets, replace(settings, task="detection"), studies=studies)
    assert boxes.settings["classes"] == ["mass"]
    assert boxes["map50/real"].value is not None

    def lacks(*_: Any) -> None:
        raise coco.NotComputed("the package pycocotools is not installed")

    monkeypatch.setattr("xgem.judges.tasks.detection.match", lacks)
    missing = utility.evaluate(*sets, replace(settings, task="detection"), studies=studies)
    assert (list(missing.metrics), missing.reason) == ([], "the package pycocotools is not installed")


def test_an_external_test_set_is_predicted_by_the_same_networks(
    sets: tuple[EvalSet, EvalSet, EvalSet], tmp_path: Path
) -> None:
    real, synthetic, test = sets
    outside = squares(tmp_path, "outside", 24, 3)
    options: dict[str, Any] = {"classes": CLASSES, "suite_options": {"multiples": [1.0]}}
    results = utility.evaluate_sets(real, synthetic, {"test": test, "outside": outside}, SETTINGS, **options)
    alone = utility.evaluate(real, synthetic, outside, SETTINGS, **options)
    assert list(results) == ["test", "outside"]
    for name in ("auroc_macro/real", "auroc/real + 1x, Edema", "brier_score/real + 1x"):
        assert results["outside"][name].value == alone[name].value
    assert results["outside"].settings["sets"]["test"]["name"] == "outside"
    assert (
        results["test"]["auroc_macro/real"].value
        == utility.evaluate(*sets, SETTINGS, **options)["auroc_macro/real"].value
    )
    known = replace(outside, items=(replace(outside.items[0], subject=real.items[3].subject), *outside.items[1:]))
    with pytest.raises(DataError, match=r"outside share subject 'real-3'"):
        utility.evaluate_sets(real, synthetic, {"test": test, "outside": known}, SETTINGS, **options)


def test_classes_of_another_source_for_pretraining(sets: tuple[EvalSet, EvalSet, EvalSet]) -> None:
    """Few real images with classes of their own, after pretraining on synthetic ones with other classes."""
    real, synthetic, test = sets

    def renamed(items: EvalSet) -> EvalSet:
        own = (replace(one, labels={"shadow left": one.labels["Edema"]}) for one in items.items)
        return replace(items, items=tuple(own))

    after = replace(SETTINGS, pretraining=SETTINGS.training, finetuning=SETTINGS.training, runs=1)
    result = utility.evaluate(
        renamed(real),
        synthetic,
        renamed(test),
        after,
        suite="few-shot",
        classes=["shadow left"],
        learned_too=CLASSES,
        suite_options={"shots": [2], "multiples": [1.0, 2.0]},
    )
    assert list(result.details) == ["2-shot", "pretrained 1x, 2-shot", "pretrained 2x, 2-shot", "subjects"]
    assert [result.details[name]["pretraining"] for name in list(result.details)[:3]] == [0, 16, 32]
    assert result.details["2-shot"]["images"] == 4
    first = result["auroc_macro/pretrained 1x, 2-shot"]
    assert first.value == result["auroc/pretrained 1x, 2-shot, shadow left"].value  # the only class of the test set
    assert set(first.references) == {"2-shot"}


def test_structures_and_boxes_of_a_sets_own_are_learned_by_default(tmp_path: Path) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "mask.png")
    files: tuple[Path, ...] = (tmp_path / "mask.png",)
    masks: dict[str, tuple[Path, ...]] = dict.fromkeys(("right rib 2", "right rib 1", "left lung"), files)
    study = Study(
        "a", "a", "train", masks=masks, boxes=(Box("foreign object", 0, 0, 0.5, 0.5), Box("mass", 0, 0, 1, 1))
    )
    real = EvalSet("real", (Item("a", tmp_path / "mask.png"),))
    segmentation, detection = (
        utility.make_task(replace(SETTINGS, task=task), real, None, {"a": study})  # pyright: ignore
        for task in ("segmentation", "detection")
    )
    assert segmentation.classes == ("left lung", "right rib 1", "right rib 2")
    assert detection.classes == ("mass", "foreign object")
