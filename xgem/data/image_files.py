"""The images of a data set's folder, found by the names that its tables give them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import Image, UnidentifiedImageError

from xgem.types import DataError

IMAGE_ENDINGS: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".npy", ".jp2", ".webp"}
)
_SIDEWAYS: Final = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height
_ORIENTATION: Final = 0x0112


class ImageFiles:
    """Every image file below ``folder``; the endings only select, reading decides by content.

    Hidden files and the copies that archives of macOS hold (``._x.png``, ``__MACOSX``) are no images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_ENDINGS and is_data(path.relative_to(folder)):
                self._by_name.setdefault(path.name, []).append(path)
                self._by_stem.setdefault(path.stem, []).append(path)

    def __len__(self) -> int:
        return sum(map(len, self._by_name.values()))

    def __iter__(self) -> Iterator[Path]:
        return chain.from_iterable(self._by_name.values())

    def find(self, name: str, *, any_ending: bool = False) -> Path | None:
        """The file that a table calls ``name``: a path from the folder, or the name of a file anywhere below it.

        Args:
            any_ending: a file of that name with another ending will do.

        Raises:
            DataError: several files have the name, and no path says which.
        """
        exact = self.folder / name
        if exact.is_file():
            return exact
        base = PurePosixPath(name.replace("\\", "/"))
        found = self._by_name.get(base.name, [])
        if not found and any_ending:
            found = self._by_stem.get(base.stem, [])
        ends = [path for path in found if path.as_posix().endswith(f"/{base}")] or found
        if len(ends) > 1:
            places = " and ".join(str(path.relative_to(self.folder).parent) for path in ends[:3])
            raise DataError(
                f"{self.folder}: {base.name} is in {places}; keep one of them, or write its folder into the table"
            )
        return ends[0] if ends else None

    def found(self, names: Iterable[str], *, any_ending: bool = False) -> dict[str, Path]:
        """The files of those ``names`` that are there; DataError as :meth:`find`."""
        places = {name: self.find(name, any_ending=any_ending) for name in names}
        return {name: path for name, path in places.items() if path is not None}


def is_data(path: Path) -> bool:
    """Whether a path from a data set's folder is neither hidden nor a copy that an archive of macOS holds."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG or JPEG by its header, as it is shown: upright where EXIF says that it lies.

    Raises:
        DataError: it has none.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from error
