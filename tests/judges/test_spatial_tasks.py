from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xgem.data.annotations import Box
from xgem.data.sets import EvalSet, Item
from xgem.data.study import Study
from xgem.eval.utility.protocols import Protocol, suite, synthetic_only
from xgem.eval.utility.runner import run_protocols
from xgem.judges.settings import Stage, TaskName, UtilitySettings
from xgem.judges.tasks.data import Data, ImageStore, annotated
from xgem.judges.tasks.detection import Detection
from xgem.judges.tasks.segmentation import Segmentation
from xgem.judges.tasks.severity import Severity
from xgem.judges.tasks.training import train
from xgem.metrics.bootstrap import Bootstrap
from xgem.metrics.detection import image_f1, match, precision_and_recall
from xgem.types import InputError

SIZE = 64
CPU = torch.device("cpu")


def small(task: TaskName, steps: int, learning_rate: float, *, batch_size: int = 8, **others: Any) -> UtilitySettings:
    """Settings with which a small network learns the squares in seconds."""
    training = Stage(steps=steps, batch_size=batch_size, learning_rate=learning_rate, schedule="one_cycle")
    return UtilitySettings(task, "small", SIZE, training, draws=50, **others)


def squares(folder: Path, name: str, n: int, seed: int, *, empty: float = 0.0) -> tuple[EvalSet, dict[str, Study]]:
    """A bright square is the finding: its mask, its box, and half its side the severity."""
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    studies: dict[str, Study] = {}
    for k in range(n):
        own, side = f"{name}-{k}", 2 * int(rng.integers(8, 14))
        row, column = (int(one) for one in rng.integers(2, SIZE - side - 2, 2))
        pixels = rng.integers(60, 110, (SIZE, SIZE)).astype(np.uint8)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        masks: dict[str, tuple[Path, ...]] = {}
        boxes: tuple[Box, ...] = ()
        if rng.random() >= empty:
            mask[row : row + side, column : column + side] = True
            pixels[mask] += 110
            Image.fromarray(mask).save(folder / f"{own}.mask.png")
            masks = {"pneumothorax": (folder / f"{own}.mask.png",)}
            boxes = (Box("mass", column / SIZE, row / SIZE, side / SIZE, side / SIZE),)
        file = folder / f"{own}.png"
        Image.fromarray(pixels).save(file)
        items.append(Item(own, file, subject=own, severity=side / 2 if masks else 0.0))
        studies[own] = Study(own, own, "train", {"frontal": (file,)}, masks=masks, boxes=boxes)
    return EvalSet(name, tuple(items)), studies


def detections(*rows: tuple[int, int, float, tuple[float, float, float, float]]) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "image": np.array([row[0] for row in rows], dtype=np.int64),
        "label": np.array([row[1] for row in rows], dtype=np.int64),
        "score": np.array([row[2] for row in rows], dtype=np.float32),
        "box": np.array([row[3] for row in rows], dtype=np.float32).reshape(-1, 4),
    }


TRUTH = np.full((4, 2, 5), -1, dtype=np.float32)
TRUTH[0, 0], TRUTH[0, 1] = (0, 0, 0, 10, 10), (1, 20, 20, 40, 40)
TRUTH[1, 0] = (0, 5, 5, 25, 25)
TRUTH[2, 0] = (1, 1, 1, 9, 9)


def test_perfect_and_empty_detections() -> None:
    perfect = detections(
        *((i, int(row[0]), 0.9, tuple(row[1:])) for i, own in enumerate(TRUTH) for row in own if row[0] >= 0)
    )
    ones = np.ones(2)
    for label in (0, 1):
        ap, ar = precision_and_recall(match(perfect, TRUTH, 2, 64), label, np.ones((2, 4)))
        np.testing.assert_allclose([ap, ar], [ones, ones])
        ap, ar = precision_and_recall(match(detections(), TRUTH, 2, 64), label, np.ones((2, 4)))
        np.testing.assert_array_equal([ap, ar], [0 * ones, 0 * ones])
    np.testing.assert_array_equal(image_f1(match(perfect, TRUTH, 2, 64), 0.5), np.ones(4))
    np.testing.assert_array_equal(image_f1(match(detections(), TRUTH, 2, 64), 0.5), [0, 0, 0, 1])
    nothing = match(detections(), TRUTH[3:], 2, 64)
    assert np.isnan(precision_and_recall(nothing, 0, np.ones((1, 1)))).all()


