"""Masks and boxes in the forms users have them, and back; what is no mask or no box is refused and never repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from xgem.data.annotation_files import (
    coco,
    label_image,
    read_boxes,
    read_masks,
    read_severity,
    structure_of,
    write_labels,
)
from xgem.data.annotations import Annotation, Box
from xgem.data.read import read_image
from xgem.labels.spatial import BOX_CLASSES, STRUCTURES
from xgem.types import InputError

MASK = np.zeros((40, 60), np.uint8)
MASK[5:20, 10:30] = 255
LABELS = np.zeros((40, 60), np.uint8)
LABELS[5:20, 10:30], LABELS[25:30, 10:30] = 2, 9


def same(one: Annotation, other: Annotation) -> bool:
    return one.sha256 == other.sha256


def saved(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


# ------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.npy"])
@pytest.mark.parametrize("high", [1, 7, 255])
def test_binary_files_are_masks_whatever_their_high_value(tmp_path: Path, name: str, high: int):
    path, mask = tmp_path / name, MASK // 255 * np.uint8(high)
    if name == "a.npy":
        np.save(path, mask)
    else:
        saved(path, mask)
    assert same(read_masks({"device": path}), Annotation({"device": MASK > 0}))


@pytest.mark.parametrize(
    "form",
    [
        lambda mask: mask,
        lambda mask: mask > 0,
        lambda mask: (mask / 255).astype(np.float32),
        lambda mask: torch.from_numpy(mask)[None],
        Image.fromarray,
        lambda mask: Image.fromarray(mask).convert("1"),
        lambda mask: Image.fromarray(mask).convert("RGBA"),
        lambda mask: np.stack([mask] * 3, -1),
    ],
)
def test_one_mask_in_any_form_has_one_hash(form: Any):
    assert same(read_masks({"Left_Lung": form(MASK)}), Annotation({"left lung": MASK > 0}))


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("Pneumothorax.png", "pneumothorax"),
        ("heart.png", "cardiomediastinum"),
        ("left-lung.png", "left lung"),
        ("chest 7.pleural_effusion.png", "pleural effusion"),
        ("Ground Glass Opacities.png", "ground glass opacity"),
    ],
)
def test_a_binary_file_is_named_after_its_structure(tmp_path: Path, name: str, structure: str):
    assert list(read_masks(saved(tmp_path / name, MASK // 255)).masks) == [structure]
    assert structure_of(Path(name).stem.split(".")[-1]) == structure


def test_a_heart_is_a_structure_of_its_own_where_a_model_knows_it(tmp_path: Path):
    known = (*STRUCTURES, "heart")
    for source in ({"Heart": MASK}, saved(tmp_path / "heart.png", MASK)):
        assert list(read_masks(source, known).masks) == ["heart"]
        assert list(read_masks(source).masks) == ["cardiomediastinum"]


@pytest.mark.parametrize("mode", [None, "P", "I;16"])
def test_a_label_image_numbers_the_structures(tmp_path: Path, mode: str | None):
    if mode == "P":
        image = Image.fromarray(LABELS).convert("P")
        image.putdata(LABELS.ravel().tolist())
        image.save(tmp_path / "a.png")
    else:
        saved(tmp_path / "a.png", LABELS if mode is None else LABELS.astype(np.uint16))
    expected = Annotation({"right lung": LABELS == 2, "device": LABELS == 9})
    assert same(read_masks(tmp_path / "a.png"), expected)
    assert same(read_masks(LABELS), expected)


def test_zero_and_one_alone_are_not_taken_for_the_left_lung(tmp_path: Path):
    for source in (MASK // 255, MASK > 0, saved(tmp_path / "mask.png", MASK // 255)):
        with pytest.raises(InputError, match="of an unknown structure"):
            read_masks(source)
    masks = {"left lung": MASK > 0}
    write_labels(masks, tmp_path / "mask.png")
    assert same(read_masks(tmp_path / "mask.png"), Annotation(masks))


def test_of_a_label_file_the_named_structure_is_taken(tmp_path: Path):
    right, left = two_lungs()
    masks = {"left lung": left, "right lung": right, "device": np.roll(right, 1, axis=0) & ~right}
    write_labels(masks, tmp_path / "a.mask.png")
    assert same(read_masks({"right lung": tmp_path / "a.mask.png"}), Annotation({"right lung": right}))
    both = {"lungs": tmp_path / "a.mask.png", "device": tmp_path / "a.mask.png"}
    assert same(read_masks(both), Annotation(masks))
    with pytest.raises(InputError, match="shows left lung, right lung, device; expected airways, as named"):
        read_masks({"airways": tmp_path / "a.mask.png"})
    write_labels({"left lung": left}, tmp_path / "left.png")
    with pytest.raises(InputError, match="shows left lung; expected right lung"):
        read_masks({"lungs": tmp_path / "left.png"})
    with pytest.raises(InputError, match="mask 'lungs' is empty"):
        read_masks({"lungs": np.zeros((40, 40), bool)})


@given(st.data())
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    names = data.draw(st.lists(st.sampled_from((*STRUCTURES, "rib", "heart")), min_size=1, max_size=4, unique=True))
    masks = {}
    for name in names:
        top, left = data.draw(st.integers(0, 29)), data.draw(st.integers(0, 29))
        masks[name] = np.zeros((30, 30), bool)
        masks[name][top : top + data.draw(st.integers(1, 29)), left : left + data.draw(st.integers(1, 29))] = True
    folder = tmp_path_factory.mktemp("masks")
    labels, numbers, overlaps = label_image(masks)
    assert write_labels(masks, folder / "all.mask.png") == overlaps
    kept = {name: labels == i for i, name in numbers.items() if (labels == i).any()}
    assert same(read_masks(folder / "all.mask.png"), Annotation(kept))
    for one, other in overlaps:
        assert list(numbers.values()).index(one) < list(numbers.values()).index(other)
        assert (masks[one] & masks[other]).any()
    if not overlaps:
        assert same(Annotation(kept), Annotation(masks))


def two_lungs(height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Right and left, each a ring so that its parts wind; the right one with a speck beside it."""
    right, left = np.zeros((height, width), bool), np.zeros((height, width), bool)
    right[10:50, 8:34], left[12:48, 44:72] = True, True
    right[20:40, 14:28], left[20:48, 52:60] = False, False
    right[55, 20] = True
    return right, left


