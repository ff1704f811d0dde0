"""What a DICOM object that xgem wrote holds: its metadata, and the sample itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xgem.data.dicom_private import CONTENT, METADATA, text_in
from xgem.data.headers import read_header
from xgem.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def metadata_text(path: Path) -> str:
    """The JSON text of the metadata in xgem's private block.

    Raises:
        InputError: damaged, or not written by xgem.
    """
    try:
        text = text_in(read_header(path), METADATA)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    if text is None:
        raise InputError(f"{path}: contains no xgem metadata: not written by xgem, or its private block was removed")
    return text


def sample_in(path: Path) -> Image | str:
    """The sample: an image of mode "L", exactly the pixels stored, or a report's text.

    Raises:
        InputError: an annotation of a sample, or damaged.
    """
    from PIL import Image

    header = read_header(path)
    if "PixelData" not in header:
        text = text_in(header, CONTENT) if header.SOPClassUID.name == "Basic Text SR Storage" else None
        if text is not None:
            return text
    elif header.get("Modality") != "SEG":
        try:
            return Image.fromarray(header.pixel_array)
        # The decoder raises whatever the damage leads to
        except Exception as error:
            raise InputError(f"{path}: its pixels cannot be read ({' '.join(str(error).split())[:120]})") from error
    raise InputError(f"{path}: is {header.SOPClassUID.name} of a sample; expected the image or report itself")