def test_average_precision_is_that_of_pycocotools() -> None:
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    truth = np.full((20, 3, 5), -1, dtype=np.float32)
    rows: list[tuple[int, int, float, tuple[float, float, float, float]]] = []
    for image in range(20):
        for k in range(int(rng.integers(0, 4))):
            x, y, w, h = rng.integers([0, 0, 8, 8], [30, 30, 24, 24])
            label = int(rng.integers(2))
            truth[image, k] = (label, x, y, x + w, y + h)
            shift = rng.normal(0, 2, 4)
            found = np.array([x, y, x + w, y + h]) + shift
            if found[2] > found[0] and found[3] > found[1]:
                rows.append((image, label, float(rng.random()), tuple(found)))  # pyright: ignore[reportArgumentType]
    for _ in range(15):
        x, y = rng.integers(0, 40, 2)
        rows.append((int(rng.integers(20)), int(rng.integers(2)), float(rng.random()), (x, y, x + 15, y + 15)))
    found = detections(*rows)
    matches = match(found, truth, 2, 64)

    sides: list[Any] = []
    with contextlib.redirect_stdout(io.StringIO()):
        for boxes in (
            [(i, int(r[0]), r[1:], 1.0) for i, own in enumerate(truth) for r in own if r[0] >= 0],
            [(i, k, box, s) for i, k, s, box in rows],
        ):
            side: Any = COCO()
            side.dataset = {
                "images": [{"id": i} for i in range(20)],
                "categories": [{"id": 0}, {"id": 1}],
                "annotations": [
                    {
                        "id": number,
                        "image_id": i,
                        "category_id": k,
                        "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
                        "area": float((b[2] - b[0]) * (b[3] - b[1])),
                        "score": float(np.float32(s)),
                        "iscrowd": 0,
                    }
                    for number, (i, k, b, s) in enumerate(boxes, start=1)
                ],
            }
            side.createIndex()
            sides.append(side)
        judge: Any = COCOeval(sides[0], sides[1], "bbox")  # its own settings: ten IoUs, 1, 10 and 100 detections, areas
        judge.evaluate()
        judge.accumulate()
    weights = Bootstrap(20, draws=3).weights
    for label in (0, 1):
        ap, ar = precision_and_recall(matches, label, weights)
        assert ap[0] == pytest.approx(judge.eval["precision"][0, :, label, 0, 2].mean())
        assert ar[0] == pytest.approx(judge.eval["recall"][0, label, 0, 2])
        assert 0.2 < ap[0] < 0.9
        # a resampling is the same as the drawn images, evaluated anew
        drawn = np.repeat(np.arange(20), weights[1].astype(int))
        again = detections(*((new, k, s, box) for new, old in enumerate(drawn) for i, k, s, box in rows if i == old))
        redone, recalled = precision_and_recall(match(again, truth[drawn], 2, 64), label, np.ones((1, len(drawn))))
        assert (ap[1], ar[1]) == (pytest.approx(redone[0]), pytest.approx(recalled[0]))


def test_detects_a_planted_square(tmp_path: Path) -> None:
    training, studies = squares(tmp_path, "training", 48, 0)
    test, more = squares(tmp_path, "test", 24, 1)
    task = Detection(small("detection", 90, 3e-3, width=8), ["mass"], studies | more)
    images = ImageStore(SIZE)
    images.add(training)
    images.add(test)
    tested = Data(images.of(test), task.targets(test))
    network = train(task, Data(images.of(training), task.targets(training)), seed=0, device=CPU)
    found = task.measures(task.predict(network, tested.images, CPU), tested, Bootstrap(24, draws=50))
    assert found["mAP50", ""].value > 0.7
    assert found["mAR50", ""].value > 0.8
    assert found["AP50", "mass"].value == found["mAP50", ""].value
    assert not task.missing(tested)


def test_published_detector_gives_losses_and_boxes(tmp_path: Path) -> None:
    items, studies = squares(tmp_path, "a", 2, 0)
    settings = UtilitySettings("detection", "fasterrcnn_resnet50_fpn", SIZE, Stage(steps=1, batch_size=2))
    task = Detection(settings, ["mass"], studies)
    data = Data(items.images(SIZE), task.targets(items))
    network = train(task, data, seed=0, device=CPU)
    found = task.predict(network, data.images, CPU)
    assert found["box"].shape == (len(found["score"]), 4)
    with pytest.raises(InputError, match="expected small or fasterrcnn"):
        Detection(replace(settings, network="yolo"), ["mass"], studies).network()
    with pytest.raises(InputError, match="detection of no class; expected names such as atelectasis"):
        Detection(settings, [], studies)


