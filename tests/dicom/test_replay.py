"""DICOM files that xgem wrote are replayed, and used again as inputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from tests.dicom.conftest import QUICK, TEXT, Made
from xgem.data.annotation_files import read_boxes
from xgem.pipeline.generation import read_metadata
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.replay import replay
from xgem.types import InputError


@pytest.mark.parametrize("name", ["lateral-001.dcm", "report-000.dcm"])
def test_replay_is_identical_byte_for_byte(
    pipeline: XgemPipeline, views: Made, cxr: Path, tmp_path: Path, name: str
) -> None:
    again = replay(views.folder / name, inputs={"frontal": cxr}, model=pipeline, progress=False)
    assert again.identical
    (path,) = again.generation.save(tmp_path / "again", format="dicom")
    assert path.name == name
    assert path.read_bytes() == (views.folder / name).read_bytes()


def test_annotations_are_read_from_the_objects_beside(
    control: XgemPipeline, annotated: Made, cxr: Path, tmp_path: Path
) -> None:
    file = annotated.folder / "frontal.dcm"
    again = replay(file, image={"frontal": cxr}, model=control, progress=False)
    assert again.identical
    again.generation.save(tmp_path / "again", format="dicom")
    for name in ("frontal.dcm", "frontal.mask.dcm", "frontal.boxes.dcm"):
        assert (tmp_path / "again" / name).read_bytes() == (annotated.folder / name).read_bytes()
    shutil.copy(file, tmp_path / "frontal.dcm")
    with pytest.raises(InputError, match=r"'(mask|boxes)' was '\w+', which is not found"):
        replay(tmp_path / "frontal.dcm", image={"frontal": cxr}, model=control, progress=False)


def test_annotations_steer_another_request(control: XgemPipeline, annotated: Made) -> None:
    inputs = {"mask": annotated.folder / "frontal.mask.dcm", "boxes": str(annotated.folder / "frontal.boxes.dcm")}
    arrays = {name: value for name, value in annotated.generation.annotations.items() if name in inputs}
    given = {"mask": dict(arrays["mask"].masks), "boxes": inputs["boxes"]}
    one, other = (control(values, "frontal", **QUICK) for values in (inputs, given))
    assert one.frontal[0].tobytes() == other.frontal[0].tobytes()
    assert one.metadata["inputs"]["mask"]["origin"] == "frontal.mask.dcm"


def test_an_archive_that_knows_no_private_elements(
    pipeline: XgemPipeline, views: Made, cxr: Path, tmp_path: Path
) -> None:
    """Implicit VRs: what is read of the private block are bytes."""
    for name in ("lateral-000.dcm", "report-000.dcm"):
        ds = pydicom.dcmread(views.folder / name)
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        ds.save_as(tmp_path / name, implicit_vr=True, little_endian=True, enforce_file_format=True)
        assert replay(tmp_path / name, inputs={"frontal": cxr}, model=pipeline, progress=False).identical


def test_changed_pixels_are_noticed(pipeline: XgemPipeline, views: Made, cxr: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(views.folder / "lateral-000.dcm")
    ds.PixelData = np.roll(ds.pixel_array, 1).tobytes()
    ds.save_as(tmp_path / "x.dcm")
    assert not replay(tmp_path / "x.dcm", inputs={"frontal": cxr}, model=pipeline, progress=False).identical


def test_files_without_what_a_replay_needs(annotated: Made, views: Made, cxr: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains no xgem metadata"):
        read_metadata(cxr)
    with pytest.raises(InputError, match="is Segmentation Storage of a sample; expected the image or report itself"):
        replay(annotated.folder / "frontal.mask.dcm", progress=False)
    with pytest.raises(InputError, match="is Comprehensive SR Storage of a sample"):
        replay(annotated.folder / "frontal.boxes.dcm", progress=False)
    data = (views.folder / "lateral-000.dcm").read_bytes()
    (tmp_path / "short.dcm").write_bytes(data[:-1000])
    with pytest.raises(InputError, match="its pixels cannot be read"):
        replay(tmp_path / "short.dcm", progress=False)


def test_a_report_of_boxes_that_was_changed_is_refused(annotated: Made, tmp_path: Path) -> None:
    ds = pydicom.dcmread(annotated.folder / "frontal.boxes.dcm")

    def move(item: Any) -> bool:
        if item.get("ValueType") == "SCOORD":
            item.GraphicData = [value + 1 for value in item.GraphicData]
            return True
        return any(move(child) for child in item.get("ContentSequence", ()))

    assert move(ds)
    ds.save_as(tmp_path / "moved.dcm")
    with pytest.raises(InputError, match="its regions are not those that xgem wrote; give the changed boxes as COCO"):
        read_boxes(tmp_path / "moved.dcm")


# ------------------------------------------------------------------------------------------------- command line


def test_the_command_line_saves_and_replays_dicom(xgem: Any, debug_checkpoint: Path, cxr: Path, tmp_path: Path) -> None:
    quick = ("--num-inference-steps", 2, "--seed", 3, "--device", "cpu", "--no-progress")
    out = tmp_path / "out"
    given = ("--frontal", cxr, "--outputs", "lateral,report", "--model", debug_checkpoint, *quick)
    ran = xgem("generate", *given, "--out", out, "--format", "dicom", "--keep-patient")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [str(out / "lateral.dcm"), str(out / "report.dcm")]
    assert pydicom.dcmread(out / "report.dcm").PatientID == "PID-77"
    ran = xgem("replay", out / "lateral.dcm", "--frontal", cxr, "--model", debug_checkpoint, "--out", tmp_path / "r")
    assert ran.code == 0, ran.err
    assert (tmp_path / "r" / "lateral.dcm").is_file()
    for options, message in (
        (("--format", "png", "--keep-patient"), "--keep-patient is about DICOM files; leave --format png out"),
        (("--format", "png", "--send", "dimse://A@h:1"), "--send is about DICOM files"),
        (("--format", "jpeg"), "jpeg"),
        (("--send", "ftp://h"), "address ftp://h: expected dicomweb://"),
        (("--send", "dicomweb://me:pw@h/x"), "address dicomweb://h/x: holds credentials"),
    ):
        ran = xgem("generate", *given, "--out", tmp_path / "bad", *options)
        assert ran.code == 2
        assert message in ran.err
    assert not (tmp_path / "bad").exists()


def test_cases_are_saved_as_dicom(xgem: Any, debug_checkpoint: Path, cxr: Path, tmp_path: Path) -> None:
    given = [shutil.copy(cxr, tmp_path / name) for name in ("a.dcm", "b.dcm")]
    command = ("generate", "--frontal", *given, "--outputs", "report", "--model", debug_checkpoint, "--seed", 3)
    quick = ("--num-inference-steps", 2, "--device", "cpu", "--no-progress", "--out", tmp_path / "out")
    ran = xgem(*command, *quick, "--format", "dicom")
    assert ran.code == 0, ran.err
    assert ran.out.split() == [str(tmp_path / "out" / name / "report.dcm") for name in ("a", "b")]
    ran = xgem(*command, *quick)
    assert ran.code == 1
    assert "was begun with another format (dicom, now None)" in ran.err


def test_a_text_is_an_input_of_dicom_too(pipeline: XgemPipeline, tmp_path: Path) -> None:
    pipeline({"report": TEXT}, "lateral", **QUICK).save(tmp_path / "out", format="dicom")
    assert replay(tmp_path / "out" / "lateral.dcm", model=pipeline, progress=False).identical
