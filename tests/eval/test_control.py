from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from xgem.data.manifest import Manifest, Row
from xgem.data.outlines import Outlines, united
from xgem.data.study import Study
from xgem.eval.asked import permuted
from xgem.eval.control import ControlEvaluation, evaluate_control, reached
from xgem.eval.control_run import ControlSettings
from xgem.eval.results import Measure
from xgem.judges import segmenter as shapes
from xgem.judges.classifier import ClassifierConfig
from xgem.judges.segmenter import SegmenterConfig, train_segmenter
from xgem.metrics import spatial
from xgem.metrics.agreement import coarse
from xgem.metrics.bootstrap import Bootstrap
from xgem.metrics.correlation import compare_correlation, correlation
from xgem.pipeline.embedding import Evaluated
from xgem.types import InputError, OutputError

SIZE = 32
TRAINED, JUDGED = 96, 24
INPUTS = ("report", "mask", "boxes", "severity", "demographics")
SETTINGS = ControlSettings(
    num_samples=2,
    batch_size=7,
    bootstrap=200,
    sheet_rows=2,
    classifier=ClassifierConfig(size=SIZE, width=8, epochs=12, batch_size=16),
    segmenter=SegmenterConfig(width=8, epochs=15),
    patient=ClassifierConfig(size=SIZE, width=8, epochs=12, batch_size=16),
)
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


