"""Synthetic images and DICOM files in many encodings; no real image is needed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import compress
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    generate_uid,
)

Chest = Callable[..., NDArray[Any]]
WriteDicom = Callable[..., Path]


def chest_like(height: int = 96, width: int = 80, bits: int = 8) -> NDArray[Any]:
    """A smooth asymmetric grey image that uses the whole range of its bits."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    body = 0.25 + 0.5 * np.exp(-((x - 0.4) ** 2 + (y - 0.6) ** 2) * 6) + 0.2 * x
    body = (body - body.min()) / np.ptp(body)
    return np.rint(body * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


@pytest.fixture(scope="session")
def chest() -> Chest:
    return chest_like


def dataset(stored: NDArray[Any], *, bits: int, photometric: str = "MONOCHROME2", **tags: Any) -> Dataset:
    """A CR dataset, explicit little endian, ready to be saved; ``tags`` are added or, when None, removed."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["synthetic"])
    ds.Modality, ds.BodyPartExamined = "CR", "CHEST"
    ds.PhotometricInterpretation = photometric
    ds.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    if stored.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.BitsAllocated = stored.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def _jpeg(ds: Dataset, stored: NDArray[Any]) -> None:
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, "JPEG", quality=98)
    ds.PixelData = encapsulate([stream.getvalue()])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit


def _by_gdcm(source: Path, syntax: UID) -> None:
    gdcm = pytest.importorskip("gdcm", reason="JPEG lossless and JPEG-LS are written by gdcm")
    kinds = {
        JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
    }
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(kinds[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(source))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.fixture
def write_dicom(tmp_path: Path) -> WriteDicom:
    """Writes an array as DICOM in a transfer syntax and returns the path."""

    def write(
        stored: NDArray[Any], *, bits: int = 8, syntax: UID = ExplicitVRLittleEndian, name: str = "x.dcm", **tags: Any
    ) -> Path:
        ds = dataset(stored, bits=bits, **tags)
        path = tmp_path / name
        if syntax == JPEGBaseline8Bit:
            _jpeg(ds, stored)
        elif syntax in (JPEGLosslessSV1, JPEGLSLossless):
            ds.save_as(path, enforce_file_format=True)
            _by_gdcm(path, syntax)
            return path
        elif syntax.startswith("1.2.840.10008.1.2.4") or syntax == "1.2.840.10008.1.2.5":
            compress(ds, syntax)
        else:
            ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(path, enforce_file_format=True)
        return path

    return write
