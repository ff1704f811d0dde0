from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import pearsonr, spearmanr

from xgem.configs.components import TransformConfig
from xgem.data.annotations import Box
from xgem.data.augment import small_moves
from xgem.data.outlines import Outlines, united
from xgem.data.study import Study
from xgem.eval.families.control import KINDS, evaluate, permuted
from xgem.eval.families.requests import Annotated, Judges, Requested
from xgem.eval.record import FamilyResult, Metric
from xgem.judges import segmenter as shapes
from xgem.judges.classifier import ClassifierConfig, train_classifier
from xgem.judges.judge import OwnJudge
from xgem.judges.segmenter import SegmenterConfig, train_segmenter
from xgem.metrics import spatial
from xgem.metrics.agreement import coarse
from xgem.metrics.bootstrap import Bootstrap
from xgem.metrics.correlation import compare_correlation, correlation
from xgem.pipeline.embedding import PromptEncoders
from xgem.types import InputError, NotComputed

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
    *(("mask", f"{kind}/{name}") for kind in ("dice", "iou") for name in ("lungs", "heart")),
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
    assert masks["dice/heart"].weights == masks.settings["segmenter"]
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
    assert "expected at least 5 and 16" in found["dice/heart"].reason


def square(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    images = rng.integers(60, 120, (count, SIZE, SIZE), dtype=np.uint8)
    masks = np.zeros((count, 1, SIZE, SIZE), dtype=bool)
    for image, mask in zip(images, masks[:, 0], strict=True):
        y, x = rng.integers(4, 16, 2)
        mask[y : y + 12, x : x + 12] = True
        image[mask] += 100
    return images, masks


def test_segmenter_is_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = square(np.random.default_rng(0), 32)
    outlines = Outlines(("square",), masks, np.ones((32, 1), dtype=bool))
    config = SegmenterConfig(width=8, epochs=10)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = train_segmenter(images, outlines, config=config, cache=tmp_path)
    assert torch.equal(torch.rand(3), expected), "the random state outside is left alone"
    test, truth = square(np.random.default_rng(1), 16)
    dice, iou = spatial.overlaps(first.masks(test)[:, 0], truth[:, 0])
    assert np.diag(dice).mean() > 0.9
    assert np.diag(iou).mean() > 0.8
    assert train_segmenter(images, outlines, config=config).hash == first.hash

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(shapes, "fit", fail)
    again = train_segmenter(images, outlines, config=config, cache=tmp_path)
    assert again.hash == first.hash
    np.testing.assert_array_equal(again.masks(test), first.masks(test))
    with pytest.raises(AssertionError, match="trained again"):
        train_segmenter(images, Outlines(("square",), ~masks, outlines.known), config=config, cache=tmp_path)


def test_unknown_masks_have_no_say() -> None:
    images, masks = square(np.random.default_rng(0), 16)
    known = np.arange(16)[:, None] % 2 == 0
    config = SegmenterConfig(width=8, epochs=1)
    wrong = np.where(known[..., None, None], masks, ~masks)
    hashes = {train_segmenter(images, Outlines(("a",), one, known), config=config).hash for one in (masks, wrong)}
    assert len(hashes) == 1
    everything = Outlines(("a",), wrong, np.ones_like(known))
    assert train_segmenter(images, everything, config=config).hash not in hashes


def test_segmenter_refuses_what_it_cannot_use() -> None:
    images, masks = square(np.random.default_rng(0), 16)
    outlines = Outlines(("a",), masks, np.ones((16, 1), dtype=bool))
    with pytest.raises(InputError, match=r"expected \(n, k, s, s\)"):
        train_segmenter(images[:8], outlines)
    with pytest.raises(InputError, match="divisible by 16"):
        train_segmenter(images[:, :30, :30], replace(outlines, masks=masks[..., :30, :30]))
    with pytest.raises(InputError, match="at least one batch"):
        train_segmenter(images, outlines, config=SegmenterConfig(batch_size=32))


def test_augmentation_never_mirrors() -> None:
    torch.manual_seed(0)
    grid = small_moves(torch.zeros(2000, 1, 8, 8))
    assert (grid[:, :, 1:, 0] > grid[:, :, :-1, 0]).all()
    assert (grid[:, 1:, :, 1] > grid[:, :-1, :, 1]).all()


def test_overlaps_by_hand() -> None:
    found, asked = np.zeros((2, 4, 4), dtype=bool), np.zeros((2, 4, 4), dtype=bool)
    found[0, :2], asked[0, 1:3], asked[1, 0] = True, True, True
    dice, iou = spatial.overlaps(found, asked)
    np.testing.assert_allclose(dice, [[0.5, 2 / 3], [0, 0]])
    np.testing.assert_allclose(iou, [[1 / 3, 0.5], [0, 0]])
    with pytest.raises(InputError, match="is empty"):
        spatial.overlaps(asked, found)


def test_places_of_boxes() -> None:
    box = Box("mass", 0.25, 0.5, 0.25, 0.25)
    inside = spatial.region(box, 16)
    assert np.argwhere(inside).min(axis=0).tolist() == [8, 4]
    assert inside.sum() == 16
    assert spatial.ring(box, 16).sum() == 36 - 16
    assert np.argwhere(spatial.mirrored(box, 16)).min(axis=0).tolist() == [8, 8]
    assert not (spatial.ring(box, 16) & inside).any()
    assert not spatial.mirrored(Box("cardiomegaly", 0.25, 0.5, 0.5, 0.25), 16).any()
    assert spatial.region(Box("nodule", 0.999, 0.5, 0.001, 0.001), 16).sum() == 1


def test_contrast_and_response_are_those_of_the_box() -> None:
    boxes = [[Box("nodule", 0.25, 0.25, 0.25, 0.25)], [Box("nodule", 0.25, 0.5, 0.5, 0.25)]]
    images = np.full((2, 16, 16), 100, dtype=np.uint8)
    images[0, spatial.region(boxes[0][0], 16)] += 51
    scores = spatial.contrasts(images, boxes, spatial.ring)
    assert scores[0, 0] == pytest.approx(0.2)
    assert scores[1].tolist() == pytest.approx([0, 0])
    other = spatial.contrasts(images, boxes, spatial.mirrored)
    assert other[0, 0] == pytest.approx(0.2)
    assert np.isnan(other[:, 1]).all(), "a box across the middle has no other side"

    def logits(shown: np.ndarray) -> np.ndarray:
        return np.stack([np.zeros(len(shown)), shown[:, 4:8, 4:8].mean(axis=(1, 2))], axis=1)

    known = [[(box, 1) for box in own] for own in boxes]
    found = spatial.responses(images, known, logits)
    assert found[0, 0] > 20
    assert found[0, 1] == found[1, 0] == found[1, 1] == 0


def test_correlation_is_scipys_on_every_resampling() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 15).astype(float)
    y = x + rng.normal(0, 2, 15).round()
    bootstrap = Bootstrap(15, draws=20)
    for ranks, reference in ((False, pearsonr), (True, spearmanr)):
        found = correlation(x, y, bootstrap, ranks=ranks)
        for weights, value in zip(bootstrap.weights, [found.value, *found.draws], strict=True):
            rows = np.repeat(np.arange(15), weights.astype(int))
            expected: Any = reference(x[rows], y[rows])
            assert value == pytest.approx(expected.statistic)
    assert np.isnan(correlation(x, np.ones(15), bootstrap).value)
    compared = compare_correlation(x, y, bootstrap, permutations=200)
    assert compared.difference.estimate().low > 0
    assert compared.shuffled.value == pytest.approx(0, abs=0.12)


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
    assert united({"left lung": left, "cardiomediastinum": right}).keys() == {"heart"}