def test_lungs_are_told_apart_by_the_half_they_lie_in(tmp_path: Path):
    right, left = two_lungs()
    expected = Annotation({"left lung": left, "right lung": right})
    assert same(read_masks({"lungs": right | left}), expected)
    assert same(read_masks(saved(tmp_path / "Lungs.png", right | left)), expected)


def test_lungs_that_cannot_be_told_apart_are_refused():
    right, left = two_lungs()
    joined = right | left
    joined[30, 8:72] = True
    for mask in (right, joined):
        with pytest.raises(InputError, match="not one lung in each half"):
            read_masks({"lungs": mask})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "empty mapping"),
        ({"": MASK}, "structure '': expected a name in lower case words"),
        ({"heart": MASK, "cardiomediastinum": MASK}, "duplicate structure"),
        ({"heart": MASK, "device": MASK.T}, "60 x 40 pixels, expected 40 x 60"),
        ({"heart": np.zeros_like(MASK)}, "'heart' is empty"),
        ({"heart": np.full_like(MASK, 3)}, "not a binary mask, 3 everywhere"),
        ({"heart": LABELS}, "not a binary mask, 3 values"),
        ({"heart": MASK[0]}, r"shape \(60,\)"),
        ({"heart": np.where(MASK, np.nan, 0)}, "not numbers"),
        ({"heart": 3}, "cannot read a int as a mask"),
        (np.zeros_like(MASK), "an empty mask"),
        (MASK, "of an unknown structure"),
        (np.arange(2400).reshape(40, 60), "2400 values, including 10"),
        (LABELS / 2, "including 4.5"),
        (np.stack([MASK, MASK.T.reshape(40, 60), MASK], -1), "one grey image"),
        (None, "cannot read a NoneType"),
    ],
)
def test_what_is_no_mask_is_refused(value: Any, message: str):
    with pytest.raises(InputError, match=message):
        read_masks(value)


