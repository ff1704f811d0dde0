"""The same form for every arm: pictures on one grid in files of one length, reports in one way of writing.

What is left to tell an item by is what the picture shows and what the report says: that is judged. A picture's
sharpness, noise and grey levels are its own, and are not evened out.
"""

from __future__ import annotations

import io
import re
import statistics
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from xgem.data.cleaning import clean_report
from xgem.data.sections import joined_sections
from xgem.data.sets import Item
from xgem.data.transforms import evened, pad_square, read_with, resize
from xgem.types import InputError
from xgem.utils.progress import track

Fit = Literal["pad", "crop"]
Grey = NDArray[np.uint8]
_MUCH: Final = 0.5
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


def blind_picture(item: Item, fit: Fit, size: int) -> Grey:
    """The picture on the grid, (size, size) in 8 bit grey.

    Raises:
        ImageError: the image cannot be read.
    """
    pixels = resize(_square(item, fit), (size, size), "area")
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def as_png(picture: Grey) -> bytes:
    """A PNG file without metadata and without compression.

    Stored pixels have the same length whatever they show: files of one size are of one length, chunk by chunk.
    """
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", compress_level=0)
    return stream.getvalue()


def has_margin(picture: Grey) -> bool:
    """Whether a whole row or column at the edge is of one grey level, as black margins are."""
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    return any(int(edge.max()) == int(edge.min()) for edge in edges)


def tells(margins: Mapping[tuple[str, str], Sequence[bool]], words: Mapping[str, Sequence[int]]) -> list[str]:
    """A line for what readers would learn within a task: margins and lengths that are an arm's own.

    Args:
        margins: by part and arm, which pictures :func:`has_margin`; half of them more than of another arm is much.
        words: by arm, numbers of words of reports; a median half as high again as another arm's is much.
    """
    lines: list[str] = []
    for part in dict.fromkeys(part for part, _ in margins):
        shares = {arm: sum(seen) / len(seen) for (of, arm), seen in margins.items() if of == part}
        most, least = max(shares, key=lambda arm: shares[arm]), min(shares, key=lambda arm: shares[arm])
        if shares[most] - shares[least] >= _MUCH:
            lines.append(
                f"{part}: {shares[most]:.0%} of {most} have a margin of one grey level, of {least} "
                f"{shares[least]:.0%}: readers will tell them by it (fit: crop cuts margins around an image)"
            )
    medians = {arm: statistics.median(counts) for arm, counts in words.items()}
    if medians and max(medians.values()) >= (1 + _MUCH) * min(medians.values()):
        shown = ", ".join(f"{arm} {count:g}" for arm, count in medians.items())
        lines.append(
            f"report: medians of words are {shown}: readers will tell them by it (sections chooses the real ones)"
        )
    return lines


def _square(item: Item, fit: Fit) -> NDArray[np.float32]:
    """(s, s) in [0, 1]: square pixels, then the centre of the picture, or black margins around it."""
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
    """A report as all arms show it: cleaned, without headings, one kind of quotes and dashes, sentence case.

    :func:`xgem.data.cleaning.clean_report` takes de-identification marks and numbering out. Capitals inside a sentence
    go too ("CT" becomes "ct"): generators differ in them.
    """
    text = " ".join(joined_sections(unicodedata.normalize("NFKC", report).translate(_SAME)))
    lowered = clean_report(text).lower()
    return _SENTENCE.sub(lambda match: match[1] + match[2].upper(), lowered)
