"""Boxes by their corners; masks that are run lengths or outlines, written as files beside the manifest that names them.

A mask of an image is ``<root>/<source>-masks/<image>.<structure>.png``, a PNG of 1 bit on the image's grid. Nothing is
written before all rows of a source are known to be right, and a file that holds the mask already is left as it is.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from xgem.data.annotations import Box
from xgem.data.headers import is_dicom, read_header, text_of
from xgem.data.image_files import image_size
from xgem.data.manifest import place
from xgem.data.transforms import resize
from xgem.labels.spatial import plain_name
from xgem.types import DataError
from xgem.utils.files import replacing
from xgem.utils.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

logger = logging.getLogger(__name__)

Size = tuple[int, int]
"""Height and width."""
Kind = Literal["rectangle", "ellipse", "polygon"]
Points = Sequence[tuple[float, float]]
"""x and y of the corners of an outline, in pixels from the image's upper left corner."""
Corners = tuple[float, float, float, float]
"""x and y of the upper left corner, then of the lower right one, in pixels."""
_ALIKE = 0.01  # by how much aspect ratios of an image and its mask may differ, due to rounding


@dataclass
class Cutter:
    """Makes boxes of corners, and counts those that reach over the edge of their image, and those that lie outside."""

    cut: int = 0
    outside: int = 0

    def box(self, label: str, corners: Corners, size: Size) -> Box | None:
        """A class's box on an image of ``size``, cut at its edges; None if nothing of it is left."""
        height, width = size
        left, right = (min(max(x, 0), width) for x in corners[::2])
        top, bottom = (min(max(y, 0), height) for y in corners[1::2])
        if not (left < right and top < bottom):
            self.outside += 1
            return None
        self.cut += (left, top, right, bottom) != corners
        return Box(plain_name(label), left / width, top / height, (right - left) / width, (bottom - top) / height)

    def warn(self, source: str) -> None:
        """Say how many, if any."""
        if self.cut:
            logger.warning("%s: %d boxes reach over the edge of their image and are cut there", source, self.cut)
        if self.outside:
            logger.warning("%s: %d boxes have no area in their image and are left out", source, self.outside)


class Drawing(Protocol):
    """What a mask is drawn from."""

    def mask(self, size: Size) -> Mask:
        """The mask (h, w) on the grid of an image of ``size``."""
        ...