def test_files_that_hold_no_mask_are_refused(tmp_path: Path):
    smooth = Image.fromarray(MASK).resize((31, 21), Image.Resampling.BILINEAR)
    smooth.save(tmp_path / "heart.png")
    Image.fromarray(MASK).save(tmp_path / "heart.jpg", quality=50)
    (tmp_path / "text.png").write_text("a mask")
    (tmp_path / "cut.png").write_bytes(saved(tmp_path / "device.png", np.tile(MASK, (9, 9))).read_bytes()[:100])
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY no")
    for name, message in {
        "heart.png": "without smoothing",
        "heart.jpg": "JPEG, which smooths its edges",
        "text.png": "not an image; expected a mask as PNG",
        "cut.png": "not a readable mask",
        "bad.npy": "not a usable .npy",
        "none.png": "no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            read_masks(tmp_path / name)


def test_no_masks_are_not_written():
    with pytest.raises(InputError, match="no masks to write"):
        label_image({})


# ------------------------------------------------------------------------------------------------ boxes

boxes_of_any_class = st.builds(
    lambda label, x, y, w, h: Box(label, x, y, max(w * (1 - x), 1e-3), max(h * (1 - y), 1e-3)),
    st.sampled_from((*BOX_CLASSES, "fracture")),
    *[st.floats(0, 0.99)] * 4,
)


@given(st.lists(boxes_of_any_class, min_size=1, max_size=5), st.integers(1, 9999), st.integers(1, 9999))
def test_coco_reads_back(tmp_path_factory: pytest.TempPathFactory, boxes: list[Box], width: int, height: int):
    # Boxes that all end within the first pixel are taken for shares
    assume(
        any(max((box.x + box.w) * width, (box.y + box.h) * height) > 1 + 1e-9 for box in boxes) or 1 in (width, height)
    )
    path = tmp_path_factory.mktemp("boxes") / "a.json"
    path.write_text(json.dumps(coco(boxes, width, height, "a.png")))
    again = read_boxes(path)
    assert same(again, Annotation(boxes=tuple(boxes), size=(height, width)))
    assert [box.label for box in again.boxes] == [box.label for box in boxes]


def test_a_list_in_shares_states_no_size(tmp_path: Path):
    items = [{"label": "Pleural_Effusion", "bbox": [0, 0.5, 0.25, 0.5]}, {"category": "Mass", "bbox": (0, 0, 1, 1)}]
    (tmp_path / "boxes.json").write_text(json.dumps(items))
    expected = Annotation(boxes=(Box("effusion", 0, 0.5, 0.25, 0.5), Box("mass", 0, 0, 1, 1)))
    assert read_boxes(items).boxes == read_boxes(tmp_path / "boxes.json").boxes == expected.boxes
    assert read_boxes(items).size is None


def test_coco_says_which_image(tmp_path: Path):
    made = coco((Box("mass", 0.5, 0, 0.5, 1),), 200, 100, "a.png")
    assert made["images"] == [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}]
    assert [kind["name"] for kind in made["categories"]] == list(BOX_CLASSES)
    (item,) = made["annotations"]
    assert (item["bbox"], item["area"], item["category_id"]) == ([100, 0, 100, 100], 10_000, 5)


def changed(key: str, value: Any) -> dict[str, Any]:
    """COCO with one thing replaced: ``"images.width"`` in its first image, ``"images"`` as a whole."""
    made = coco((Box("mass", 0.5, 0, 0.5, 1),), 200, 100, "a.png")
    part, _, entry = key.partition(".")
    if entry:
        made[part][0][entry] = value
    else:
        made[part] = value
    return made


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no boxes"),
        (3, "a list of boxes, or COCO, got int"),
        (["mass"], "box 0: expected a mapping"),
        ([{"bbox": [0, 0, 1, 1]}], "box 0: no class; expected a name as its label, such as atelectasis"),
        ([{"label": " ", "bbox": [0, 0, 1, 1]}], "box 0: box of class ''"),
        ([{"label": "mass"}], "bbox is None; expected four numbers"),
        ([{"label": "mass", "bbox": [0, 0, 1]}], "four numbers"),
        ([{"label": "mass", "bbox": ["0", 0, 1, 1]}], "four numbers"),
        ([{"label": "mass", "bbox": [0, 0, 10**400, 1]}], "four numbers"),
        ([{"label": "mass", "bbox": [10, 20, 100, 50]}], "fractions of its width"),
        ([{"label": "mass", "bbox": [0, 0, 0, 1]}], "no area"),
        ({"boxes": []}, "lists images, annotations and categories"),
        (changed("images", [1]), "lists images"),
        (changed("images", []), "0 images; expected one"),
        (changed("images", [{"id": 1}, {"id": 2}]), "2 images; expected one"),
        (changed("images.width", None), "None x 100; expected its width and height"),
        (changed("images.width", 0), "0 x 100"),
        (changed("images.width", 10**400), "width and height"),
        (changed("annotations", []), "no boxes"),
        (changed("annotations.image_id", 7), "belongs to image 7, expected 1"),
        (changed("annotations.category_id", 70), "category 70 is not among the file's categories, expected one of"),
        (changed("categories", [{"id": 5, "name": "mass"}, {"id": 5, "name": "nodule"}]), "duplicate category id"),
        (changed("images.width", True), "True x 100"),
        (changed("annotations.category_id", [1]), "category .* is not among"),
        (changed("annotations.bbox", [150, 0, 100, 100]), "extends beyond the image"),
        (changed("categories", [{"id": 5, "name": None}]), "box 0: no class"),
    ],
)
def test_what_are_no_boxes_is_refused(value: Any, message: str):
    with pytest.raises(InputError, match=message):
        read_boxes(value)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\xff"])
