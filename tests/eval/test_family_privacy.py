"""The family on sets of synthetic images, with planted copies of training images and without."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import xgem.data.sets as data_sets
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet, KeptImages
from xgem.data.transforms import read_with
from xgem.eval.families.privacy import evaluate
from xgem.eval.record import FamilyResult
from xgem.eval.report import as_json
from xgem.judges.extractors import Extractor
from xgem.judges.reid import Reid, ReidConfig, SiameseNetwork
from xgem.types import DataError, NotComputed

N, SEEDS, COPIES = 40, 2, 8


def coarse(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    side = images.shape[1] // 8
    blocks = images.reshape(len(images), 8, side, 8, side).astype(np.float32)
    return blocks.mean(axis=(2, 4)).reshape(len(images), -1)


COARSE = Extractor("coarse", "none", 64, 64, "means of 8 x 8 blocks", coarse)


def absent(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    raise NotComputed("its weights are not here")


def smooth(n: int, seed: int) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).normal(128, 45, (n, 6, 6)).clip(0, 255).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((64, 64), Image.Resampling.BICUBIC)) for one in small])


def written(folder: Path, images: NDArray[np.uint8], name: str, pairs: list[str] | None = None) -> EvalSet:
    place = folder / name
    place.mkdir()
    with (place / "index.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "file", "pair", "prompt", "subject"])
        for i, image in enumerate(images):
            Image.fromarray(image).save(place / f"{i}.png")
            pair = pairs[i] if pairs else ""
            table.writerow([f"{name}{i}", f"{i}.png", pair, f"prompt of {pair}" if pair else "", f"{name}{i}"])
    return read_set(place)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EvalSet]:
    folder = tmp_path_factory.mktemp("sets")
    training, fresh = smooth(100, 0), smooth(N * SEEDS, 1)
    pairs = [f"training{i // SEEDS}" for i in range(N * SEEDS)]
    copied = fresh.copy()
    for i in range(COPIES):  # a prompt gives one, of another image than the prompt's, whatever the seed
        copied[i * SEEDS : (i + 1) * SEEDS] = np.roll(training[99 - i], 1, axis=1)
    return {
        "training": written(folder, training, "training"),
        "held_out": written(folder, smooth(N * SEEDS, 2), "held_out"),
        "fresh": written(folder, fresh, "fresh", pairs),
        "copied": written(folder, copied, "copied", pairs),
    }


def run(sets: dict[str, EvalSet], name: str, **options: Any) -> FamilyResult:
    options = {"extractors": [COARSE], "bootstrap": 100, **options}
    return evaluate(sets[name], sets["training"], options.pop("held_out", sets["held_out"]), **options)


@pytest.fixture(scope="module")
def reid() -> Reid:
    config = ReidConfig(block="basic", layers=(1, 1, 1, 1), size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Reid(SiameseNetwork(config), config)


@pytest.fixture(scope="module")
def found(sets: dict[str, EvalSet], reid: Reid) -> FamilyResult:
    return run(sets, "copied", reid=reid)


def test_every_image_is_decoded_once_for_all_spaces(
    sets: dict[str, EvalSet], reid: Reid, found: FamilyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding is most of the time; pixel, aligned and latent spaces each ask for all images, some of them twice."""
    read: Counter[Path] = Counter()
    monkeypatch.setattr(data_sets, "read_with", lambda file, **how: read.update([file]) or read_with(file, **how))
    again = run(sets, "copied", reid=reid)
    assert again.metrics == found.metrics
    files = {item.file for name in ("copied", "training", "held_out") for item in sets[name].items}
    assert set(read) == files
    assert read.total() == len(files) + 1  # the first generated image is also read to learn its size


def test_images_beyond_the_memory_for_them_are_read_again(sets: dict[str, EvalSet]) -> None:
    kept = KeptImages(10 * 64 * 64 + 100)
    limited = replace(sets["training"], kept=kept)
    for size in (64, 32, None):
        for _ in range(2):
            np.testing.assert_array_equal(limited.images(size), sets["training"].images(size))
    assert kept.nbytes == 10 * 64 * 64


def test_copies_are_caught_in_every_space(found: FamilyResult) -> None:
    for space in ("pixel", "aligned", "latent"):
        near = found[f"{space}_near"]
        assert near.settings["p_value"] < 0.02, space
        assert near.value is not None
        assert near.value.value >= COPIES / N
        assert near.value.n == near.settings["n"] == N  # one generation a prompt
        authentic = found[f"{space}_authenticity"].value
        assert authentic is not None
        assert authentic.value <= 1 - COPIES / N
        unseen, generated = found[f"{space}_distance"].references["held-out real"], found[f"{space}_distance"].value
        assert generated is not None
        assert unseen.value.value > generated.value
    flagged = found.details["aligned"]["nearer than any held-out"]
    copies = {f"copied{i * SEEDS + k}": f"training{99 - i}" for i in range(COPIES) for k in range(SEEDS)}
    assert {one["generated"]: one["training"] for one in flagged[: len(copies)]} == copies
    assert found["aligned_distance_min"].value.value < 1e-3  # type: ignore[union-attr]


def test_fresh_images_are_not_caught(sets: dict[str, EvalSet]) -> None:
    result = run(sets, "fresh")
    for space in ("pixel", "aligned", "latent"):
        assert result[f"{space}_near"].settings["p_value"] > 0.1, space


