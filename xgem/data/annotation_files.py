"""Reading annotations (masks, boxes, severity), and writing masks and boxes as training data.

The values of a mask image are labels, so nothing is scaled or repaired: a mask that was smoothed or saved as JPEG is an
``InputError``. ``xgem.data.annotations`` defines the annotations and checks their contents; ``check_known`` refuses
names that a model does not have.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.data.annotations import MAX_SEVERITY, OUTSIDE, Annotation, Box
from xgem.data.demographics import number_up_to
from xgem.data.dicom_annotations import read_box_report, read_segmentation
from xgem.data.headers import is_dicom
from xgem.data.mask_files import LABELS_KEY, binary_mask, brief, stored_mask
from xgem.data.read import file_bytes
from xgem.data.transforms import MAX_SIDE
from xgem.labels.spatial import BOX_CLASSES, STRUCTURES, in_order, plain_name
from xgem.types import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

logger = logging.getLogger(__name__)

_STRUCTURE_ALIASES = {"ground glass opacities": "ground glass opacity", "devices": "device"}
_CLASS_ALIASES = {"infiltration": "infiltrate", "pleural effusion": "effusion"}
_LUNGS = "lungs"  # one mask of both lungs
_OVER_EDGE = 0.01  # share of the image's side by which a box may reach over its edge; it is then cut there
_SMALLER_LUNG = 0.1  # minimum size of the smaller lung relative to the larger one


def structure_of(name: str, structures: Sequence[str] = STRUCTURES) -> str:
    """The structure called ``name``; a heart is the cardiomediastinum for a model without a structure "heart"."""
    plain = plain_name(name)
    if plain == "heart" and plain not in structures and "cardiomediastinum" in structures:
        return "cardiomediastinum"
    return _STRUCTURE_ALIASES.get(plain, plain)


def read_masks(value: Any, structures: Sequence[str] = STRUCTURES) -> Annotation:
    """Masks as an annotation of the image's own size.

    Args:
        value: a mapping from structure to binary image (0 and one other value), or a single image: labels (0 for
            background, i + 1 for ``structures[i]``), or a binary file named after one of ``structures``
            ("pneumothorax.png", "chest.left_lung.png"). An image is a path (PNG, TIFF, BMP or ``.npy``), a PIL image,
            an array or a tensor, or the path of a DICOM segmentation, whose segments' labels are the structures.
            "lungs" is one mask of both lungs: its parts left and right of the image's middle are the patient's right
            and left lung. An image of only 0 and 1 counts as binary, unless it is a PNG that names its labels, as
            written by ``write_labels``; from such a PNG, or a segmentation, in a mapping, the named structure is used.
        structures: the names for labels and files. A mapping may name any structure.

    Raises:
        InputError: unreadable, neither binary nor labels, a structure is missing or duplicate, lungs that cannot be
            separated, or anything that ``Annotation`` refuses.
    """
    if isinstance(value, Mapping):
        return Annotation(_of_mapping(value, structures))
    if isinstance(value, str | os.PathLike) and is_dicom(Path(value)):
        return Annotation(_of_segments(Path(value), structures))
    stored, origin, labels = stored_mask(value)
    values = np.unique(stored)
    if not values.any():
        raise InputError(f"{origin}: an empty mask (0 everywhere); leave out what the image does not show")
    if labels is not None:
        return Annotation(_of_labels(stored, origin, labels))
    if len(values) <= 2:
        name = structure_of(Path(origin).stem.rpartition(".")[2], structures)
        if name == _LUNGS or name in structures:
            return Annotation(_named(name, binary_mask(stored, origin), structures))
        if set(values) <= {0, 1} or not set(values) <= set(range(len(structures) + 1)):
            raise InputError(
                f"{origin}: a binary mask of an unknown structure; name the file after its structure, or give a "
                f"mapping {{structure: mask}}; structures are {', '.join(structures)}, or lungs"
            )
    return Annotation(_of_labels(stored, origin, dict(enumerate(structures, 1))))


def read_boxes(value: Any) -> Annotation:
    """Boxes as an annotation, with the image's size if the value states it.

    Args:
        value: a list of ``{"label" or "category": class, "bbox": [x, y, w, h]}`` as fractions of the image; COCO, a
            mapping with ``images`` (one), ``annotations`` and ``categories``, in pixels; or the path of a JSON file
            with one of these, or of a structured report that xgem wrote.

    Raises:
        InputError: unreadable or malformed, no boxes, several images, or anything that ``Box`` refuses.
    """
    origin = "boxes"
    if isinstance(value, str | os.PathLike):
        origin = os.fspath(value)
        if is_dicom(Path(origin)):
            return _from_coco(read_box_report(Path(origin)), origin)
        data = file_bytes(Path(origin), "JSON, a list of boxes or COCO")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{origin}: not JSON ({brief(error)}); expected a list of boxes, or COCO") from error
    if isinstance(value, Mapping):
        return _from_coco(value, origin)
    if not isinstance(value, list | tuple):
        raise InputError(f"{origin}: expected a list of boxes, or COCO, got {type(value).__name__}")
    if not value:
        raise InputError(f"{origin}: no boxes; leave them out to generate without")
    boxes: list[Box] = []
    for number, item in enumerate(value):
        where = f"{origin}: box {number}"
        if not isinstance(item, Mapping):
            raise InputError(f"{where}: expected a mapping with label and bbox, got {type(item).__name__}")
        boxes.append(_box(item.get("label", item.get("category")), item.get("bbox"), (1, 1), where))
    return Annotation(boxes=tuple(boxes))


def read_severity(value: Any) -> Annotation:
    """A Brixia score from 0 to 18, a number or its text, as an annotation; InputError if it is none."""
    return Annotation(severity=number_up_to(MAX_SEVERITY, "severity", value))


def label_image(masks: Mapping[str, Mask]) -> tuple[NDArray[np.uint8], dict[int, str], tuple[tuple[str, str], ...]]:
    """Masks (h, w) as one label image (h, w): 0 for background, i + 1 for ``STRUCTURES[i]``, then any other names.

    Where masks overlap, the later label wins. Also returns the structure of each label, and the pairs that overlap.
    """
    annotation = Annotation(masks)
    if annotation.size is None:
        raise InputError("no masks to write, expected at least one")
    numbers = dict(enumerate(in_order((*STRUCTURES, *masks), STRUCTURES), 1))
    labels = np.zeros(annotation.size, np.uint8)
    for number, name in numbers.items():
        if name in annotation.masks:
            labels[annotation.masks[name]] = number
    pairs = combinations(annotation.masks.items(), 2)
    return labels, numbers, tuple((first, second) for (first, a), (second, b) in pairs if (a & b).any())


def write_labels(masks: Mapping[str, Mask], path: Path) -> tuple[tuple[str, str], ...]:
    """Write ``label_image`` as a PNG that names its labels; returns the pairs of structures that overlap."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    labels, numbers, overlaps = label_image(masks)
    info = PngInfo()
    info.add_text(LABELS_KEY, ", ".join(f"{number} {name}" for number, name in numbers.items()))
    Image.fromarray(labels).save(path, format="PNG", pnginfo=info)
    return overlaps