def test_files_that_are_no_json_are_refused(tmp_path: Path, content: str):
    (tmp_path / "boxes.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"not JSON|is empty; expected JSON, a list of boxes or COCO"):
        read_boxes(tmp_path / "boxes.json")


# ------------------------------------------------------------------------------------------------ severity


@pytest.mark.parametrize("value", [12, 12.0, "12", np.float32(12)])
def test_a_score_is_a_number_or_its_text(value: Any):
    assert read_severity(value).severity == 12


@pytest.mark.parametrize("value", [-0.1, 18.1, float("nan"), float("inf"), "high", None, True, [3]])
def test_other_scores_are_refused(value: Any):
    with pytest.raises(InputError, match=r"severity is .*expected a number from 0 to 18"):
        read_severity(value)


# ------------------------------------------------------------------------------------------------ files of other tools


def test_a_palette_with_white_first_is_turned_around(tmp_path: Path):
    mask = np.zeros((40, 60), bool)
    mask[5:20, 10:30] = True
    image = Image.fromarray((~mask).astype(np.uint8))
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "a.heart.png")
    assert Image.open(tmp_path / "a.heart.png").mode == "P"
    (read,) = read_masks(tmp_path / "a.heart.png", ("heart",)).masks.values()
    np.testing.assert_array_equal(read, mask)
    coloured = Image.fromarray(mask.astype(np.uint8) * 3)  # of labels, as segmentation tools write them
    coloured.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    coloured.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_masks(tmp_path / "labels.png").masks[STRUCTURES[2]], mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_in_tiff_is_turned_around(tmp_path: Path, dtype: type):
    mask = np.zeros((40, 60), bool)
    mask[5:20, 10:30] = True
    top = np.iinfo(dtype).max
    tifffile.imwrite(tmp_path / "heart.tif", np.where(mask, 0, top).astype(dtype), photometric="miniswhite")
    np.testing.assert_array_equal(read_masks({"heart": tmp_path / "heart.tif"}, ("heart",)).masks["heart"], mask)


def test_an_empty_file_of_a_mask_is_named(tmp_path: Path):
    saved(tmp_path / "p_1.png", np.zeros((40, 60), np.uint8))
    with pytest.raises(InputError, match=r"p_1\.png: mask 'heart' is empty"):
        read_masks({"heart": tmp_path / "p_1.png"})


def test_masks_are_upright_as_their_images_are(tmp_path: Path):
    lying = np.zeros((48, 64), np.uint8)
    lying[5:20, 10:30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "x.png", exif=exif)
    mask = read_masks({"heart": tmp_path / "x.png"}, ("heart",)).masks["heart"]
    np.testing.assert_array_equal(mask, read_image(tmp_path / "x.png").pixels > 0.5)
    assert mask.shape == (64, 48)


def test_coco_in_shares_is_refused_and_a_box_just_over_the_edge_is_cut(caplog: pytest.LogCaptureFixture):
    def of(*bbox: float) -> dict[str, Any]:
        return coco([Box("mass", 0.1, 0.1, 0.2, 0.2)], 1024, 1024, "a.png") | {
            "annotations": [{"image_id": 1, "category_id": BOX_CLASSES.index("mass") + 1, "bbox": list(bbox)}]
        }

    with pytest.raises(InputError, match="COCO has pixels"):
        read_boxes(of(0.1, 0.2, 0.3, 0.25))
    assert not caplog.messages
    (box,) = read_boxes(of(900, -6, 130, 136)).boxes
    assert (box.x + box.w, box.y, box.h) == (1, 0, pytest.approx(130 / 1024))
    assert len(caplog.messages) == 2
    assert "over the image's edge" in caplog.text
    with pytest.raises(InputError, match="beyond the image"):
        read_boxes(of(900, 900, 140, 100))


def test_cases_of_boxes(cases_dir: Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(InputError, match="COCO has pixels"):
        read_boxes(cases_dir / "annot" / "coco_shares.json")
    (box,) = read_boxes(cases_dir / "annot" / "coco_over6px.json").boxes
    assert (box.label, box.x + box.w, box.y + box.h) == ("pneumonia", 1, 1)
    assert "over the image's edge" in caplog.text


@pytest.mark.parametrize(
    ("name", "words"),
    [("seg_antialias", "139 values"), ("seg_jpegmask", "JPEG, which smooths"), ("palette", None)],
)
def test_cases_of_masks(cases_dir: Path, name: str, words: str | None):
    if words is None:
        mask = read_masks(cases_dir / "annot" / "palette_rev.left_lung.png").masks["left lung"]
        assert 0.01 < mask.mean() < 0.3
        return
    with pytest.raises(InputError, match=words):
        read_masks({"left lung": cases_dir / "tables" / name / "masks" / "p_1_000.png"})


@pytest.mark.parametrize("upright", [True, False])
def test_case_of_a_rotated_image(cases_dir: Path, upright: bool):
    folder = cases_dir / "tables" / f"seg_exif_mask_{'upright' if upright else 'raw'}"
    image = read_image(folder / "images" / "p_1.jpg")
    mask = read_masks({"left lung": folder / "masks" / "p_1_000.png"})
    assert (image.pixels.shape == mask.size) == upright
