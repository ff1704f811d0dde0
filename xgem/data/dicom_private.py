"""The private block (PS3.5, 7.8.1) in which xgem keeps what its DICOM objects are made from, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xgem.types import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

GROUP: Final = 0x0099
CREATOR: Final = "XGEM"
METADATA: Final = 0x01
"""JSON: the sample's metadata, as in a PNG that xgem writes."""
CONTENT: Final = 0x02
"""A report's text exactly as generated; of boxes, COCO as JSON."""


def put_text(ds: Dataset, element: int, text: str) -> None:
    """Store ``text`` in xgem's private block."""
    ds.private_block(GROUP, CREATOR, create=True).add_new(element, "UT", text)


def text_in(ds: Dataset, element: int) -> str | None:
    """The text of an element of xgem's private block; None where there is none.

    Raises:
        InputError: it is not text.
    """
    try:
        value = ds.private_block(GROUP, CREATOR)[element].value
    except KeyError:
        return None
    if isinstance(value, bytes):  # an archive that stores implicit VRs knows no private ones
        try:
            value = value.decode("utf-8").rstrip(" \0")
        except UnicodeDecodeError as error:
            raise InputError("the private block of xgem holds no text; expected a file as xgem wrote it") from error
    return str(value)
