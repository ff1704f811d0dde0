"""Drawn DICOM radiographs of a patient with spacing, and generations of tiny checkpoints saved as DICOM."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from xgem.pipeline.generation import Generation
from xgem.pipeline.pipeline import XgemPipeline

QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False, "seed": 7}
TEXT = "Large left pleural effusion."
SECRET = {"PatientName": "Rossi^Ada", "PatientID": "PID-77", "PatientBirthDate": "19310405", "PatientSex": "F"}
ELSEWHERE = {"InstitutionName": "Ospedale", "AccessionNumber": "ACC-12", "ReferringPhysicianName": "Bianchi^Ugo"}
BOXES = [
    {"label": "pneumonia", "bbox": [0.1, 0.5, 0.3, 1 / 3]},
    {"label": "mass", "bbox": [0.55, 0.2, 0.123456789, 0.25]},
]


def write_dicom(path: Path, *, spacing: tuple[float, float] | None = (0.5, 0.5), seed: int = 0, **tags: Any) -> Path:
    """A smooth synthetic frontal (96 x 80, 12 bits) of a made-up patient."""
    y, x = np.mgrid[0:96, 0:80] / 96
    phase = np.random.default_rng(seed).uniform(0, 6)
    stored = (2048 + 2000 * np.sin(6 * x + phase) * np.cos(4 * y)).astype(np.uint16)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = (f"1.2.3.{seed}.{part}" for part in (1, 2, 3))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = UID(ds.SOPInstanceUID)
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.PhotometricInterpretation, ds.SamplesPerPixel = "MONOCHROME2", 1
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = stored.tobytes()
    if spacing is not None:
        ds.ImagerPixelSpacing = list(spacing)
    for name, value in {**SECRET, **ELSEWHERE, **tags}.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def masks(side: int = 64) -> dict[str, np.ndarray]:
    """Lungs, and an opacity that overlaps one of them."""
    right = np.zeros((side, side), bool)
    right[10:50, 6:26] = True
    opacity = np.zeros((side, side), bool)
    opacity[40:55, 10:20] = True
    return {"right lung": right, "left lung": right[:, ::-1].copy(), "consolidation": opacity}


class Made(NamedTuple):
    """A generation, and the folder that it was saved in as DICOM."""

    generation: Generation
    folder: Path


@pytest.fixture(scope="session")
def pipeline(debug_checkpoint: Path) -> XgemPipeline:
    return XgemPipeline.from_pretrained(debug_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def control(chexgen_checkpoint: Path) -> XgemPipeline:
    return XgemPipeline.from_pretrained(chexgen_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def cxr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dicom(tmp_path_factory.mktemp("input") / "cxr.dcm")


@pytest.fixture(scope="session")
def views(pipeline: XgemPipeline, cxr: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two samples each of lateral and report, from a frontal: secondary captures and reports."""
    made = pipeline({"frontal": cxr}, ["lateral", "report"], num_samples=2, **QUICK)
    folder = tmp_path_factory.mktemp("views") / "out"
    made.save(folder, format="dicom")
    return Made(made, folder)


@pytest.fixture(scope="session")
def annotated(control: XgemPipeline, cxr: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A frontal that starts from an image of known spacing and follows masks and boxes: DX, SEG and SR."""
    inputs = {"report": TEXT, "mask": masks(), "boxes": {**coco_of(BOXES)}}
    made = control(inputs, "frontal", image={"frontal": cxr}, **QUICK)
    folder = tmp_path_factory.mktemp("annotated") / "out"
    made.save(folder, format="dicom")
    return Made(made, folder)


def coco_of(boxes: list[dict[str, Any]], side: int = 64) -> dict[str, Any]:
    from xgem.data.annotation_files import coco
    from xgem.data.annotations import Box

    return coco([Box(one["label"], *one["bbox"]) for one in boxes], side, side, "cxr.dcm")


@pytest.fixture(scope="session")
def program() -> Callable[..., str]:
    """Runs a program of dcmtk or dicom3tools on a file and gives what it printed; skips where it is not installed."""

    def run(name: str, file: Path) -> str:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        done = subprocess.run([name, str(file)], capture_output=True, text=True, errors="replace", timeout=60)
        assert done.returncode == 0 or name == "dciodvfy", done.stderr
        return done.stdout + done.stderr

    return run