def coco(boxes: Sequence[Box], width: int, height: int, file_name: str) -> dict[str, Any]:
    """Boxes of one image of ``width`` x ``height`` pixels in COCO's format, ready for JSON."""
    categories = in_order((*BOX_CLASSES, *(box.label for box in boxes)), BOX_CLASSES)
    annotations: list[dict[str, Any]] = []
    for number, box in enumerate(boxes, 1):
        pixels = [float(side) for side in (box.x * width, box.y * height, box.w * width, box.h * height)]
        annotations.append(
            {
                "id": number,
                "image_id": 1,
                "category_id": categories.index(box.label) + 1,
                "bbox": pixels,
                "area": pixels[2] * pixels[3],
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, 1)],
    }


# ------------------------------------------------------------------------------------------------ masks


def _of_mapping(value: Mapping[Any, Any], structures: Sequence[str]) -> dict[str, Mask]:
    if not value:
        raise InputError("mask: an empty mapping; expected a mask by structure, or leave the mask out")
    masks: dict[str, Mask] = {}
    for name, source in value.items():
        of_name = _of_source(str(name), source, structures)
        if masks.keys() & of_name.keys():
            raise InputError(f"mask {name!r}: duplicate structure, expected one mask for each")
        masks.update(of_name)
    return masks