def test_every_number_has_its_n_and_interval(found: FamilyResult) -> None:
    for metric in found.metrics:
        value = metric.value
        assert value is not None, metric.name
        prompts = metric.name.endswith(("prompt", "prompts", "near", "nearer"))
        assert value.n == (N if prompts else N * SEEDS), metric.name
        assert value.low <= value.value <= value.high or metric.name.endswith(("near", "count")), metric.name
    assert found["reid_score"].value.value <= found["reid_score_per_prompt"].value.value  # type: ignore[union-attr]
    assert found["pixel_distance"].value.value >= found["pixel_distance_per_prompt"].value.value  # type: ignore[union-attr]
    assert found["reid_score"].weights
    assert json.loads(as_json([found]))["families"][0]["settings"]["prompts"] == N


def test_own_prompt_is_the_published_codes_and_misses_these_copies(sets: dict[str, EvalSet], reid: Reid) -> None:
    result = run(sets, "copied", own_prompt=True, reid=reid)
    distance = result["pixel_distance_min"].value
    assert distance is not None
    assert distance.value > 15
    assert result.settings["compared with"] == "the training image of the own prompt"
    assert result["pixel_near"].settings["p_value"] < 0.02  # the test stays with the closest
    with pytest.raises(DataError, match="name no image of training"):
        evaluate(sets["held_out"], sets["training"], None, own_prompt=True)


def test_what_is_missing_is_said(sets: dict[str, EvalSet]) -> None:
    result = run(sets, "fresh", extractors=[replace(COARSE, encode=absent)], held_out=None)
    assert result["latent_distance"].reason == "its weights are not here"
    assert result["latent_distance"].value is None
    assert "xgem train reid" in result["reid_score"].reason
    assert "no held-out" in result["pixel_near"].reason
    assert result["pixel_distance"].value is not None
    assert run(sets, "fresh", extractors=(), held_out=None)["latent_near"].reason == "no feature extractor was given"


def test_table_in_the_benchmarks_columns(found: FamilyResult) -> None:
    rows = list(csv.DictReader(io.StringIO(found.tables["privacy_metrics.csv"])))
    assert list(rows[0])[:4] == ["Real Path", "Prompt", "Mean_reid_scores", "Max_reid_scores"]
    assert len(rows) == N
    assert rows[0]["Prompt"] == "prompt of training0"
    assert Path(rows[0]["Real Path"]).name == "99.png"
    assert float(rows[-1]["Min_pixel_distance"]) < float(rows[-1]["Mean_pixel_distance"])
    minimum = np.mean([float(row["Min_latent_distance"]) for row in rows])
    assert minimum == pytest.approx(found["latent_distance_per_prompt"].value.value)  # type: ignore[union-attr]


def test_the_worst_lie_beside_their_training_image(found: FamilyResult, sets: dict[str, EvalSet]) -> None:
    captions = [example.caption for example in found.examples]
    assert len(captions) == COPIES
    assert {caption.split(" ")[0] for caption in captions} <= {f"copied{i}" for i in range(COPIES * SEEDS)}
    generated, training = found.examples[0].images
    assert np.abs(np.roll(training, 1, axis=1).astype(int) - generated).max() == 0
    assert all(png.startswith(b"\x89PNG") for png in found.plots.values())
    assert len(found.plots) == 3


def test_features_are_cached_by_images(sets: dict[str, EvalSet], tmp_path: Path) -> None:
    one = run(sets, "fresh", cache=tmp_path)
    two = run(sets, "fresh", extractors=[replace(COARSE, encode=absent)], cache=tmp_path)
    assert two["latent_distance"] == one["latent_distance"]


def test_too_few_for_a_test_are_said(sets: dict[str, EvalSet]) -> None:
    result = run(sets, "fresh", held_out=sets["held_out"].subset(range(5), "few"))
    assert "at least 8" in result["pixel_near"].reason
    assert result["pixel_distance"].value is not None


def test_small_chunks_change_nothing(
    sets: dict[str, EvalSet], found: FamilyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xgem.eval.closest._MOST_BYTES", 30 * 64**2)
    result = run(sets, "copied", own_prompt=True)
    assert result["pixel_authenticity"] == found["pixel_authenticity"]
    assert result["aligned_near"] == found["aligned_near"]


def test_held_out_images_must_be_unseen(sets: dict[str, EvalSet]) -> None:
    with pytest.raises(DataError, match="of its patients are in training too"):
        run(sets, "fresh", held_out=sets["training"].subset(range(10), "held"))


def test_images_of_other_sizes_are_compared_at_the_generations_size(sets: dict[str, EvalSet], tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def watched(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(images.shape[1:])
        return coarse(images)

    large = np.stack([np.kron(one, np.ones((2, 2), np.uint8)) for one in sets["training"].images()])
    training = written(tmp_path, large, "training")
    result = evaluate(
        sets["fresh"], training, sets["held_out"], extractors=[replace(COARSE, encode=watched)], bootstrap=100
    )
    assert set(seen) == {(64, 64)}
    for name in ("pixel_distance", "aligned_near", "latent_distance", "latent_near"):
        assert result[name] == run(sets, "fresh")[name], name