@dataclass(frozen=True)
class AnnotatedManifest(Manifest):
    """A manifest whose studies carry annotations."""

    annotations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def studies(self, split: str | None = None) -> list[Study]:
        return [replace(study, **self.annotations.get(study.id, {})) for study in super().studies(split)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedManifest:
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    annotations: dict[str, dict[str, Any]] = {}
    for i in range(TRAINED + JUDGED):
        name, request = f"s{i:03d}", some_request(rng)
        nodule = i < JUDGED or rng.random() < 0.5
        shown = request if nodule else request | {"boxes": []}
        Image.fromarray(paint(shown, rng)).save(folder / f"{name}.png")
        labels = ("Cardiomegaly",) * (request["report"] == "Cardiomegaly.") + ("Nodule",) * nodule
        shared: dict[str, Any] = {"labels": labels or ("normal",), "impression": request["report"], "source": "openi"}
        shared |= request["demographics"]
        split = "val" if i < JUDGED else "train"
        rows.append(Row(study=name, subject=name, split=split, view="frontal", file=f"{name}.png", **shared))
        masks: dict[str, tuple[Path, ...]] = {}
        for structure, mask in request["mask"].items():
            file = folder / f"{name}_{structure}_mask.png"
            Image.fromarray(mask).save(file)
            masks[structure] = (file,)
        boxes = tuple(Box(box["label"], *box["bbox"]) for box in shown["boxes"])
        annotations[name] = {"masks": masks, "boxes": boxes, "severity": request["severity"]}
    return AnnotatedManifest(tuple(rows), folder, annotations)


@dataclass
class Generated:
    outputs: dict[str, list[Any]]


def model(*, listens: bool = True, inputs: tuple[str, ...] = INPUTS) -> Evaluated:
    """A model that paints what it is asked for and the rest at random, or one that is deaf."""

    def pipe(requests: list[dict[str, Any]], outputs: list[str], **options: Any) -> list[Generated]:
        assert outputs == ["frontal"]
        made: list[Generated] = []
        for request, seed in zip(requests, options["seed"], strict=True):
            assert len(request) == 1, "each input is given alone"
            samples: list[Any] = []
            for k in range(options["num_samples"]):
                rng = np.random.default_rng([seed, k, 7])
                shown = some_request(rng) | (request if listens else {})
                samples.append(Image.fromarray(paint(shown, rng)))
            made.append(Generated({"frontal": samples}))
        return made

    def refuse(*_: Any) -> Any:
        raise AssertionError("the evaluated model has no encoders, and its codec is not asked")

    return Evaluated(
        name="fake",
        hash="0" * 8,
        pipe=pipe,
        images=("frontal",),
        reports=(),
        transform=TransformConfig(size=SIZE),
        embed=refuse,
        reconstruct=refuse,
        inputs=inputs,
    )


def judge() -> Evaluated:
    """Coarse pixels as embedding, at half the model's size; a report's is the corner that shows its finding."""

    def embed(modality: str, values: Any) -> np.ndarray:
        if modality == "frontal":
            assert values.shape[1:] == (16, 16)
            return coarse(values)
        signs = np.zeros((len(values), 16, 16))
        signs[:, 13:, :4] = [[[1 if text == "Cardiomegaly." else -1]] for text in values]
        return signs.reshape(len(values), -1)

    return replace(model(), name="judge", hash="1" * 8, embed=embed, transform=TransformConfig(size=16))


Runs = dict[str, tuple[ControlEvaluation, Path]]


@pytest.fixture(scope="module")
def runs(manifest: AnnotatedManifest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    options: dict[str, Any] = {"settings": SETTINGS, "cache": folder / "cache", "progress": False}
    made = {"obeys": model(), "deaf": model(listens=False)}
    return {
        name: (evaluate_control(one, judge(), manifest, out=folder / name, **options), folder / name)
        for name, one in made.items()
    }


CONTROLLED = (
    *(("masks", f"{kind} {name}") for kind in ("dice", "iou") for name in ("lungs", "heart")),
    *(("boxes", name) for name in ("contrast to ring", "contrast to other side", "response")),
    ("severity", "spearman"),
    ("demographics", "sex AUC"),
    ("demographics", "age r"),
    *(("text", name) for name in ("prompt_agreement", "target_agreement", "classifier_agreement", "label_auc")),
)


@pytest.mark.parametrize(("family", "name"), CONTROLLED)
def test_obedience_is_seen_and_deafness_is(runs: Runs, family: str, name: str) -> None:
    obeys, deaf = (runs[which][0].families[family].measures[name] for which in ("obeys", "deaf"))
    assert obeys.difference is not None
    assert deaf.difference is not None
    assert obeys.difference.low > 0
    assert deaf.difference.low < 0 < deaf.difference.high or abs(deaf.difference.value) < 0.03
    assert obeys.value.n == JUDGED


def test_the_planted_truth_is_recovered(runs: Runs) -> None:
    found = {name: family.measures for name, family in runs["obeys"][0].families.items()}
    assert found["masks"]["dice lungs"].value.value > 0.8
    assert found["masks"]["dice lungs"].reference["ceiling"].value > 0.8
    share, deaf = (reached(runs[name][0].families["masks"].measures["dice lungs"]) for name in ("obeys", "deaf"))
    assert share is not None
    assert deaf is not None
    assert share.value == pytest.approx(1, abs=0.15)
    assert deaf.value == pytest.approx(0, abs=0.15)
    assert found["severity"]["spearman"].value.value > 0.8
    assert found["demographics"]["sex AUC"].value.value > 0.9
    assert found["demographics"]["age r"].value.value > 0.6
    # A nodule of 60 grey levels; its surroundings may be the edge of a lung or the heart
    assert found["boxes"]["contrast to ring"].value.value == pytest.approx(60 / 255, abs=0.08)
    assert found["text"]["label_auc"].value.value > 0.9


def test_permutations_say_what_chance_gives(runs: Runs) -> None:
    for family, name in (("severity", "spearman"), ("demographics", "sex AUC"), ("demographics", "age r")):
        obeys, deaf = (runs[which][0].families[family] for which in ("obeys", "deaf"))
        chance = obeys.details["permutations"][name]
        assert chance["p"] <= 0.005
        assert chance["low"] < chance["high"] < obeys.measures[name].value.value
        assert deaf.details["permutations"][name]["p"] > 0.02


def test_the_run_folder(runs: Runs, manifest: AnnotatedManifest) -> None:
    _, out = runs["obeys"]
    stored = json.loads((out / "control.json").read_text())
    assert stored["settings"]["model"] == {"name": "fake", "hash": "00000000"}
    assert stored["settings"]["judge"] == {"name": "judge", "hash": "11111111"}
    assert stored["settings"]["seed"] == 0
    assert stored["not_computed"] == {}
    masks = stored["families"]["masks"]
    assert masks["n"] == JUDGED
    assert masks["details"]["segmenter"] in masks["measures"]["dice heart"]["space"]
    assert set(masks["measures"]["dice heart"]) >= {"matched", "shuffled", "difference", "real:ceiling", "reached"}
    assert set(masks["measures"]["dice heart"]["reached"]) == {"value", "low", "high", "n"}
    table = (out / "control.md").read_text()
    assert "| masks | dice lungs | 24 |" in table
    assert "frechet" not in table
    assert {path.stem for path in out.glob("control_*.png")} == {f"control_{name}" for name in stored["families"]}
    with pytest.raises(OutputError, match="holds results already"):
        evaluate_control(model(), judge(), manifest, out=out, settings=SETTINGS, progress=False)


def test_what_cannot_be_computed_says_why(runs: Runs, manifest: AnnotatedManifest, tmp_path: Path) -> None:
    plain = Manifest(tuple(row.model_copy(update={"age": None, "sex": None}) for row in manifest.rows), manifest.root)
    cache = runs["obeys"][1].parent / "cache"
    settings = replace(SETTINGS, num_samples=1)
    found = evaluate_control(
        model(), judge(), plain, out=tmp_path / "a", settings=settings, cache=cache, progress=False
    )
    assert list(found.families) == ["text"]
    assert set(found.not_computed) == {"masks", "boxes", "severity", "demographics"}
    assert all("has 0 studies with" in reason for reason in found.not_computed.values())
    stored = json.loads((tmp_path / "a" / "control.json").read_text())
    assert stored["not_computed"] == found.not_computed
    assert "Not computed: masks (split 'val' has 0 studies with masks" in found.markdown()

    few = replace(manifest, annotations={"s000": manifest.annotations["s000"]})
    unable = evaluate_control(
        model(inputs=()), judge(), few, out=tmp_path / "b", settings=settings, cache=cache, progress=False
    )
    assert not unable.families
    assert "has 1 studies with masks: expected at least 5" in unable.not_computed["masks"]
    assert unable.not_computed["demographics"] == "fake takes no demographics"
    assert unable.not_computed["text"] == "fake takes no report"


def test_a_structure_that_is_rarely_outlined_is_left_out(
    runs: Runs, manifest: AnnotatedManifest, tmp_path: Path
) -> None:
    def without(name: str) -> dict[str, Any]:
        one = dict(manifest.annotations[name])
        if name >= "s004":
            one["masks"] = {key: value for key, value in one["masks"].items() if key != "cardiomediastinum"}
        return {"masks": one["masks"]}

    rare = replace(manifest, annotations={name: without(name) for name in manifest.annotations})
    settings = replace(SETTINGS, num_samples=1, limit=12, segmenter=replace(SETTINGS.segmenter, epochs=1))
    found = evaluate_control(
        model(inputs=("mask",)), judge(), rare, out=tmp_path, settings=settings, progress=False
    ).families["masks"]
    assert set(found.measures) == {"dice lungs", "iou lungs"}
    assert "expected at least 5 and 16" in found.left_out["heart"]
    assert found.n == 12


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
    with pytest.raises(InputError, match="at least a batch"):
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


def test_share_reached() -> None:
    bootstrap = Bootstrap(10, draws=50)
    values = np.random.default_rng(0).normal(size=10)
    low, half, top = (bootstrap.mean(values + shift) for shift in (0, 1, 2))
    share = reached(Measure(half, low, reference={"ceiling": top}))
    assert share is not None
    assert share.estimate().low == pytest.approx(0.5)
    assert share.value == pytest.approx(0.5)
    assert reached(Measure(half, low)) is None


def test_lungs_are_judged_as_one() -> None:
    left, right = np.eye(4, dtype=bool), np.eye(4, dtype=bool)[::-1]
    both = united({"left lung": left, "right lung": right, "device": left})
    assert set(both) == {"lungs", "device"}
    np.testing.assert_array_equal(both["lungs"], left | right)
    assert united({"left lung": left, "cardiomediastinum": right}).keys() == {"heart"}