@dataclass(frozen=True)
class Runs:
    """Run lengths over the columns of an image of ``size``: ``starts`` and ``ends`` (n,) count pixels downwards."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    size: Size

    @classmethod
    def relative(cls, text: str, size: Size, where: str) -> Runs:
        """From pairs of numbers: pixels since the end of the run before, and the run's length (SIIM-ACR 2019).

        Raises:
            DataError: not pairs of whole numbers, a run without length, or one beyond the image.
        """
        try:
            numbers = np.array([int(word) for word in text.split()], dtype=np.int64)
        except (ValueError, OverflowError):
            numbers = np.zeros(0, dtype=np.int64)
        if not len(numbers) or len(numbers) % 2:
            raise DataError(f"{where}: run lengths are {text!r:.60}; expected pairs of numbers, or -1 for none")
        gaps, lengths = numbers[::2], numbers[1::2]
        ends = np.cumsum(gaps + lengths)
        if gaps.min() < 0 or lengths.min() <= 0 or ends[-1] > size[0] * size[1]:
            raise DataError(f"{where}: a run has no length, or lies beyond the image of {size[1]} x {size[0]} pixels")
        return cls(ends - lengths, ends, size)

    def mask(self, size: Size) -> Mask:
        """As stated where the image has the size of the runs; otherwise the pixels that it covers by half or more."""
        steps = np.zeros(self.size[0] * self.size[1] + 1, dtype=np.int8)
        np.add.at(steps, self.starts, 1)
        np.add.at(steps, self.ends, -1)
        drawn = (np.cumsum(steps[:-1]) > 0).reshape(self.size[::-1]).T
        if size == self.size:
            return drawn
        covered = resize(drawn.astype(np.float32), size, "area")
        return covered >= min(0.5, float(covered.max()))


@dataclass(frozen=True)
class Shape:
    """A rectangle or an ellipse by two opposite corners, or a polygon; ``points`` in pixels."""

    kind: Kind
    points: Points

    def mask(self, size: Size) -> Mask:
        """Pixels inside the outline and on it; where it is too small for any, the one in the middle of its extent."""
        from PIL import Image, ImageDraw

        height, width = size
        image = Image.new("1", (width, height))
        draw = ImageDraw.Draw(image)
        points = [(float(x), float(y)) for x, y in self.points]
        if self.kind == "polygon":
            draw.polygon(points, fill=1, outline=1)
        else:
            {"rectangle": draw.rectangle, "ellipse": draw.ellipse}[self.kind](points, fill=1, outline=1)
        if image.getbbox() is None:
            across, down = zip(*points, strict=True)
            left, right = max(min(across), 0), min(max(across), width)
            top, bottom = max(min(down), 0), min(max(down), height)
            if left < right and top < bottom:
                image.putpixel((int((left + right) / 2), int((top + bottom) / 2)), 1)
        return np.asarray(image)


class MaskFiles:
    """The masks of a source's images, named while its rows are made (:meth:`add`) and written after (:meth:`write`)."""

    def __init__(self, root: Path, source: str) -> None:
        self.root = root
        self.folder = root / f"{source}-masks"
        self._drawn: dict[Path, tuple[Size, tuple[Drawing, ...]]] = {}

    def add(self, image: Path, size: Size, structure: str, drawings: Sequence[Drawing]) -> tuple[str, ...]:
        """The file of a structure's mask on an image of ``size``, the union of the drawings, as a row names it.

        Raises:
            DataError: another image of this name has such a mask.
        """
        file = self.folder / f"{image.stem}.{structure.replace(' ', '_')}.png"
        if file in self._drawn:
            raise DataError(f"{image}: another image of this name has a mask of {structure}; name them differently")
        self._drawn[file] = (size, tuple(drawings))
        return (place(file, self.root),)

    def write(self) -> None:
        """Write the masks that are not there yet.

        Raises:
            DataError: a mask is empty. OutputError: a file cannot be written.
        """
        from PIL import Image

        for file, (size, drawings) in track(list(self._drawn.items()), "writing masks"):
            mask = np.logical_or.reduce([drawing.mask(size) for drawing in drawings])
            if not mask.any():
                raise DataError(f"{file.name}: the mask covers no pixel of its image; correct or remove it")
            stream = io.BytesIO()
            Image.fromarray(mask).save(stream, format="PNG")
            if file.is_file() and file.read_bytes() == stream.getvalue():
                continue
            with replacing(file) as partial:
                partial.write_bytes(stream.getvalue())


def stored_size(image: Path) -> Size:
    """Height and width of an image's grid, by its header.

    Raises:
        DataError: no image, or a DICOM file without them. ImageError: a damaged DICOM file.
    """
    if not is_dicom(image):
        width, height = image_size(image)
        return height, width
    header = read_header(image)
    rows, columns = text_of(header, "Rows"), text_of(header, "Columns")
    if not (rows.isdigit() and columns.isdigit()):
        raise DataError(f"{image}: its header has no Rows and Columns; get the file again")
    return int(rows), int(columns)


def check_scale(image: Path, size: Size, annotated: Size) -> None:
    """Refuse an image of another shape than the one that its annotations are of.

    Raises:
        DataError: it is cropped or stretched.
    """
    if abs(size[0] * annotated[1] / (size[1] * annotated[0]) - 1) > _ALIKE:
        raise DataError(
            f"{image}: {size[1]} x {size[0]} pixels, but its annotations are of {annotated[1]} x {annotated[0]}; "
            "expected an image of that shape"
        )
