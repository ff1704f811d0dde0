"""The family of fidelity on synthetic images whose differences are known."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from xgem.data.sets import EvalSet, Item
from xgem.eval.diversity import of_one_prompt, similarity_of_seeds
from xgem.eval.families.fidelity import _frequent_first, evaluate
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.report import as_csv, as_html, as_json, as_markdown
from xgem.eval.spaces import Settings
from xgem.judges.extractors import Extractor, Images
from xgem.metrics import fidelity
from xgem.metrics.bootstrap import Estimate
from xgem.metrics.similarity import pairwise
from xgem.types import DataError, InputError

SIDE = 40
QUICK = Settings(bootstrap=50, frechet_draws=8, subsets=5, subset_size=20)
WORDS = ("heart", "effusion", "clear")


def moments(images: Images) -> NDArray[np.float64]:
    quarters = images.reshape(len(images), 2, SIDE // 2, 2, SIDE // 2).astype(np.float64)
    return quarters.mean(axis=(2, 4)).reshape(len(images), 4) / 255


def words(texts: Any) -> NDArray[np.float64]:
    """Effusions are bright, clear lungs dark: a space in which the prompts below fit their images."""
    return np.array([[1.0 + 3 * ("effusion" in text), 1, 1, 1 + ("heart" in text)] for text in texts])


def space(name: str = "rad-dino", **changes: Any) -> Extractor:
    return replace(Extractor(name, "0" * 16, 4, SIDE, "quarters' means", moments), **changes)


def image_set(folder: Path, name: str, n: int, *, seed: int, shift: float = 0.0, **common: Any) -> EvalSet:
    """Every third image has an effusion: its upper left quarter is bright."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir()
    items: list[Item] = []
    for i in range(n):
        levels = rng.normal(90 + shift, 15, (2, 2))
        levels[0, 0] += 90 * (i % 3 == 1)
        pixels = np.kron(levels, np.ones((SIDE // 2, SIDE // 2))) + rng.normal(0, 8, (SIDE, SIDE))
        file = folder / name / f"{i:03d}.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file)
        labels = {"Pleural Effusion": float(i % 3 == 1), "Edema": -1.0, "Fracture": float(i == 0)}
        text = f"{WORDS[i % 3]} {i}"
        items.append(Item(f"{i:03d}", file, prompt=text, report=text, labels=labels, **common))
    return EvalSet(name, tuple(items))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EvalSet]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        "real": image_set(folder, "real", 90, seed=0),
        "training": image_set(folder, "training", 120, seed=1),
        "good": image_set(folder, "good", 60, seed=2),
        "bad": image_set(folder, "bad", 60, seed=3, shift=60),
    }


@pytest.fixture(scope="module")
def good(sets: dict[str, EvalSet]) -> FamilyResult:
    generated = replace(sets["good"], items=tuple(replace(item, labels={}) for item in sets["good"].items))
    spaces = [space(encode_texts=words), space("inception-v3")]
    return evaluate(
        sets["real"], generated, extractors=spaces, training=sets["training"], settings=QUICK, note="synthetic"
    )


def test_every_number_has_n_interval_space_and_yardstick(good: FamilyResult, sets: dict[str, EvalSet]) -> None:
    for one in good.metrics:
        if one.name in {"ssim", "ms_ssim"} or one.of == "Fracture":
            continue
        assert one.value is not None, one
        assert one.extractor in {"rad-dino", "inception-v3"}
        assert one.weights
        assert one.value.low <= one.value.value <= one.value.high, one
        assert set(one.references) >= ({"floor"} if one.name in {"fid", "kid"} else {"ceiling"})
        assert one.settings["seed"] == 0
    whole, effusion = (good.find("fid", of=of, extractor="rad-dino") for of in ("", "Pleural Effusion"))
    assert whole.value
    assert effusion.value
    assert (whole.value.n, effusion.value.n) == (60, 20)  # generations have the labels of what they answer to
    assert effusion.references["floor"].value.n == 20
    assert whole.settings["yardstick"] == "training set"
    assert good.settings["real"] == {"name": "real", "n": 90, "sha256": sets["real"].sha256}
    assert good.details["images_per_finding"]["Pleural Effusion"] == {"real": 30, "generated": 20}


def test_values_are_those_of_the_functions(good: FamilyResult, sets: dict[str, EvalSet]) -> None:
    real, generated = (moments(sets[name].images()).astype(np.float32) for name in ("real", "good"))
    assert good.find("fid", extractor="rad-dino").value == fidelity.frechet_distance(real, generated, draws=8)
    assert good.find("recall", extractor="rad-dino").value == fidelity.prdc(real, generated, draws=50).recall
    bright, brighter = real[1::3], generated[1::3]
    assert (
        good.find("coverage", of="Pleural Effusion", extractor="rad-dino").value
        == fidelity.prdc(bright, brighter, draws=50).coverage
    )


def test_uncertain_findings_are_none_and_small_ones_give_reasons(good: FamilyResult) -> None:
    assert not any(one.of == "Edema" for one in good.metrics)
    fracture = {one.name: one for one in good.metrics if one.of == "Fracture"}
    assert fracture["fid"].value is None
    assert "at least 2" in fracture["fid"].reason
    assert "at least 6" in fracture["recall"].reason


def test_good_is_near_the_floor_and_bad_is_not(good: FamilyResult, sets: dict[str, EvalSet]) -> None:
    bad = evaluate(sets["real"], sets["bad"], extractors=[space()], settings=QUICK, per_finding=False)
    near = good.find("fid", extractor="rad-dino").value
    assert near
    assert bad["fid"].value
    assert bad["kid"].value
    assert near.value < 0.2 * bad["fid"].value.low
    assert bad["fid"].references["floor"].value.n == 45
    assert bad["fid"].settings["yardstick"] == "halves of the real set"
    assert bad["kid"].value.low > 0
    assert bad["precision"].value
    assert bad["precision"].value.value < 0.3
    assert not any(one.of for one in bad.metrics)
    # Farthest from any real image come first, each beside a real one
    assert len(bad.examples) == 8
    assert all(len(one.images) == 2 and one.images[0].shape == (SIDE, SIDE) for one in bad.examples)
    brightest = bad.examples[0].images
    assert brightest[0].mean() > brightest[1].mean()


def test_alignment_beats_shuffled_prompts(good: FamilyResult) -> None:
    found = good["alignment"]
    assert found.value
    assert found.value.low > found.references["shuffled"].value.high
    assert found.references["ceiling"].value.n == 90
    assert good["alignment/Pleural Effusion"].value
    assert not any(one.name == "alignment" and one.extractor == "inception-v3" for one in good.metrics)


def test_tables_have_chexgenbenchs_columns(good: FamilyResult) -> None:
    rows = list(csv.DictReader(io.StringIO(good.tables["image_generation_metrics.csv"])))
    assert list(rows[0]) == [
        "FID", "FID (RadDino)", "KID", "KID (RadDino)", "Precision", "Recall", "Density", "Coverage", "Extra Info",
    ]  # fmt: skip
    distance = good.find("fid", extractor="rad-dino").value
    assert distance
    assert float(rows[0]["FID (RadDino)"]) == distance.value
    assert rows[0]["Extra Info"] == "synthetic"
    conditional = list(csv.DictReader(io.StringIO(good.tables["conditional_image_generation_metrics.csv"])))
    by_finding = {row["Pathology"]: row for row in conditional}
    assert by_finding["Fracture"]["FID"] == ""
    assert float(by_finding["Pleural Effusion"]["Coverage"]) <= 1
    assert "img_text_alignment.csv" not in good.tables  # that is BioViL-T's alone


def test_the_record_can_be_written(good: FamilyResult) -> None:
    assert '"not_computed"' in as_json([good])
    assert "| FID (Frechet distance) |" in as_markdown([good])
    assert "fidelity,,fid,Pleural Effusion,rad-dino," in as_csv([good])
    assert all(png.startswith(b"\x89PNG") for png in good.plots.values())
    assert {title.partition(" (")[0] for title in good.plots} == {
        "Precision, recall, density, coverage",
        "Frechet distance per finding",
        "Real and generated images, t-SNE",
    }
    assert "t-SNE" in as_html([good])


def test_missing_weights_are_reasons_in_the_record(sets: dict[str, EvalSet], tmp_path: Path) -> None:
    missing = f"rad-dino={tmp_path / 'nowhere'}"
    found = evaluate(sets["real"], sets["good"], extractors=[missing, space("x")], settings=QUICK, per_finding=False)
    kept = {(one.name, one.extractor): one for one in found.metrics}
    assert kept["coverage", "rad-dino"].value is None
    assert "nowhere" in kept["coverage", "rad-dino"].reason
    assert kept["coverage", "x"].value is not None
    assert found.tables == {}
    assert ("alignment", "rad-dino") not in kept
    both = [missing, f"biovil-t={tmp_path / 'nowhere'}"]
    alone = evaluate(sets["real"], sets["good"], extractors=both, settings=QUICK)
    assert "nowhere" in alone["alignment"].reason
    assert not alone.plots
    assert not alone.examples


def test_refusals(sets: dict[str, EvalSet]) -> None:
    with pytest.raises(DataError, match="needs at least 6 of each"):
        evaluate(sets["real"], sets["good"].subset(range(5)), extractors=[space()])
    with pytest.raises(InputError, match="no feature space"):
        evaluate(sets["real"], sets["good"], extractors=[])
    with pytest.raises(InputError, match="expected one of"):
        evaluate(sets["real"], sets["good"], extractors=["vgg"])


def test_a_second_run_takes_features_from_the_cache(sets: dict[str, EvalSet], tmp_path: Path) -> None:
    def counted(images: Images) -> NDArray[np.float64]:
        seen.append(len(images))
        return moments(images)

    seen: list[int] = []
    one = space(encode=counted)
    first = evaluate(sets["real"], sets["good"], extractors=[one], settings=QUICK, cache=tmp_path)
    assert sum(seen) == 150
    again = evaluate(sets["real"], sets["good"], extractors=[one], settings=QUICK, cache=tmp_path)
    assert sum(seen) == 150
    assert first.metrics == again.metrics


def seeded(folder: Path, noise: float, side: int) -> EvalSet:
    """Five prompts, four samples each, which differ by noise."""
    rng = np.random.default_rng(9)
    folder.mkdir()
    items: list[Item] = []
    for prompt in range(5):
        base = rng.uniform(60, 200, (side, side))
        for sample in range(4):
            file = folder / f"{prompt}_{sample}.png"
            pixels = np.clip(base + rng.normal(0, noise, base.shape), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(file)
            items.append(Item(f"{prompt}_{sample}", file, pair=str(prompt)))
    return EvalSet(folder.name, tuple(items))


def test_similarity_of_a_prompts_samples(tmp_path: Path) -> None:
    near, far = seeded(tmp_path / "near", 5, 176), seeded(tmp_path / "far", 60, 176)
    assert of_one_prompt(near) == [list(range(4 * k, 4 * k + 4)) for k in range(5)]
    found = {name: similarity_of_seeds(near, items, draws=50) for name, items in (("near", near), ("far", far))}
    for k in range(2):
        one, other = found["near"][k], found["far"][k]
        assert one.value
        assert other.value
        assert other.value.high < one.value.low
        assert one.value.n == 5
        assert one.references["different real images"].value.value < one.value.value
    images = near.images()[:4] / 255
    four = similarity_of_seeds(near, near.subset(range(4)), draws=50)
    assert four[0].value
    assert four[0].value.value == pytest.approx(pairwise(images))
    columns = np.arange(20) < 8  # the first two prompts' samples
    by_finding = {(one.name, one.of): one for one in similarity_of_seeds(near, near, {"Edema": columns}, draws=50)}
    assert by_finding["ssim", "Edema"].value == similarity_of_seeds(near, near.subset(range(8)), draws=50)[0].value
    assert by_finding["ssim", ""].value == found["near"][0].value
    limited = similarity_of_seeds(near, near, draws=50, prompts=2)
    assert limited[0].value
    assert limited[0].value.n == 2


def test_similarity_needs_samples_and_size(tmp_path: Path, sets: dict[str, EvalSet]) -> None:
    assert "several samples" in similarity_of_seeds(sets["real"], sets["good"])[0].reason
    small = seeded(tmp_path / "small", 5, SIDE)
    one, many = similarity_of_seeds(small, small, draws=50)
    assert one.value is not None
    assert many.value is None
    assert "176" in many.reason
    by_prompt = EvalSet("p", tuple(replace(item, pair="", prompt=item.pair) for item in small.items))
    assert of_one_prompt(by_prompt) == of_one_prompt(small)


def test_samples_and_real_images_are_read_at_one_size(sets: dict[str, EvalSet], tmp_path: Path) -> None:
    real = sets["real"]
    large = replace(real, items=tuple(replace(item, file=_enlarged(item.file, tmp_path)) for item in real.items))
    items = tuple(replace(item, prompt=f"{int(item.id) // 2}") for item in sets["good"].items)
    generated = replace(sets["good"], items=items)
    found, expected = (similarity_of_seeds(one, generated, draws=20)[0] for one in (large, real))
    between = [one.references["different real images"].value.value for one in (found, expected)]
    assert between[0] == pytest.approx(between[1], abs=1e-6)
    assert found.value == expected.value


def _enlarged(file: Path | None, folder: Path) -> Path:
    assert file is not None
    with Image.open(file) as image:
        image.resize((3 * SIDE, 3 * SIDE), Image.Resampling.NEAREST).save(folder / file.name)
    return folder / file.name


def test_frequent_findings_with_low_distances_have_a_rank_correlation_of_one() -> None:
    """As CheXGenBench's Table 10 asks: do frequent findings have low distances?"""
    from types import SimpleNamespace

    spaces: Any = [SimpleNamespace(extractor=SimpleNamespace(name="x"))]
    counts = {"Edema": (10, 5), "Fracture": (40, 5), "Pneumonia": (20, 5), "Pneumothorax": (4, 5)}
    for sign, rho in ((1, 1.0), (-1, -1.0)):
        metrics = [
            Metric("fid", Estimate(100 - sign * n, 0, 200, 5), of=of, extractor="x") for of, (n, _) in counts.items()
        ]
        found = _frequent_first(metrics, spaces, counts)["x"]
        assert (found["rho"], found["findings"]) == (pytest.approx(rho), 4)
    assert _frequent_first(metrics[:2], spaces, counts) == {}
