"""How the given radiographs are read is in the metadata where it was told, and a replay reads them so again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import dataset
from tests.pipeline.conftest import QUICK, radiograph, same
from xgem.cli import main
from xgem.configs.reading import ReadOptions
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.modalities import get_modality
from xgem.pipeline.cases import reading_of
from xgem.pipeline.conditioning import read_prompts
from xgem.pipeline.generation import read_metadata
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.replay import replay
from xgem.types import InputError


@pytest.fixture
def frontal(tmp_path: Path) -> Path:
    """Values that fill 3 of 16 bits."""
    Image.fromarray(np.uint16(radiograph() * 60 + 4000)).save(tmp_path / "frontal.png")
    return tmp_path / "frontal.png"


@pytest.mark.parametrize("told", [{"rescale": "minmax"}, {"invert": True, "voi": "window"}])
def test_a_replay_reads_as_the_request_did(
    pipeline: XgemPipeline, frontal: Path, tmp_path: Path, told: dict[str, Any]
) -> None:
    plain = pipeline({"frontal": frontal}, "lateral", seed=1, **QUICK)
    assert not {"voi", "rescale", "invert"} & plain.metadata.keys()
    other = pipeline({"frontal": frontal}, "lateral", seed=1, **QUICK, **told)
    assert not same(plain.lateral[0], other.lateral[0])
    assert {name: other.metadata[name] for name in told} == told
    (file,) = other.save(tmp_path / "out")
    again = replay(file, model=pipeline, inputs={"frontal": frontal}, progress=False)
    assert again.identical
    assert {name: again.generation.metadata[name] for name in told} == told


def test_the_image_to_start_from_is_read_so_too(pipeline: XgemPipeline, frontal: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "seed": 1, "image": {"frontal": frontal}, "strength": 0.5}
    plain, other = (pipeline({}, "frontal", **options, rescale=rescale) for rescale in (None, "minmax"))
    assert not same(plain.frontal[0], other.frontal[0])
    (file,) = other.save(tmp_path / "out")
    assert replay(file, model=pipeline, image={"frontal": frontal}, progress=False).identical


def test_a_reading_that_is_unknown(pipeline: XgemPipeline, frontal: Path) -> None:
    with pytest.raises(InputError, match=r"rescale 'max' is not known, expected .*, 'minmax' or 'percentile'"):
        pipeline({"frontal": frontal}, "lateral", rescale="max", **QUICK)  # type: ignore[arg-type]


def manifest_of(folder: Path, *readings: ReadOptions) -> Path:
    rows: list[Row] = []
    for number, reading in enumerate(readings):
        Image.fromarray(np.uint8(radiograph(number) * 255)).save(folder / f"{number}.png")
        names = {"study": f"s{number}", "subject": f"p{number}", "file": f"{number}.png"}
        rows.append(Row(split="val", view="frontal", reading=reading, **names))  # type: ignore[arg-type]
    Manifest(tuple(rows), folder).write(folder / "m.jsonl")
    return folder / "m.jsonl"


def test_cases_of_a_manifest_are_read_as_it_says(checkpoint: Path, tmp_path: Path) -> None:
    place = manifest_of(tmp_path, ReadOptions(invert=True), ReadOptions(invert=True))
    command = ["generate", "--frontal", str(place), "--outputs", "lateral", "--model", str(checkpoint), "--seed", "1"]
    command += ["--num-inference-steps", "2", "--no-progress"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert read_metadata(tmp_path / "out" / "s0" / "lateral.png")["invert"] is True
    assert main([*command, "--out", str(tmp_path / "told"), "--no-invert"]) == 0
    assert read_metadata(tmp_path / "told" / "s0" / "lateral.png")["invert"] is False


def test_cases_that_are_read_in_different_ways_are_refused(tmp_path: Path) -> None:
    place = manifest_of(tmp_path, ReadOptions(invert=True), ReadOptions())
    with pytest.raises(InputError, match="read in different ways"):
        reading_of({"frontal": [place]})
    assert reading_of({"report": [place]}) == ReadOptions()


@pytest.mark.parametrize("shape", [(96, 160), (128, 128)])
def test_annotations_follow_an_image_of_pixels_that_are_not_square(
    chexgen_checkpoint: Path, tmp_path: Path, shape: tuple[int, int]
) -> None:
    """Masks and boxes on the stored pixels of a DICOM file to start from lie where it shows them."""
    preset = XgemPipeline.from_pretrained(chexgen_checkpoint, device="cpu").preset
    pixels = np.zeros(shape, np.uint8)
    pixels[30:60, 20:90] = 255
    file = tmp_path / "start.dcm"
    dataset(pixels, bits=8, PixelSpacing=[0.2, 0.1]).save_as(file, enforce_file_format=True)
    mask = {"left lung": pixels > 0}
    height, width = shape
    boxes = [{"label": "mass", "bbox": [20 / width, 30 / height, 70 / width, 30 / height]}]
    coco = {
        "images": [{"id": 1, "width": width, "height": height}],
        "categories": [{"id": 1, "name": "mass"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [20, 30, 70, 30]}],
    }
    shown = get_modality("frontal").read(file, preset).value[0].numpy() >= 0
    for given in (boxes, coco):
        read = read_prompts(preset, {"mask": mask, "boxes": given}, start={"frontal": file})
        found = read["mask"].value.masks["left lung"]
        assert (found & shown).sum() / (found | shown).sum() > 0.9
        (box,) = read["boxes"].value.boxes
        rows, columns = (np.flatnonzero(shown.any(axis=1 - axis)) for axis in (0, 1))
        side = shown.shape[0]
        np.testing.assert_allclose([box.y * side, box.x * side], [rows[0], columns[0]], atol=1)
        np.testing.assert_allclose([box.h * side, box.w * side], [len(rows), len(columns)], atol=1.5)
    # What is on the model's grid already, as a replay finds it beside the image, stays.
    square = {"left lung": found}
    kept = read_prompts(preset, {"mask": square}, start={"frontal": file})["mask"].value.masks["left lung"]
    np.testing.assert_array_equal(kept, found)


def test_a_control_by_masks_on_such_an_image_is_replayed(chexgen_checkpoint: Path, tmp_path: Path) -> None:
    pipeline = XgemPipeline.from_pretrained(chexgen_checkpoint, device="cpu")
    file = tmp_path / "start.dcm"
    stored = (radiograph(size=100) * 255).astype(np.uint8)
    dataset(stored, bits=8, PixelSpacing=[0.2, 0.1]).save_as(file, enforce_file_format=True)
    Image.fromarray(np.uint8(stored > 128) * 255).save(tmp_path / "device.png")
    given: dict[str, Any] = {"report": "Normal.", "mask": {"device": tmp_path / "device.png"}}
    made = pipeline(given, "frontal", image={"frontal": file}, seed=1, **QUICK)
    image = next(path for path in made.save(tmp_path / "out") if path.name == "frontal.png")
    for inputs in ({}, {"mask": given["mask"]}):
        again = replay(image, model=pipeline, inputs=inputs, image={"frontal": file}, progress=False)
        assert again.identical
        np.testing.assert_array_equal(
            again.generation.annotations["mask"].masks["device"], made.annotations["mask"].masks["device"]
        )
