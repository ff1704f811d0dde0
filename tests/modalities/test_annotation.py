"""The modalities that steer: what they keep of a user's value, and that it can be written as training data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.configs.preset import load_preset
from xgem.data.annotations import Annotation, Box
from xgem.modalities import get_modality
from xgem.modalities.annotation import _warn_of_race
from xgem.pipeline.request import check_modality

MASK = np.zeros((64, 48), bool)
MASK[8:40, 12:36] = True
BOXES = [{"label": "mass", "bbox": [0.1, 0.2, 0.3, 0.4]}]


def read(name: str, value: Any, preset: Any) -> Any:
    return get_modality(name).read(value, preset)


@pytest.mark.parametrize("form", ["png", "npy", "array", "label file"])
def test_a_mask_is_known_by_its_content_whatever_the_file(tmp_path: Path, debug_preset: Any, form: str):
    path = tmp_path / "device.png"
    value: Any = {"device": MASK}
    if form == "png":
        Image.fromarray(MASK).save(path)
        value = path
    elif form == "npy":
        np.save(tmp_path / "device.npy", MASK.astype(np.uint8))
        value = tmp_path / "device.npy"
    elif form == "label file":
        value = get_modality("mask").write(Annotation({"device": MASK}), tmp_path, "a", {})
    prompt = read("mask", value, debug_preset)
    assert prompt.sha256 == Annotation({"device": MASK}).sha256
    assert (
        prompt.origin == {"png": "device.png", "npy": "device.npy", "array": "array", "label file": "a.mask.png"}[form]
    )
    assert prompt.value.masks["device"].shape == (32, 32)
    assert prompt.notes == ("mask resized from 64 x 48 to 32 x 32 (padded to a square)",)


def test_a_mask_on_the_grid_is_kept_without_a_note(debug_preset: Any):
    mask = MASK[:32, :32]
    prompt = read("mask", {"heart": mask, "device": mask.copy()}, debug_preset)
    assert prompt.notes == ()
    assert np.array_equal(prompt.value.masks["device"], mask)


def test_notes_say_how_a_mask_became_square(debug_preset: Any):
    stretched = debug_preset.model_copy(update={"transform": debug_preset.transform.model_copy(update={"pad": False})})
    assert read("mask", {"heart": MASK}, stretched).notes[0].endswith("to 32 x 32 (stretched to a square)")
    assert read("mask", {"heart": MASK[:40, :40]}, debug_preset).notes == ("mask resized from 40 x 40 to 32 x 32",)


def test_files_of_a_mapping_are_named_without_their_folder(tmp_path: Path, debug_preset: Any):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(MASK).save(path)
    assert read("mask", dict(zip(["heart", "device"], paths, strict=True)), debug_preset).origin == "a.png, b.png"


def test_boxes_are_known_by_their_content(tmp_path: Path, debug_preset: Any):
    (tmp_path / "boxes.json").write_text(json.dumps(BOXES))
    given, file = read("boxes", BOXES, debug_preset), read("boxes", tmp_path / "boxes.json", debug_preset)
    assert given.sha256 == file.sha256
    assert (given.origin, file.origin) == ("text", "boxes.json")
    assert given.value.boxes == (Box("mass", 0.1, 0.2, 0.3, 0.4),)


def test_severity_is_drawn_and_said(debug_preset: Any):
    severity = get_modality("severity")
    prompt = severity.read("12", debug_preset)
    assert prompt.sha256 == severity.read(12.0, debug_preset).sha256
    annotation = severity.annotation(prompt.value)
    assert annotation is not None
    assert annotation.severity == 12
    assert severity.preface(prompt.value) == {"severity": 12}


def test_demographics_are_said_only(debug_preset: Any):
    demographics = get_modality("demographics")
    prompt = demographics.read("sex:Female, age:71", debug_preset)
    assert demographics.preface(prompt.value) == {"sex": "F", "age": 71}
    assert demographics.annotation(prompt.value) is None
    assert prompt.sha256 == demographics.read({"age": 71.0, "sex": "f"}, debug_preset).sha256


def test_parts_of_one_image_meet_on_the_grid(debug_preset: Any):
    mask, severity = read("mask", {"device": MASK}, debug_preset), read("severity", 3, debug_preset)
    whole = severity.value.united(mask.value)
    assert (list(whole.masks), whole.severity, whole.size) == (["device"], 3, (32, 32))


def test_written_masks_and_boxes_read_back_on_the_grid(
    tmp_path: Path, debug_preset: Any, caplog: pytest.LogCaptureFixture
):
    for name, value in {"mask": {"device": MASK}, "boxes": BOXES}.items():
        modality = get_modality(name)
        prompt = modality.read(value, debug_preset)
        path = modality.write(prompt.value, tmp_path, "frontal-001", {"seed": 1})
        assert path == tmp_path / f"frontal-001{modality.suffix}"
        again = modality.read(path, debug_preset)
        assert again.sha256 == prompt.value.sha256
        assert again.notes == ()
    assert {path.name for path in tmp_path.iterdir()} == {"frontal-001.mask.png", "frontal-001.boxes.json"}
    made = json.loads((tmp_path / "frontal-001.boxes.json").read_text())
    assert made["images"] == [{"id": 1, "file_name": "frontal-001.png", "width": 32, "height": 32}]
    assert not caplog.records


def test_masks_that_hide_one_another_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        get_modality("mask").write(Annotation({"device": MASK, "left lung": MASK | True}), tmp_path, "a", {})
    assert "a.mask.png: device hides a part of left lung" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("severity", 3), ("demographics", "sex:F")])
def test_what_is_said_writes_no_file(tmp_path: Path, debug_preset: Any, name: str, value: Any):
    modality = get_modality(name)
    assert modality.write(modality.read(value, debug_preset).value, tmp_path, "a", {}) is None
    assert not list(tmp_path.iterdir())


def test_it_is_a_known_name_for_every_preset():
    from xgem.modalities import MODALITIES

    for name in ("mask", "boxes", "severity", "demographics"):
        check_modality(name, list(MODALITIES))
        assert not get_modality(name).is_output


def test_a_race_is_warned_of_once_where_a_shipped_model_is_told_it(
    debug_preset: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """No shipped model was trained on data with it; of a user's own model nothing is known."""
    _warn_of_race.cache_clear()
    shipped = load_preset("chexgen-small")
    for value, preset in (("race:Asian", debug_preset), ("sex:F, age:71", shipped)):
        assert read("demographics", value, preset).value
    assert not caplog.records
    for _ in range(3):
        assert read("demographics", "sex:F, race:Asian", shipped).value == {"sex": "F", "race": "Asian"}
    (record,) = caplog.records
    assert record.getMessage().startswith("race: chexgen-small was trained on data without it")
