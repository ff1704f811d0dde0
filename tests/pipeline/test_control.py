"""Annotations and demographics in requests: what they change, what they leave, what is said of them."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.api import model_for
from xgem.checkpoints.locate import embedded_names
from xgem.checkpoints.store import init_checkpoint, load_component, save_component
from xgem.configs.preset import Preset, load_preset
from xgem.data.annotation_files import coco, read_boxes, read_masks
from xgem.data.annotations import Box
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.replay import replay
from xgem.types import CheckpointError, ConfigError, InputError

QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False, "seed": 1}
TEXT = "Right basal consolidation."
BOX = [{"label": "pneumonia", "bbox": [0.1, 0.5, 0.3, 0.25]}]
SEX = {"sex": "F", "age": 71}


def lungs(left: int = 6) -> dict[str, np.ndarray]:
    mask = np.zeros((64, 64), bool)
    mask[10:50, left : left + 20] = True
    return {"right lung": mask, "left lung": mask[:, ::-1].copy()}


@pytest.fixture(scope="module")
def pipeline(chexgen_checkpoint: Path) -> XgemPipeline:
    return XgemPipeline.from_pretrained(chexgen_checkpoint, device="cpu")


def made(pipeline: XgemPipeline, inputs: Any, **options: Any) -> np.ndarray:
    return pipeline(inputs, "frontal", output_type="np", **(QUICK | options)).frontal[0]


ANNOTATIONS = {"mask": (lungs(), lungs(2)), "boxes": (BOX, [BOX[0] | {"label": "mass"}]), "severity": (3, 17)}


@pytest.mark.parametrize("name", ANNOTATIONS)
@pytest.mark.parametrize("text", [{}, {"report": TEXT}])
def test_every_annotation_steers(pipeline: XgemPipeline, name: str, text: dict[str, str]) -> None:
    one, other = ANNOTATIONS[name]
    free, first, second = (made(pipeline, text | given) for given in ({}, {name: one}, {name: other}))
    assert np.abs(first - free).max() > 1e-4
    assert np.abs(first - second).max() > 1e-4
    assert np.array_equal(first, made(pipeline, text | {name: one}))


def test_several_annotations_steer_at_once(pipeline: XgemPipeline) -> None:
    everything = {"mask": lungs(), "boxes": BOX, "severity": 12}
    together = made(pipeline, everything)
    for name in everything:
        rest = {other: value for other, value in everything.items() if other != name}
        assert np.abs(together - made(pipeline, rest)).max() > 1e-4


def test_demographics_are_words_in_front_of_the_report(pipeline: XgemPipeline) -> None:
    known = made(pipeline, {"report": TEXT, "demographics": SEX})
    assert np.array_equal(known, made(pipeline, {"report": f"sex:Female, age:71.0. {TEXT}"}))
    assert np.array_equal(made(pipeline, {"demographics": SEX}), made(pipeline, {"report": "sex:Female, age:71.0."}))
    assert np.abs(known - made(pipeline, {"report": TEXT})).max() > 1e-4


def test_scale_and_end_of_the_control(pipeline: XgemPipeline) -> None:
    inputs = {"report": TEXT, "mask": lungs()}
    free = made(pipeline, {"report": TEXT})
    np.testing.assert_allclose(made(pipeline, inputs, controlnet_conditioning_scale=0.0), free, atol=1e-6)
    assert np.array_equal(made(pipeline, inputs, control_guidance_end=0.0), free)
    assert np.abs(made(pipeline, inputs, control_guidance_end=0.5) - made(pipeline, inputs)).max() > 1e-4


def test_a_sample_does_not_depend_on_its_batch(pipeline: XgemPipeline) -> None:
    items: list[Any] = [{"mask": lungs()}, {"report": TEXT}, {"mask": lungs(2), "report": TEXT}]
    batch = pipeline(items, "frontal", output_type="np", **QUICK)
    for item, generation in zip(items, batch, strict=True):
        np.testing.assert_allclose(generation.frontal[0], made(pipeline, item), atol=1e-5)


def test_images_lie_beside_their_annotations(pipeline: XgemPipeline, tmp_path: Path) -> None:
    generation = pipeline({"mask": lungs(), "boxes": BOX}, "frontal", num_samples=2, **QUICK)
    generation.save(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "generation.json").read_text(encoding="utf-8"))
    for entry in record["files"]["frontal"]:
        image = Image.open(tmp_path / "out" / entry["file"])
        boxes, mask = (tmp_path / "out" / name for name in sorted(entry["annotations"]))
        found = read_masks(mask)
        assert set(found.masks) == set(lungs())
        assert found.size == image.size[::-1]
        assert np.array_equal(found.masks["left lung"], generation.annotations["mask"].masks["left lung"])
        assert read_boxes(boxes).boxes[0].label == "pneumonia"
    generation.save(tmp_path / "out", overwrite=True)
    pipeline({}, "frontal", **QUICK).save(tmp_path / "out", overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"frontal.png", "generation.json"}


def test_replay(pipeline: XgemPipeline, tmp_path: Path) -> None:
    Image.fromarray(lungs()["left lung"]).save(tmp_path / "left lung.png")
    (tmp_path / "boxes.json").write_text(json.dumps(BOX), encoding="utf-8")
    inputs = {
        "report": TEXT, "mask": tmp_path / "left lung.png", "boxes": tmp_path / "boxes.json", "severity": 12.5,
        "demographics": SEX,
    }  # fmt: skip
    pipeline(inputs, "frontal", control_guidance_end=0.5, **QUICK).save(tmp_path / "out")
    (tmp_path / "left lung.png").rename(tmp_path / "out" / "left lung.png")
    (tmp_path / "out" / "frontal.boxes.json").unlink()
    again = replay(tmp_path / "out" / "frontal.png", inputs={"boxes": tmp_path / "boxes.json"}, model=pipeline)
    assert again.identical
    again.generation.save(tmp_path / "again")
    assert (
        read_masks(tmp_path / "again" / "frontal.mask.png").sha256
        == (again.generation.metadata["inputs"]["mask"]["sha256_on_grid"])
    )


def test_replay_from_the_annotations_beside(pipeline: XgemPipeline, tmp_path: Path) -> None:
    pipeline({"mask": lungs(), "boxes": BOX, "severity": 12.123456789}, "frontal", num_samples=2, **QUICK).save(
        tmp_path / "out"
    )
    first = replay(tmp_path / "out" / "frontal-001.png", model=pipeline)
    first.generation.save(tmp_path / "first")
    second = replay(tmp_path / "first" / "frontal-001.png", model=pipeline)
    assert first.identical
    assert second.identical
    assert set(second.generation.annotations) == {"mask", "boxes", "severity"}
    given = {"boxes": tmp_path / "out" / "frontal-001.boxes.json"}
    assert replay(tmp_path / "out" / "frontal-001.png", inputs=given, model=pipeline).identical
    hidden = lungs(14) | {"device": lungs(14)["right lung"]}  # a label image cannot say what lies under the device
    pipeline({"mask": hidden}, "frontal", **QUICK).save(tmp_path / "hidden")
    with pytest.raises(InputError, match=r"its input 'mask' was 'array', which is not found; give it \(--mask\)"):
        replay(tmp_path / "hidden" / "frontal.png", model=pipeline)
    assert replay(tmp_path / "hidden" / "frontal.png", inputs={"mask": hidden}, model=pipeline).identical


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"mask": np.zeros((64, 64), bool)}, "mask"),
        ({"mask": {"spleen": np.eye(4, dtype=bool)}}, "spleen"),
        ({"boxes": [{"label": "pneumonia", "bbox": [0.9, 0.5, 0.3, 0.25]}]}, "extends beyond"),
        ({"severity": 19}, "severity"),
        ({"demographics": {"age": 171}}, "age"),
        ({"lateral": np.zeros((32, 32))}, "takes no 'lateral'"),
    ],
)
def test_bad_annotations(pipeline: XgemPipeline, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline(inputs, "frontal", **QUICK)


def test_bad_requests(pipeline: XgemPipeline) -> None:
    with pytest.raises(InputError, match="cannot generate 'mask'"):
        pipeline({}, "mask", **QUICK)
    with pytest.raises(InputError, match="control_guidance_end is 2"):
        pipeline({"mask": lungs()}, "frontal", control_guidance_end=2, **QUICK)
    with pytest.raises(InputError, match="controlnet_conditioning_scale is -1"):
        pipeline({"mask": lungs()}, "frontal", controlnet_conditioning_scale=-1, **QUICK)


@pytest.mark.parametrize(("more", "cut"), [(0, False), (1, True), (2, True), (40, True)])
def test_a_long_caption_is_cut_and_said_so(pipeline: XgemPipeline, more: int, cut: bool) -> None:
    read = pipeline.preset.components["frontal_dit"].caption_tokens  # type: ignore[union-attr]
    tokenizer: Any = pipeline.component("text_encoder").tokenizer
    assert read + 2 < pipeline.preset.components["text_encoder"].max_length  # type: ignore[union-attr]
    words = ["a"]
    while len(tokenizer(" ".join(words))["input_ids"]) < read + more:
        words.append("a")
    assert len(tokenizer(" ".join(words))["input_ids"]) == read + more
    described = pipeline({"report": " ".join(words)}, "frontal", **QUICK).metadata["inputs"]["report"]
    assert described.get("truncated", False) is cut
    assert described["notes"] == ([f"report truncated from {read + more} to {read} tokens"] if cut else [])
    alone = {"demographics": {"race": " ".join(words)}}
    assert pipeline(alone, "frontal", **QUICK).metadata["inputs"]["demographics"]["truncated"] is True


def test_options_that_change_nothing_are_said(pipeline: XgemPipeline, caplog: pytest.LogCaptureFixture) -> None:
    made(pipeline, {"mask": lungs()}, controlnet_conditioning_scale=0.5)
    assert "have no effect" not in caplog.text
    made(pipeline, {"report": TEXT}, control_guidance_end=0.5)
    assert (
        "controlnet_conditioning_scale and control_guidance_end have no effect: no annotation was given" in caplog.text
    )


def test_boxes_are_outlines_or_areas(chexgen_checkpoint: Path, tmp_path: Path) -> None:
    images = []
    for filled in (False, True):
        record = load_preset("debug-chexgen").model_dump(mode="json")
        record["components"]["control"]["filled_boxes"] = filled
        root = tmp_path / str(filled)
        init_checkpoint(root, Preset.parse(record, "filled"))
        for name in ("text_encoder", "image_vae", "frontal_dit", "control"):
            save_component(root, name, load_component(chexgen_checkpoint, name))
        images.append(made(XgemPipeline.from_pretrained(root, device="cpu"), {"boxes": BOX}))
    assert np.abs(images[0] - images[1]).max() > 1e-4


def test_a_preset_adds_structures_and_box_classes(
    pipeline: XgemPipeline, chexgen_checkpoint: Path, tmp_path: Path
) -> None:
    record = load_preset("debug-chexgen").model_dump(mode="json")
    record["components"]["control"] |= {"structures": ["rib", "heart"], "box_classes": ["fracture"]}
    preset = Preset.parse(record, "more")
    init_checkpoint(tmp_path / "more", preset)
    for name in ("text_encoder", "image_vae", "frontal_dit"):
        save_component(tmp_path / "more", name, load_component(chexgen_checkpoint, name))
    control = load_component(chexgen_checkpoint, "control")
    control.config = preset.components["control"]
    save_component(tmp_path / "more", "control", control)
    more = XgemPipeline.from_pretrained(tmp_path / "more", device="cpu")
    left = lungs()["left lung"]
    inputs = {"mask": {"rib": left}, "boxes": [{"label": "Fracture", "bbox": BOX[0]["bbox"]}]}
    # Built-in names are drawn as before; each new one steers, and differs from the others.
    assert np.array_equal(made(more, {"mask": lungs()}), made(pipeline, {"mask": lungs()}))
    images = [made(more, inputs), made(more, {"mask": {"rib": left}}), made(more, {"mask": {"heart": left}})]
    for one, other in combinations(images, 2):
        assert np.abs(one - other).max() > 1e-4
    # What is saved beside an image names its own labels, and replays.
    more(inputs, "frontal", **QUICK).save(tmp_path / "out")
    assert list(read_masks(tmp_path / "out" / "frontal.mask.png").masks) == ["rib"]
    assert read_boxes(tmp_path / "out" / "frontal.boxes.json").boxes[0].label == "fracture"
    assert replay(tmp_path / "out" / "frontal.png", model=more).identical
    # Another model refuses them, and lists what it knows.
    for given, message in (
        ({"mask": {"rib": left}}, "unknown structure 'rib': this model knows left lung, .*, device"),
        ({"boxes": inputs["boxes"]}, "unknown class 'fracture': this model knows atelectasis, .*, pneumothorax"),
    ):
        with pytest.raises(InputError, match=message):
            made(pipeline, given)
    with pytest.raises(InputError, match=r"knows left lung, .*, device, rib, heart"):
        made(more, {"mask": {"spleen": left}})


def test_lungs_on_the_wrong_sides_are_said(pipeline: XgemPipeline) -> None:
    right, left = lungs().values()
    for mask, count in (({"right lung": right, "left lung": left}, 0), ({"right lung": left, "left lung": right}, 1)):
        notes = pipeline({"mask": mask}, "frontal", **QUICK).metadata["inputs"]["mask"]["notes"]
        assert sum("left lung lies left of right lung" in note for note in notes) == count


def test_a_box_of_an_oblong_image_is_moved_and_said_so(pipeline: XgemPipeline) -> None:
    boxes = coco((Box("mass", 0.5, 0.5, 0.25, 0.25),), 64, 48, "a.png")
    note = "boxes of an image of 48 x 64, which was padded to a square"
    assert pipeline({"boxes": boxes}, "frontal", **QUICK).metadata["inputs"]["boxes"]["notes"] == [note]


def test_a_checkpoint_without_its_control_says_so(chexgen_checkpoint: Path, tmp_path: Path) -> None:
    untrained = tmp_path / "untrained"
    init_checkpoint(untrained, load_preset("debug-chexgen"))
    for name in ("text_encoder", "image_vae", "frontal_dit"):
        save_component(untrained, name, load_component(chexgen_checkpoint, name))
    pipeline = XgemPipeline.from_pretrained(untrained, device="cpu")
    assert made(pipeline, {"report": TEXT}).shape == (32, 32)
    with pytest.raises(CheckpointError, match="has no trained ControlNet for annotations"):
        made(pipeline, {"mask": lungs()})


def test_the_inputs_pick_the_embedded_checkpoint() -> None:
    assert {model_for(None), model_for({"mask": 1})} == set(embedded_names())
    assert model_for({"frontal": "a.png"}) == "openi-256"
    assert model_for(None) == "openi-256"
    assert model_for({"report": TEXT}) == "openi-256"
    for name in ("mask", "boxes", "severity", "demographics"):
        assert model_for([{"report": TEXT}, {name: 1}]) == "chexgen-small"


def test_presets_that_are_wrong() -> None:
    good = load_preset("debug-chexgen").model_dump(mode="json")

    def parse(**changes: Any) -> None:
        Preset.parse(good | changes, "test")

    modalities, parts = good["modalities"], good["components"]
    for changes, message in (
        ({"modalities": modalities | {"report": {}}}, "without an encoder"),
        ({"modalities": modalities | {"demographics": {"joins": "words"}}}, "joins 'words'"),
        ({"modalities": modalities | {"frontal": {"codec": "image_vae"}}}, "codec and generator"),
        ({"modalities": modalities | {"mask": {"control": "control"}}}, "a generator where there is a control"),
        ({"components": parts | {"control": parts["control"] | {"width": 64}}}, "another architecture"),
        ({"components": parts | {"control": parts["control"] | {"structures": ["Rib"]}}}, "lower case words"),
        ({"components": parts | {"control": parts["control"] | {"structures": ["device"]}}}, "is built in"),
        ({"components": parts | {"control": parts["control"] | {"box_classes": ["rib", "rib"]}}}, "duplicate name"),
        (
            {"components": parts | {"control": parts["control"] | {"box_classes": [f"n{i}" for i in range(28)]}}},
            "28 names, expected at most 27",
        ),
        ({"components": parts | {"control": parts["control"] | {"annotations": ["sketch"]}}}, "unknown annotations"),
        ({"modalities": modalities | {"frontal": modalities["frontal"] | {"control": "image_vae"}}}, "no other"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(**changes)
