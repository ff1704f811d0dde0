"""The same form for every arm: pictures on one grid in files of one length, reports in one way of writing.

What is left to tell an item by is what the picture shows and what the report says: that is judged. A picture's
sharpness, noise and grey levels are its own, and are not evened out.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from xgem.data.cleaning import clean_report
from xgem.data.sets import Item
from xgem.data.transforms import evened, pad_square, read_with, resize
from xgem.types import InputError
from xgem.utils.progress import track

Fit = Literal["pad", "crop"]
_MARKS: Final = re.compile(r"X{3,}|_{2,}")
_SENTENCE: Final = re.compile(r"(^|[.!?:]\s+)([^\W\d_])")
_SAME: Final = str.maketrans("\u2018\u2019\u201c\u201d\u2010\u2011\u2013\u2014", "''\"\"----")


def common_size(items: Iterable[Item], fit: Fit, size: int | None) -> int:
    """The side of the grid: ``size``, or that of the smallest picture; no picture is ever enlarged.

    Raises:
        InputError: a picture is smaller than ``size``; names it. ImageError: one cannot be read.
    """
    smallest: tuple[int, Item] | None = None
    for item in track(list(items), "sizes of pictures"):
        side = min(_square(item, fit).shape)
        if smallest is None or side < smallest[0]:
            smallest = (side, item)
    if smallest is None:
        raise InputError("no pictures: a grid needs some")
    if size is not None and smallest[0] < size:
        raise InputError(
            f"size {size}: {smallest[1].file} has {smallest[0]} pixels a side, and enlarging would tell it from the "
            "others; leave size out, or state a smaller one"
        )
    return smallest[0] if size is None else size


def blind_picture(item: Item, fit: Fit, size: int) -> bytes:
    """The picture as a PNG of (size, size), 8 bit grey, without metadata and without compression.

    Stored pixels have the same length whatever they show: files of one size are of one length, chunk by chunk.
    """
    from PIL import Image

    pixels = resize(_square(item, fit), (size, size), "area")
    grey: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="PNG", compress_level=0)
    return stream.getvalue()


def _square(item: Item, fit: Fit) -> NDArray[np.float32]:
    """(s, s) in [0, 1]: square pixels, then black margins around the picture, or its centre."""
    assert item.file is not None
    image = read_with(item.file, reading=item.reading)
    pixels = evened(image.pixels, image.aspect, name=image.origin)
    if fit == "pad":
        return pad_square(pixels)
    side = min(pixels.shape)
    top, left = ((length - side) // 2 for length in pixels.shape)
    return pixels[top : top + side, left : left + side]


def has_marks(report: str) -> bool:
    """Whether a report has de-identification marks (``XXXX``, ``___``), which generated ones have not."""
    return _MARKS.search(report) is not None


def plain_report(report: str) -> str:
    """A report as all arms show it: cleaned, one kind of quotes and dashes, sentence case.

    :func:`xgem.data.cleaning.clean_report` takes de-identification marks and numbering out. Capitals inside a sentence
    go too ("CT" becomes "ct"): generators differ in them.
    """
    text = unicodedata.normalize("NFKC", report).translate(_SAME)
    lowered = clean_report(text).lower()
    return _SENTENCE.sub(lambda match: match[1] + match[2].upper(), lowered)