def _of_source(name: str, source: Any, structures: Sequence[str]) -> dict[str, Mask]:
    """The structure ``name``, or both lungs, in an image that is binary or names what it shows."""
    if isinstance(source, str | os.PathLike) and is_dicom(Path(source)):
        return _labelled(name, _of_segments(Path(source), structures), os.fspath(source), structures)
    stored, origin, labels = stored_mask(source)
    if not stored.any():
        raise InputError(f"{origin}: mask {name!r} is empty: leave out what the image does not show")
    if labels is None:
        return _named(name, binary_mask(stored, origin), structures)
    return _labelled(name, _of_labels(stored, origin, labels), origin, structures)


def _of_labels(stored: NDArray[Any], origin: str, labels: Mapping[int, str]) -> dict[str, Mask]:
    values = np.unique(stored)
    unknown = [number for number in values if number and number not in labels]
    if unknown:
        raise InputError(
            f"{origin}: {len(values)} values, including {unknown[0]:g}; expected a binary mask (0 and one other "
            f"value), or labels from 0 to {max(labels)}; save masks without smoothing, as PNG"
        )
    return {labels[int(number)]: stored == number for number in values if number}


def _of_segments(path: Path, structures: Sequence[str]) -> dict[str, Mask]:
    return {structure_of(label, structures): mask for label, mask in read_segmentation(path).items()}


def _labelled(name: str, masks: Mapping[str, Mask], origin: str, structures: Sequence[str]) -> dict[str, Mask]:
    """The structure ``name``, or both lungs, of the masks in a label image."""
    lungs = plain_name(name) == _LUNGS
    wanted: Iterable[str] = ("left lung", "right lung") if lungs else (structure_of(name, structures),)
    for structure in wanted:
        if structure not in masks:
            raise InputError(f"{origin}: shows {', '.join(masks) or 'nothing'}; expected {structure}, as named")
    return {structure: masks[structure] for structure in wanted}


def _named(name: str, mask: Mask, structures: Sequence[str]) -> dict[str, Mask]:
    return _lungs(mask) if plain_name(name) == _LUNGS else {structure_of(name, structures): mask}


def _lungs(mask: Mask) -> dict[str, Mask]:
    """Both lungs from one mask: its connected components by the half of the image in which their centres are. The left
    half of a frontal radiograph shows the patient's right side.
    """
    if not mask.any():
        raise InputError("mask 'lungs' is empty: leave out what the image does not show")
    parts = _parts(mask)
    sides = {"right lung": np.zeros_like(mask), "left lung": np.zeros_like(mask)}
    largest = dict.fromkeys(sides, 0)
    for part in np.unique(parts[mask]):
        pixels = parts == part
        side = "right lung" if np.nonzero(pixels)[1].mean() < (mask.shape[1] - 1) / 2 else "left lung"
        sides[side] |= pixels
        largest[side] = max(largest[side], int(pixels.sum()))
    if min(largest.values()) <= _SMALLER_LUNG * max(largest.values()):
        raise InputError(
            "mask 'lungs': not one lung in each half of the image; give 'left lung' and 'right lung' (the patient's "
            "sides) as separate masks"
        )
    return sides


def _parts(mask: Mask) -> NDArray[np.int64]:
    """Connected components (4-neighbours): (h, w) with the index of each component's first pixel; mask.size outside."""
    outside = mask.size
    part = np.where(mask, np.arange(outside).reshape(mask.shape), outside)
    while True:
        around = np.pad(part, 1, constant_values=outside)
        least = np.minimum.reduce([part, around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]])
        # The number is the index of a pixel in the component: following it halves the remaining path
        least = np.append(np.where(mask, least, outside), outside)[np.where(mask, least, outside)]
        if (least == part).all():
            return part
        part = least


