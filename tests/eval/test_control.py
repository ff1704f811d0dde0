"""Control by annotations: a painter that obeys its request is told from one that ignores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.configs.components import TransformConfig
from xgem.data.annotations import Box
from xgem.data.outlines import united
from xgem.data.study import Study
from xgem.eval.families.control import KINDS, evaluate, permuted
from xgem.eval.families.requests import Annotated, Judges, Requested
from xgem.eval.record import FamilyResult, Metric
from xgem.judges.classifier import ClassifierConfig, train_classifier
from xgem.judges.judge import OwnJudge
from xgem.judges.segmenter import SegmenterConfig
from xgem.metrics.agreement import coarse
from xgem.metrics.bootstrap import Bootstrap
from xgem.pipeline.embedding import PromptEncoders
from xgem.types import NotComputed

SIZE = 32
TRAINED, JUDGED = 96, 24
GREY = {"left lung": 50, "right lung": 50, "cardiomediastinum": 220}


def ellipse(y: float, x: float, height: float, width: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1


def some_request(rng: np.random.Generator) -> dict[str, Any]:
    """All that an image shows, at random."""
    y, x = rng.uniform(10, 20), rng.uniform(13, 19)
    height, width = rng.uniform(4, 8), rng.uniform(2.5, 4)
    side = rng.integers(2)
    return {
        "mask": {
            "right lung": ellipse(y, x - 7, height, width),
            "left lung": ellipse(y, x + 7, height, width),
            "cardiomediastinum": ellipse(y + 3, x, rng.uniform(2, 4), 2.5),
        },
        "boxes": [{"label": "nodule", "bbox": [0.7 if side else 0.1, float(rng.uniform(0.2, 0.6)), 0.2, 0.2]}],
        "severity": float(rng.integers(19)),
        "demographics": {"sex": "FM"[rng.integers(2)], "age": float(rng.integers(20, 80))},
        "report": ("No acute disease.", "Cardiomegaly.")[rng.integers(2)],
    }


def paint(request: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    image = rng.normal(130, 8, (SIZE, SIZE))
    for name, mask in request["mask"].items():
        image[mask] = GREY[name]
    for box in request["boxes"]:
        x, y, w, h = (round(SIZE * side) for side in box["bbox"])
        image[y : y + h, x : x + w] += 60
    image[30:, 10:22] = 40 + 10 * request["severity"]
    image[:4, :12] = 230 if request["demographics"]["sex"] == "F" else 30
    image[:4, 20:] = 2.8 * request["demographics"]["age"]
    image[26:, :8] = 230 if request["report"] == "Cardiomegaly." else 30
    return np.clip(image, 0, 255).astype(np.uint8)


def answered(request: Mapping[str, Any], kind: str, *, listens: bool, rng: np.random.Generator) -> np.ndarray:
    """What a model paints that gets one kind of the request alone, or that ignores it."""
    shown = some_request(rng)
    if listens:
        shown[kind] = request[kind]
    return paint(shown, rng)


@dataclass(frozen=True)
class World:
    """The first JUDGED studies are evaluated, the others are trained on."""

    studies: tuple[Study, ...]
    requests: tuple[dict[str, Any], ...]
    images: np.ndarray
    cache: Path

    def requested(self, kind: str, *, listens: bool = True, count: int = 2) -> Requested:
        rng = np.random.default_rng(7)
        samples = [
            np.stack([answered(one, kind, listens=listens, rng=rng) for one in self.requests[:JUDGED]])
            for _ in range(count)
        ]
        return Requested(
            Annotated(self.studies[:JUDGED], self.images[:JUDGED]),
            samples,
            Annotated(self.studies[JUDGED:], self.images[JUDGED:]),
        )

    def judges(self, **options: Any) -> Judges:
        labels = np.array([float(bool(one["boxes"])) for one in self.requests[JUDGED:]])
        config = ClassifierConfig(size=SIZE, width=8, epochs=12, batch_size=16)
        nodules = train_classifier(
            self.images[JUDGED:], labels[:, None], ("Lung Lesion",), config=config, folder=self.cache
        )
        encoders = PromptEncoders("judge", "1" * 8, 16, coarse, lambda texts: np.zeros((len(texts), 256)))
        return Judges(
            TransformConfig(size=SIZE),
            encoders,
            OwnJudge(nodules, np.array([0.5])),
            self.cache,
            "cpu",
            segmenter=SegmenterConfig(width=8, epochs=15),
            patient=config,
            draws=200,
            **options,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    studies: list[Study] = []
    requests: list[dict[str, Any]] = []
    images: list[np.ndarray] = []
    for i in range(TRAINED + JUDGED):
        name, request = f"s{i:03d}", some_request(rng)
        if i >= JUDGED and rng.random() < 0.5:
            request["boxes"] = []
        masks: dict[str, tuple[Path, ...]] = {}
        for structure, mask in request["mask"].items():
            file = folder / f"{name}_{structure}_mask.png"
            Image.fromarray(mask).save(file)
            masks[structure] = (file,)
        boxes = tuple(Box(box["label"], *box["bbox"]) for box in request["boxes"])
        people: dict[str, Any] = request["demographics"]
        severity = request["severity"]
        studies.append(Study(name, name, "val", masks=masks, boxes=boxes, severity=severity, **people))
        requests.append(request)
        images.append(paint(request, rng))
    return World(tuple(studies), tuple(requests), np.stack(images), folder / "cache")


Results = dict[tuple[str, bool], FamilyResult]


@pytest.fixture(scope="module")
def results(world: World) -> Results:
    judges = world.judges()
    return {
        (kind, listens): evaluate(kind, world.requested(kind, listens=listens), judges)
        for kind in KINDS
        for listens in (True, False)
    }


CONTROLLED = (
    *(("mask", f"{kind}/{name}") for kind in ("dice", "iou") for name in ("lungs", "cardiomediastinum")),
    *(("boxes", name) for name in ("contrast_to_ring", "contrast_to_other_side", "response")),
    ("severity", "severity_spearman"),
    ("demographics", "sex_auroc"),
    ("demographics", "age_pearson"),
)


@pytest.mark.parametrize(("kind", "name"), CONTROLLED)
def test_a_model_that_obeys_is_told_from_one_that_does_not(results: Results, kind: str, name: str) -> None:
    obeys, ignores = (results[kind, listens][name] for listens in (True, False))
    differences = [metric.references["shuffled"].difference for metric in (obeys, ignores)]
    assert differences[0] is not None
    assert differences[1] is not None
    assert differences[0].low > 0
    assert differences[1].low < 0 < differences[1].high or abs(differences[1].value) < 0.03
    assert obeys.value is not None
    assert obeys.value.n == JUDGED
    assert "ceiling" in obeys.references


def value(metric: Metric) -> float:
    assert metric.value is not None
    return metric.value.value


def test_the_planted_truth_is_recovered(results: Results) -> None:
    lungs = results["mask", True]["dice/lungs"]
    assert value(lungs) > 0.8
    assert lungs.references["ceiling"].value.value > 0.8
    ignored = results["mask", False]["dice/lungs"].share_of_ceiling
    assert lungs.share_of_ceiling is not None
    assert ignored is not None
    assert lungs.share_of_ceiling.value == pytest.approx(1, abs=0.15)
    assert ignored.value == pytest.approx(0, abs=0.15)
    assert value(results["severity", True]["severity_spearman"]) > 0.8
    assert value(results["demographics", True]["sex_auroc"]) > 0.9
    assert value(results["demographics", True]["age_pearson"]) > 0.6
    # A nodule of 60 grey levels; its surroundings may be the edge of a lung or the heart
    assert value(results["boxes", True]["contrast_to_ring"]) == pytest.approx(60 / 255, abs=0.1)


def test_permutations_say_what_chance_gives(results: Results) -> None:
    for kind, name in (
        ("severity", "severity_spearman"),
        ("demographics", "sex_auroc"),
        ("demographics", "age_pearson"),
    ):
        obeys, ignores = (results[kind, listens][name] for listens in (True, False))
        chance = obeys.settings["permutations"]
        assert chance["p"] <= 0.005
        assert chance["low"] < chance["high"] < value(obeys)
        assert ignores.settings["permutations"]["p"] > 0.02


def test_the_results_name_their_judges_and_show_images(results: Results) -> None:
    masks = results["mask", True]
    assert masks.settings["pairs"] == "mean of 2 samples per study"
    assert masks["dice/cardiomediastinum"].weights == masks.settings["segmenter"]
    assert len(masks.examples[0].images) == 7  # requested, real, found in real, and two pairs of generated and found
    assert results["boxes", True]["response"].extractor == "xgem-classifier"
    assert "severity" in results["severity", True].examples[0].caption


def test_what_cannot_be_computed_says_why(world: World) -> None:
    judges = world.judges()
    few = replace(world.requested("mask"), real=Annotated(world.studies[:3], world.images[:3]))
    for kind in ("mask", "severity", "demographics"):
        with pytest.raises(NotComputed, match=r"3 evaluated studies with .* expected at least 5"):
            evaluate(kind, few, judges)
    with pytest.raises(NotComputed, match="3 evaluated studies with boxes"):
        evaluate("boxes", few, judges)
    unjudged = evaluate("boxes", world.requested("boxes"), replace(judges, findings=NotComputed("no labels")))
    assert unjudged["response"].reason == "no labels"
    assert unjudged["contrast_to_ring"].value is not None
    women = tuple(replace(study, sex="F") for study in world.studies[:JUDGED])
    alike = replace(world.requested("demographics"), real=Annotated(women, world.images[:JUDGED]))
    assert "0 studies of the rarer sex" in evaluate("demographics", alike, judges)["sex_auroc"].reason


def test_a_structure_that_is_rarely_outlined_is_left_out(world: World) -> None:
    def without(study: Study) -> Study:
        kept = {key: files for key, files in study.masks.items() if key != "cardiomediastinum"}
        return study if study.id < "s004" else replace(study, masks=kept)

    rare = world.requested("mask", count=1)
    rare = replace(
        rare,
        real=replace(rare.real, studies=tuple(map(without, rare.real.studies))),
        training=replace(rare.training, studies=tuple(map(without, rare.training.studies))),
    )
    judges = world.judges()
    found = evaluate("mask", rare, replace(judges, segmenter=replace(judges.segmenter, epochs=1)))
    assert {metric.of for metric in found.metrics if metric.value is not None} == {"lungs"}
    assert "expected at least 5 and 16" in found["dice/cardiomediastinum"].reason


def test_permutation_test_of_nothing_and_of_something() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)

    def r(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.corrcoef(first, second)[0, 1])

    assert permuted(x, [x + rng.normal(size=40)], r, 0)["p"] <= 0.002
    chance = permuted(x, [rng.normal(size=40)], r, 0)
    assert chance["p"] > 0.05
    assert chance["low"] == pytest.approx(-0.31, abs=0.05)
    assert chance["high"] == pytest.approx(0.31, abs=0.05)


def test_share_of_the_ceiling() -> None:
    bootstrap = Bootstrap(10, draws=50)
    values = np.random.default_rng(0).normal(size=10)
    low, half, top = (bootstrap.mean(values + shift) for shift in (0, 1, 2))
    share = Metric.measured("dice", half, paired={"shuffled": low, "ceiling": top}).share_of_ceiling
    assert share is not None
    assert share.low == pytest.approx(0.5)
    assert share.value == pytest.approx(0.5)
    assert Metric.measured("dice", half, paired={"shuffled": low}).share_of_ceiling is None


def test_lungs_are_judged_as_one() -> None:
    left, right = np.eye(4, dtype=bool), np.eye(4, dtype=bool)[::-1]
    both = united({"left lung": left, "right lung": right, "device": left})
    assert set(both) == {"lungs", "device"}
    np.testing.assert_array_equal(both["lungs"], left | right)
    assert united({"left lung": left, "heart": right}).keys() == {"heart"}
