"""Images squashed to squares at their source: read in their true shape wherever a manifest says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from pydantic import ValidationError

from xgem.configs.components import TransformConfig
from xgem.configs.preset import load_preset
from xgem.configs.reading import ReadOptions
from xgem.data.loading import load_dataset
from xgem.data.manifest import Manifest, Row
from xgem.data.prepare import prepare_images
from xgem.data.set_files import read_set
from xgem.data.study import read_study
from xgem.data.transforms import SquashedFile, read_square, read_with
from xgem.modalities import get_modality
from xgem.types import ManifestError

CONFIG = TransformConfig(size=64)
TALL = 1.25  # the source was 1.25 times as high as wide


@pytest.fixture
def squashed(tmp_path: Path) -> Manifest:
    """A square file of a bright disc that was a tall ellipse's squash: study a with its shape, b without."""
    y, x = np.mgrid[-1:1:80j, -1:1:80j]
    disc = np.where((x**2 + (y * TALL) ** 2) < 0.36, 230, 20).astype(np.uint8)  # round once pixels are 1.25 high
    for name in ("a0", "a1", "b0"):
        Image.fromarray(disc).save(tmp_path / f"{name}.png")
    mask = Image.fromarray(disc > 100)
    mask.save(tmp_path / "mask.png")
    common: dict[str, Any] = {"subject": "p", "split": "train"}
    told: dict[str, Any] = {"reading": ReadOptions(pixel_aspect=TALL), "masks": {"cardiomediastinum": ("mask.png",)}}
    other: dict[str, Any] = {**told, "reading": ReadOptions(pixel_aspect=0.8)}
    rows = (
        Row(study="a", view="frontal", file="a0.png", **common, **told),
        Row(study="a", view="lateral", file="a1.png", **common, **other),
        Row(study="b", view="frontal", file="b0.png", **common),
    )
    return Manifest(rows, tmp_path)


def shape(bright: Any) -> float:
    """Height of the bright part divided by its width."""
    rows, columns = np.nonzero(bright)
    return float((np.ptp(rows) + 1) / (np.ptp(columns) + 1))


def test_each_image_has_its_own_and_old_manifests_stay_as_they_were(squashed: Manifest, tmp_path: Path) -> None:
    squashed.check()
    for name in ("m.parquet", "m.jsonl"):
        squashed.write(tmp_path / name)
        assert Manifest.read(tmp_path / name) == squashed
    assert parquet.read_schema(tmp_path / "m.parquet").metadata[b"xgem_manifest"] == b"4"
    study = squashed.studies()[0]
    assert study.reading == ReadOptions()
    files = {view: images[0] for view, images in study.images.items()}
    assert study.reading_of(files["frontal"]) == ReadOptions(pixel_aspect=TALL)
    assert study.reading_of(files["lateral"]) == ReadOptions(pixel_aspect=0.8)
    assert squashed.studies()[1].source_of(Path("b0.png")) == Path("b0.png")
    assert squashed.read_as(ReadOptions(invert=True)).rows[0].reading == ReadOptions(invert=True, pixel_aspect=TALL)
    before = squashed.rows[2].model_copy(update={"reading": ReadOptions(invert=True)})
    Manifest((before,), tmp_path).write(tmp_path / "old.parquet")
    schema = parquet.read_schema(tmp_path / "old.parquet")
    assert schema.metadata[b"xgem_manifest"] == b"3"
    assert [field.name for field in schema.field("reading").type] == ["voi", "rescale", "invert", "allow_any"]
    other = squashed.rows[1].model_copy(update={"reading": ReadOptions(pixel_aspect=0.8, invert=True)})
    with pytest.raises(ManifestError, match=r"differ.* in reading"):
        Manifest((squashed.rows[0], other), tmp_path).check()


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_what_cannot_be_an_aspect_is_refused(bad: float) -> None:
    with pytest.raises(ValidationError, match="pixel_aspect"):
        ReadOptions(pixel_aspect=bad)


def test_the_disc_is_round_again_for_all_that_read_the_manifest(squashed: Manifest, tmp_path: Path) -> None:
    squashed.write(tmp_path / "m.jsonl")
    images = prepare_images(squashed, "train", CONFIG, tmp_path / "cache", progress=False)
    made = {
        (study.id, view): images.values[images.rows(number, study, view)[0]].numpy()
        for number, study in enumerate(squashed.studies("train"))
        for view in study.images
    }
    assert shape(made["a", "frontal"] > 128) == pytest.approx(1, abs=0.06)
    assert shape(made["b", "frontal"] > 128) == pytest.approx(1 / TALL, abs=0.06)
    assert shape(made["a", "lateral"] > 128) == pytest.approx(0.8 / TALL, abs=0.06)
    padded = made["a", "frontal"]
    assert not padded[:, :5].any()  # the true shape is tall: black on both sides
    assert not padded[:, -5:].any()
    loaded = load_dataset(tmp_path / "m.jsonl", size=64)
    assert shape(loaded[0]["image"][0].numpy() > 0.5) == pytest.approx(1, abs=0.06)
    item, plain = read_set(tmp_path / "m.jsonl", pad=True).items
    assert item.reading.pixel_aspect == TALL
    assert plain.reading == ReadOptions()
    annotation = read_study(squashed.studies()[0], CONFIG)
    assert shape(annotation.masks["cardiomediastinum"]) == pytest.approx(1, abs=0.06)
    overlap = annotation.masks["cardiomediastinum"] & (padded > 128)
    assert overlap.sum() > 0.95 * (padded > 128).sum()


def test_prompts_of_a_study_are_read_alike_and_say_so(squashed: Manifest) -> None:
    preset = load_preset("debug").model_copy(update={"transform": CONFIG})
    study, modality = squashed.studies()[0], get_modality("frontal")
    value = modality.of_study(study, ())
    assert isinstance(value, SquashedFile)
    prompt = modality.read(value, preset)
    expected = read_square(study.images["frontal"][0], CONFIG, study.reading_of(study.images["frontal"][0]))
    assert np.array_equal(prompt.value[0].numpy(), expected)
    assert prompt.pixel_aspect == TALL
    plain = modality.read(study.images["frontal"][0], preset)
    assert plain.pixel_aspect is None
    assert plain.sha256 == prompt.sha256
    assert not np.array_equal(plain.value.numpy(), prompt.value.numpy())
    assert Path(value) == study.images["frontal"][0]


def test_what_a_file_states_counts_before_what_a_manifest_says(write_dicom: Any, chest: Any) -> None:
    path = write_dicom(chest(64, 64), PixelSpacing=["0.2", "0.1"])
    assert read_with(path, reading=ReadOptions(pixel_aspect=3.0)).aspect == read_with(path).aspect == 2


def test_hashes_of_sets_follow_it(squashed: Manifest, tmp_path: Path) -> None:
    squashed.write(tmp_path / "m.jsonl")
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert record["reading"] == {"pixel_aspect": TALL}
    record["reading"] = {"pixel_aspect": 1.3}
    (tmp_path / "other.jsonl").write_text("\n".join([json.dumps(record), *lines[1:]]))
    first, second = (read_set(tmp_path / name, pad=True, name="x") for name in ("m.jsonl", "other.jsonl"))
    assert first.sha256 != second.sha256