# ------------------------------------------------------------------------------------------------ boxes and numbers


def _from_coco(value: Mapping[str, Any], origin: str) -> Annotation:
    images, items, kinds = (value.get(key) for key in ("images", "annotations", "categories"))
    if not all(isinstance(part, list) and all(isinstance(i, Mapping) for i in part) for part in (images, items, kinds)):
        raise InputError(f"{origin}: expected a list of boxes, or COCO with lists images, annotations and categories")
    assert images is not None
    assert items is not None
    assert kinds is not None
    if len(images) != 1:
        raise InputError(f"{origin}: {len(images)} images; expected one: take the annotations of one image")
    if not items:
        raise InputError(f"{origin}: no boxes; leave them out to generate without")
    width, height = images[0].get("width"), images[0].get("height")
    if not all(_is_side(side) for side in (width, height)):
        raise InputError(f"{origin}: image of {width!r} x {height!r}; expected its width and height in pixels")
    names = {str(kind.get("id")): kind.get("name") for kind in kinds}
    if len(names) < len(kinds):
        raise InputError(f"{origin}: duplicate category id; expected a different id for each category")
    if min(width, height) > 1 and all(_is_share(item.get("bbox")) for item in items):
        raise InputError(
            f"{origin}: every bbox lies in the first pixel, {items[0].get('bbox')}; COCO has pixels: multiply shares "
            "by width and height, or give a list of boxes"
        )
    boxes: list[Box] = []
    for number, item in enumerate(items):
        where = f"{origin}: box {number}"
        if item.get("image_id") != images[0].get("id"):
            raise InputError(f"{where}: belongs to image {item.get('image_id')!r}, expected {images[0].get('id')!r}")
        kind = str(item.get("category_id"))
        if kind not in names:
            raise InputError(
                f"{where}: category {kind[:40]} is not among the file's categories, expected one of {', '.join(names)}"
            )
        boxes.append(_box(names[kind], item.get("bbox"), (width, height), where))
    return Annotation(boxes=tuple(boxes), size=(height, width))


def _is_side(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 < int(value) <= MAX_SIDE


def _is_share(bbox: Any) -> bool:
    """Whether a box of pixels would end within the first one."""
    sides = list(bbox) if isinstance(bbox, list | tuple) and len(bbox) == 4 else [math.nan]
    if not all(isinstance(side, int | float) for side in sides):
        return False
    return 0 < sides[-1] <= 1 and sides[0] + sides[2] <= 1 and sides[1] + sides[3] <= 1


def _box(label: Any, bbox: Any, scale: tuple[int, int], where: str) -> Box:
    if not isinstance(label, str):
        raise InputError(f"{where}: no class; expected a name as its label, such as {', '.join(BOX_CLASSES)}")
    try:
        if not isinstance(bbox, list | tuple) or any(isinstance(side, str | bool) for side in bbox):
            raise TypeError
        x, y, w, h = (float(side) for side in bbox)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: bbox is {str(bbox)[:60]}; expected four numbers: x, y, width, height") from None
    name = plain_name(label)
    x, w = _cut(x / scale[0], w / scale[0], where)
    y, h = _cut(y / scale[1], h / scale[1], where)
    try:
        return Box(_CLASS_ALIASES.get(name, name), x, y, w, h)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _cut(start: float, length: float, where: str) -> tuple[float, float]:
    """A span in shares of the image, cut at its edges where it reaches over them by a few pixels; that is logged."""
    end = start + length
    over = max(-start, end - 1)
    if not OUTSIDE < over <= _OVER_EDGE:
        return start, length
    logger.warning("%s: reaches over the image's edge by %.2g %% of its side; cut there", where, 100 * over)
    start = max(start, 0.0)
    return start, min(end, 1.0) - start