def test_generations_are_segmented_by_the_mask_that_they_were_asked_with(tmp_path: Path) -> None:
    synthetic, studies = squares(tmp_path, "asked", 32, 0, empty=0.3)
    test, more = squares(tmp_path, "test", 24, 1, empty=0.3)
    order = np.random.default_rng(0).permutation(32)
    sets: dict[str, EvalSet] = {}
    for name, rows in (("right", range(32)), ("wrong", order)):
        items = [
            replace(item, id=f"{name}-{k}", subject="", pair=synthetic.items[int(row)].id)
            for k, (item, row) in enumerate(zip(synthetic.items, rows, strict=True))
        ]
        sets[name] = EvalSet(name, tuple(items))
    settings = small("segmentation", 40, 5e-3, width=6, absent="empty", runs=1)
    task = Segmentation(settings, ["pneumothorax"], studies | more)
    asked = [study.id for study in annotated(sets["wrong"], studies) if study]
    assert asked == [synthetic.items[row].id for row in order]
    protocols = [Protocol(name, lambda seed, one=one: synthetic_only(one)) for name, one in sets.items()]
    tested = run_protocols(task, protocols, list(sets.values()), test, cache=tmp_path / "cache")
    bootstrap = tested.bootstrap()
    found = {name: tested.measures(name, bootstrap)[0]["positive Dice", ""] for name in tested.runs}
    assert found["right"].value > 0.9
    assert (found["right"] - found["wrong"]).estimate().above_zero
    assert found["wrong"].value < 0.6
    assert task.missing(tested.test) == {}


def test_dice_in_closed_form(tmp_path: Path) -> None:
    studies: dict[str, Study] = {}
    task = Segmentation(
        UtilitySettings("segmentation", "small", 32, Stage(epochs=1)), ["pneumothorax", "device"], studies
    )
    truth = np.zeros((3, 2, 32, 32), dtype=bool)
    truth[0, 0, :8, :8] = True
    known = np.array([[True, True], [True, False], [True, True]])
    test = Data(np.zeros((3, 32, 32), dtype=np.uint8), {"masks": truth, "known": known})
    found = np.zeros_like(truth)
    found[0, 0, :8, :4] = True  # half of it
    found[2, 0, 0, 0] = True  # something where nothing is
    predictions = {"masks": np.packbits(found.reshape(3, 2, -1), axis=2)}
    dice, there = task.dice(predictions, test)
    np.testing.assert_allclose(dice, [[2 * 32 / (32 + 64), 1], [1, np.nan], [0, 1]])
    np.testing.assert_array_equal(there, [[True, False], [False, False], [False, False]])
    measures = task.measures(predictions, test, Bootstrap(3, draws=5))
    assert measures["positive Dice", "pneumothorax"].value == pytest.approx(2 / 3)
    assert measures["negative Dice", "pneumothorax"].value == pytest.approx(0.5)
    assert measures["negative Dice", "device"].value == 1
    assert ("positive Dice", "device") not in measures
    assert task.missing(test) == {("positive Dice", "device"): "no test image shows it"}


def test_published_unet(tmp_path: Path) -> None:
    items, studies = squares(tmp_path, "a", 4, 0, empty=0.5)
    settings = UtilitySettings("segmentation", "unet-resnet34", SIZE, Stage(steps=1, batch_size=2))
    task = Segmentation(settings, ["pneumothorax"], studies)
    usable = task.usable(items)
    assert [item.id for item in usable.items] == [name for name, study in studies.items() if study.masks]
    assert len(Segmentation(replace(settings, absent="empty"), ["pneumothorax"], studies).usable(items)) == 4
    data = Data(usable.images(SIZE), task.targets(usable))
    network = train(task, data, seed=0, device=CPU)
    assert task.predict(network, data.images, CPU)["masks"].shape == (len(usable), 1, SIZE * SIZE // 8)
    with pytest.raises(InputError, match="multiple of 32"):
        Segmentation(replace(settings, size=40), ["pneumothorax"], studies)
    with pytest.raises(InputError, match="segmentation of no structure; expected names such as left lung"):
        Segmentation(settings, [], studies)
    with pytest.raises(InputError, match="an image and a mask of device"):
        Segmentation(settings, ["device"], studies).usable(items)


def test_severity_is_learnt_in_its_own_unit(tmp_path: Path) -> None:
    sets: Mapping[str, EvalSet] = {
        name: squares(tmp_path, name, n, seed)[0] for seed, (name, n) in enumerate((("real", 80), ("test", 40)))
    }
    settings = small("severity", 100, 3e-3, batch_size=16, width=6, augment=False, runs=1)
    task = Severity(settings)
    tested = run_protocols(task, suite("augmentation", sets["real"], sets["real"])[:1], [sets["real"]], sets["test"])
    found = tested.measures("real", tested.bootstrap())[0]
    guess = np.abs(tested.test.targets["severity"] - 10).mean()
    assert found["Pearson r", ""].value > 0.8
    assert found["MAE", ""].value < 0.7 * guess
    assert found["MSE", ""].value >= found["MAE", ""].value ** 2
    np.testing.assert_allclose(tested.cases("real").mean(), found["MAE", ""].value)
    constant = Data(tested.test.images[:2], {"severity": np.ones(2, dtype=np.float32)})
    assert task.missing(constant) == {("Pearson r", ""): "all test images have one severity"}
    with pytest.raises(InputError, match="no classes to balance"):
        Severity(replace(settings, sampling="balanced"))
