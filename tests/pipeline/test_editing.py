"""Editing a part of an image: the rest keeps its pixels, and what may change follows the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipeline.conftest import QUICK, same
from xgem.pipeline.editing import latent_area, read_areas
from xgem.pipeline.generation import read_metadata
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.replay import replay
from xgem.types import InputError


@pytest.fixture
def start(pipeline: XgemPipeline) -> Image.Image:
    return pipeline({}, "frontal", seed=5, **QUICK).frontal[0]


def area_of(start: Image.Image) -> tuple[Image.Image, Any]:
    """A mask of the image's left third, and as an array (h, w) bool."""
    area = np.zeros((start.height, start.width), bool)
    area[:, : start.width // 3] = True
    return Image.fromarray(area.astype(np.uint8) * 255), area


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("options", [{}, {"sampler": "ddim"}, {"sampler": "unipc"}, {"greedy": False}], ids=str)
def test_the_rest_keeps_its_pixels(
    pipeline: XgemPipeline, start: Image.Image, strength: float, options: dict[str, Any]
) -> None:
    mask, area = area_of(start)
    asked: dict[str, Any] = {"image": {"frontal": start}, "strength": strength, "seed": 1, **QUICK, **options}
    edited = pipeline({"report": "Cardiomegaly."}, "frontal", mask_image={"frontal": mask}, **asked)
    before, after = np.asarray(start), np.asarray(edited.frontal[0])
    assert (before[~area] == after[~area]).all()
    assert (before[area] != after[area]).mean() > 0.5
    asked["seed"] = 2
    other = pipeline({"report": "Cardiomegaly."}, "frontal", mask_image={"frontal": mask}, **asked)
    assert not same(other.frontal[0], edited.frontal[0])


def test_latents_outside_are_the_images_at_every_step(pipeline: XgemPipeline, start: Image.Image) -> None:
    mask, _ = area_of(start)
    seen: list[torch.Tensor] = []
    asked: dict[str, Any] = {"image": {"frontal": start}, "strength": 1, "num_inference_steps": 4, "progress": False}
    one, two = (
        pipeline(
            {"report": text},
            "frontal",
            seed=3,
            mask_image={"frontal": mask},
            output_type="latent",
            callback_on_step_end=lambda *values: seen.append(values[-1]["latents"]),
            **asked,
        ).frontal[0]
        for text in ("Cardiomegaly.", "Pneumothorax.")
    )
    cells = one.shape[-1] // 3 + 1
    for first, second in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(first[..., cells:], second[..., cells:])
    assert not torch.equal(one[..., : cells - 1], two[..., : cells - 1])


def test_an_edit_is_the_same_in_a_batch_and_replays(pipeline: XgemPipeline, start: Image.Image, tmp_path: Path) -> None:
    mask, _ = area_of(start)
    for name, image in (("start.png", start), ("area.png", mask)):
        image.save(tmp_path / name)
    files: dict[str, Any] = {
        "image": {"frontal": tmp_path / "start.png"},
        "mask_image": {"frontal": tmp_path / "area.png"},
        "strength": 0.8,
        **QUICK,
    }
    made = pipeline({"report": "Edema."}, "frontal", seed=4, num_samples=2, **files)
    made.save(tmp_path / "out")
    path = tmp_path / "out" / "frontal-001.png"
    assert read_metadata(path)["mask_image"]["frontal"]["origin"] == "area.png"
    with pytest.raises(InputError, match=r"mask image 'frontal' was 'area\.png', which is not found"):
        replay(path, model=pipeline, image=files["image"], progress=False)
    assert replay(path, model=pipeline, image=files["image"], mask_image=files["mask_image"], progress=False).identical
    other = {"frontal": ~np.asarray(mask, bool)}
    with pytest.raises(InputError, match="mask image 'frontal' is not the recorded one"):
        replay(path, model=pipeline, image=files["image"], mask_image=other, progress=False)
    masks = [other, {"frontal": mask}]
    both = pipeline(
        [{"report": "Edema."}] * 2, "frontal", seed=4, image=files["image"], mask_image=masks, strength=0.8, **QUICK
    )
    assert not same(both[0].frontal[0], both[1].frontal[0])
    distance = np.abs(np.asarray(both[1].frontal[0], int) - np.asarray(made.frontal[0], int))
    assert distance.max() <= 1


def test_the_area_goes_through_the_steps_of_its_image(pipeline: XgemPipeline) -> None:
    size = pipeline.preset.transform.size
    drawn = np.zeros((40, 80), np.uint8)
    drawn[:, :20] = 255
    area = read_areas(pipeline.preset, {"frontal": drawn}, {"frontal": np.zeros((40, 80))})["frontal"].value
    assert area.shape == (1, size, size)
    rows = area[0].any(dim=1).nonzero().flatten()
    assert abs(len(rows) - size // 2) <= 1  # padded to a square, as the image
    from xgem.pipeline.editing import Edit

    cells = latent_area([Edit(torch.zeros(1, 1, size, size), area[None])], (4, 4, 4))
    assert cells.shape == (1, 1, 4, 4)
    assert cells[0, 0].any(dim=0).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_image": {"frontal": np.ones((8, 8))}}, "not among the outputs that start from an image"),
        ({"image": {"frontal": "start"}, "mask_image": {"frontal": np.zeros((8, 8))}}, "is empty"),
        ({"image": {"frontal": "start"}, "mask_image": {"lateral": np.ones((8, 8))}}, "mask_image is for 'lateral'"),
        ({"image": {"frontal": "start"}, "mask_image": {"frontal": "none.png"}}, "no such file"),
    ],
)
def test_areas_that_cannot_be_used(
    pipeline: XgemPipeline, start: Image.Image, options: dict[str, Any], message: str
) -> None:
    given = {**options, **({"image": {"frontal": start}} if "image" in options else {})}
    with pytest.raises(InputError, match=message):
        pipeline({}, "frontal", seed=1, **given, **QUICK)


def test_a_report_has_no_area(pipeline: XgemPipeline) -> None:
    with pytest.raises(InputError, match="'report', which is no image"):
        pipeline({}, "report", image={"report": "Edema."}, mask_image={"report": np.ones((8, 8))}, **QUICK)
