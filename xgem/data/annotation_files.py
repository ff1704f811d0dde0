"""Reading annotations (masks, boxes, severity), and writing masks and boxes as training data.

The values of a mask image are labels, so nothing is scaled or repaired: a mask that was smoothed or saved as JPEG is an
``InputError``. ``xgem.data.annotations`` defines the annotations and checks their contents; ``check_known`` refuses
names that a model does not have.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.data.annotations import MAX_SEVERITY, Annotation, Box
from xgem.data.demographics import number_up_to
from xgem.data.read import file_bytes, sniff
from xgem.data.transforms import MAX_SIDE
from xgem.labels.spatial import BOX_CLASSES, STRUCTURES, in_order, plain_name
from xgem.types import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

LABELS_KEY = "Structures"
"""Key of the PNG text that declares the image's values to be labels and names them."""
_STRUCTURE_ALIASES = {"ground glass opacities": "ground glass opacity", "devices": "device"}
_CLASS_ALIASES = {"infiltration": "infiltrate", "pleural effusion": "effusion"}
_LUNGS = "lungs"  # one mask of both lungs
_MASK_FILES = "a mask as PNG, TIFF, BMP or .npy"
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
            an array or a tensor. "lungs" is one mask of both lungs: its parts left and right of the image's middle are
            the patient's right and left lung. An image of only 0 and 1 counts as binary, unless it is a PNG that
            names its labels, as written by ``write_labels``; from such a PNG in a mapping, the named structure is used.
        structures: the names for labels and files. A mapping may name any structure.

    Raises:
        InputError: unreadable, neither binary nor labels, a structure is missing or duplicate, lungs that cannot be
            separated, or anything that ``Annotation`` refuses.
    """
    if isinstance(value, Mapping):
        return Annotation(_of_mapping(value, structures))
    stored, origin, labels = _stored(value)
    values = np.unique(stored)
    if not values.any():
        raise InputError(f"{origin}: an empty mask (0 everywhere); leave out what the image does not show")
    if labels is not None:
        return Annotation(_of_labels(stored, origin, labels))
    if len(values) <= 2:
        name = structure_of(Path(origin).stem.rpartition(".")[2], structures)
        if name == _LUNGS or name in structures:
            return Annotation(_named(name, _binary(stored, origin), structures))
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
            with one of these.

    Raises:
        InputError: unreadable or malformed, no boxes, several images, or anything that ``Box`` refuses.
    """
    origin = "boxes"
    if isinstance(value, str | os.PathLike):
        origin = os.fspath(value)
        data = file_bytes(Path(origin), "JSON, a list of boxes or COCO")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{origin}: not JSON ({_brief(error)}); expected a list of boxes, or COCO") from error
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
        stored, origin, labels = _stored(source)
        if labels is None:
            of_name = _named(str(name), _binary(stored, origin), structures)
        else:
            of_name = _labelled(str(name), _of_labels(stored, origin, labels), origin, structures)
        if masks.keys() & of_name.keys():
            raise InputError(f"mask {name!r}: duplicate structure, expected one mask for each")
        masks.update(of_name)
    return masks


def _stored(source: Any) -> tuple[NDArray[Any], str, dict[int, str] | None]:
    """An image's (h, w) values as stored, its file or "mask", and the labels that it names, if any."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, str | os.PathLike):
        origin = os.fspath(source)
        data = file_bytes(Path(origin), _MASK_FILES)
        if sniff(data) == "npy":
            try:
                array = np.load(io.BytesIO(data), allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise InputError(f"{origin}: not a usable .npy file ({_brief(error)}); save it again") from error
            return _plane(array, origin), origin, None
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "TIFF", "BMP", "PPM", "JPEG")) as image:
                return _of_image(image, origin), origin, _labels_of(image, origin)
        except InputError:
            raise
        except UnidentifiedImageError:
            raise InputError(f"{origin}: not an image; expected {_MASK_FILES}") from None
        # What decoders raise for damaged files
        except (OSError, SyntaxError, ValueError, EOFError, TypeError, Image.DecompressionBombError) as error:
            raise InputError(f"{origin}: not a readable mask ({_brief(error)}); expected PNG or .npy") from error
    if isinstance(source, Image.Image):
        try:
            return _of_image(source, "mask"), "mask", _labels_of(source, "mask")
        except OSError as error:  # a lazily opened file turns out to be damaged
            raise InputError(f"mask: damaged image ({_brief(error)}); get the file again") from error
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if not isinstance(source, np.ndarray):
        raise InputError(
            f"cannot read a {type(source).__name__} as a mask; expected a path, PIL image, array, tensor, or a mapping "
            "from structure to these"
        )
    return _plane(source, "mask"), "mask", None


def _labels_of(image: Any, origin: str) -> dict[int, str] | None:
    """The labels named in a PNG by ``write_labels``: ``"1 left lung, 2 right lung"``."""
    text = image.info.get(LABELS_KEY)
    if text is None:
        return None
    numbers: dict[int, str] = {}
    for entry in str(text).split(", "):
        number, _, name = entry.partition(" ")
        if not number.isdecimal() or name != plain_name(name) or not name:
            raise InputError(f"{origin}: its text {LABELS_KEY!r} is {str(text)[:60]!r}, expected '1 left lung, ...'")
        numbers[int(number)] = name
    return numbers


def _of_image(image: Any, origin: str) -> NDArray[Any]:
    from PIL import ImageOps

    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{origin}: has {image.n_frames} frames; expected one image")
    image = ImageOps.exif_transpose(image)
    if image.mode == "LA":
        image = image.getchannel("L")
    return _plane(np.asarray(image.convert("RGB") if image.mode == "RGBA" else image), origin)


def _plane(array: NDArray[Any], origin: str) -> NDArray[Any]:
    if array.ndim == 3 and array.shape[-1] == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or not array.size:
        raise InputError(f"{origin}: shape {array.shape}; expected one grey image, (h, w)")
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise InputError(f"{origin}: type {array.dtype} or values that are not numbers; expected a mask of integers")
    return array


def _binary(stored: NDArray[Any], origin: str) -> Mask:
    values = np.unique(stored)
    if len(values) > 2 or (0 not in values):
        what = f"{len(values)} values" if len(values) > 1 else f"{values[0]:g} everywhere"
        raise InputError(
            f"{origin}: not a binary mask, {what}; expected 0 and one other value, saved without smoothing, as PNG"
        )
    return stored != 0


def _of_labels(stored: NDArray[Any], origin: str, labels: Mapping[int, str]) -> dict[str, Mask]:
    values = np.unique(stored)
    unknown = [number for number in values if number and number not in labels]
    if unknown:
        raise InputError(
            f"{origin}: {len(values)} values, including {unknown[0]:g}; expected a binary mask (0 and one other "
            f"value), or labels from 0 to {max(labels)}; save masks without smoothing, as PNG"
        )
    return {labels[int(number)]: stored == number for number in values if number}


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
    try:
        return Box(_CLASS_ALIASES.get(name, name), x / scale[0], y / scale[1], w / scale[0], h / scale[1])
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
