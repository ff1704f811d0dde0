"""A page of random images of a manifest, with their texts, labels and annotations, to see what a data set holds.

It shows patients: it is written where it is asked for, never inside a repository.
"""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.annotation_files import read_masks
from xgem.data.manifest import Manifest
from xgem.data.rows import SPLITS, Row
from xgem.data.transforms import evened, read_with, resize
from xgem.types import InputError, OutputError
from xgem.utils.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE: Final = 320
_TEXT, _LINE = 300, 13  # width of the texts beside an image, height of a line, in pixels
_COLOURS: Final = ("#e6550d", "#3182bd", "#31a354", "#756bb1", "#d6bd00", "#17becf")
_PAGE: Final = """<!doctype html>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 14px/1.4 sans-serif; background: #fff; color: #111; margin: 2em }
div { display: grid; grid-template-columns: {{ side }}px 1fr; gap: 1em; margin: 1em 0 }
dl { margin: 0 } dt { font-weight: bold } dd { margin: 0 0 .4em }
</style>
<h1>{{ title }}</h1>
{% for picture, fields in items %}
<div><img src="data:image/png;base64,{{ picture }}" alt=""><dl>
{% for name, text in fields.items() %}<dt>{{ name }}</dt><dd>{{ text }}</dd>
{% endfor %}</dl></div>
{% endfor %}
"""


def write_page(manifest: Manifest, out: Path, *, count: int = 12, split: str | None = None, seed: int = 0) -> None:
    """Write ``count`` random images as ``.html``, each complete with its texts, or as ``.png``, texts cut to fit.

    Masks are outlined and boxes drawn, a colour each. Pixels that are not square are shown as such, by the spacing.

    Raises:
        InputError: another ending, an unknown split, or no images. ImageError: one cannot be read.
        OutputError: ``out`` lies in a git repository, or cannot be written.
    """
    kind = out.suffix.lower()
    if kind not in (".html", ".png"):
        raise InputError(f"{out}: expected a page that ends in .html or .png")
    inside = next((folder for folder in out.resolve().parents if (folder / ".git").exists()), None)
    if inside is not None:
        raise OutputError(f"{out}: lies in the repository {inside}, and shows patients; write it elsewhere")
    if split is not None and split not in SPLITS:
        raise InputError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    rows = [row for row in manifest.rows if row.file is not None and split in (None, row.split)]
    if not rows:
        raise InputError(f"the manifest has no images{f' in split {split}' if split else ''} to show")
    drawn = random.Random(seed).sample(rows, min(count, len(rows)))
    items = [(_picture(manifest, row), _fields(row)) for row in drawn]
    with replacing(out) as partial:
        if kind == ".html":
            partial.write_text(_html(items, f"{len(drawn)} of {len(rows)} images"), encoding="utf-8")
        else:
            _sheet(items).save(partial, format="PNG")


def _fields(row: Row) -> dict[str, str]:
    fields = {
        "study": row.study,
        "view": f"{row.view or 'unknown view'}{' (guessed)' if row.view_guessed else ''}, {row.split}",
        "patient": ", ".join(part for part in (row.sex or "", "" if row.age is None else f"{row.age:g} years") if part),
        "labels": ", ".join(row.labels),
        "findings": row.findings,
        "impression": row.impression,
        "severity": "" if row.severity is None else f"{row.severity:g}",
        "annotations": ", ".join((*row.masks, *(box.label for box in row.boxes))),
    }
    return {name: text for name, text in fields.items() if text}


def _picture(manifest: Manifest, row: Row) -> Image:
    """The image, its longer side :data:`SIDE`, with outlines of masks and boxes."""
    from PIL import Image, ImageColor, ImageDraw

    file = manifest.file(row)
    assert file is not None
    image = read_with(file, reading=row.reading)
    pixels = evened(image.pixels, image.aspect, name=image.origin)
    scale = SIDE / max(pixels.shape)
    size = (max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale)))
    grey = np.rint(np.clip(resize(pixels, size, "area"), 0, 1) * 255).astype(np.uint8)
    shown = np.repeat(grey[:, :, None], 3, axis=2)
    for number, (structure, files) in enumerate(manifest.masks(row).items()):
        colour = ImageColor.getrgb(_COLOURS[number % len(_COLOURS)])
        for path in files:
            for mask in read_masks({structure: path}, (structure,)).masks.values():
                shown[_outline(mask, size)] = colour[:3]
    picture = Image.fromarray(shown)
    draw = ImageDraw.Draw(picture)
    for number, box in enumerate(row.boxes):
        corners = (box.x * size[1], box.y * size[0], (box.x + box.w) * size[1] - 1, (box.y + box.h) * size[0] - 1)
        draw.rectangle(corners, outline=_COLOURS[number % len(_COLOURS)], width=2)
        draw.text((corners[0] + 3, corners[1] + 2), box.label, fill=_COLOURS[number % len(_COLOURS)])
    return picture


def _outline(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a mask, at another size, that have a neighbour outside."""
    rows = (np.arange(size[0]) * mask.shape[0]) // size[0]
    columns = (np.arange(size[1]) * mask.shape[1]) // size[1]
    small = np.pad(mask[np.ix_(rows, columns)], 1)
    inner = small[:-2, 1:-1] & small[2:, 1:-1] & small[1:-1, :-2] & small[1:-1, 2:]
    return small[1:-1, 1:-1] & ~inner


def _html(items: list[tuple[Image, dict[str, str]]], title: str) -> str:
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(title=title, side=SIDE, items=[(_encoded(picture), fields) for picture, fields in items])


def _encoded(picture: Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _sheet(items: list[tuple[Image, dict[str, str]]]) -> Image:
    """Two columns of images with their texts to the right."""
    from textwrap import wrap

    from PIL import Image, ImageDraw

    columns = min(2, len(items))
    lines = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + _TEXT), lines * (SIDE + _LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, fields) in enumerate(items):
        x, y = (number % columns) * (SIDE + _TEXT), (number // columns) * (SIDE + _LINE)
        sheet.paste(picture, (x, y))
        text = [line for name, value in fields.items() for line in wrap(f"{name}: {value}", _TEXT // 7)]
        draw.multiline_text((x + SIDE + 6, y), "\n".join(text[: SIDE // _LINE - 1]), fill="black", spacing=2)
    return sheet
