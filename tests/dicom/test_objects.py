"""DICOM objects of generated samples: what validators say of them, and that other readers find all of a sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import UID

from tests.dicom.conftest import ELSEWHERE, QUICK, SECRET, TEXT, Made, masks, write_dicom
from xgem.data.annotation_files import read_boxes, read_masks
from xgem.data.read import read_image
from xgem.dicom.documents import text_report
from xgem.dicom.identity import Identity, uid_of
from xgem.pipeline.generation import Generation, read_metadata
from xgem.pipeline.options import Format
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import InputError, OutputError

VIEWS = ("lateral-000.dcm", "lateral-001.dcm", "report-000.dcm", "report-001.dcm")
ANNOTATED = ("frontal.dcm", "frontal.mask.dcm", "frontal.boxes.dcm")
CLASSES = {
    "lateral": "Secondary Capture Image Storage",
    "report": "Basic Text SR Storage",
    "frontal": "Digital X-Ray Image Storage - For Presentation",
    "frontal.mask": "Segmentation Storage",
    "frontal.boxes": "Comprehensive SR Storage",
}
IODS = {
    "lateral": "SCImage",
    "report": "BasicTextSR",
    "frontal": "DXImageForPresentation",
    "frontal.mask": "Segmentation",
    "frontal.boxes": "ComprehensiveSR",
}
SYNTHETIC_DATA = "(0x0008,0x001c)"
"""An attribute of the standard since 2023, which older validators do not know."""


def errors(text: str) -> list[str]:
    """What a validator found, without the one attribute that it may be too old for."""
    return [line for line in text.splitlines() if line.startswith("Error") and SYNTHETIC_DATA not in line]


@pytest.fixture
def file(request: pytest.FixtureRequest, views: Made, annotated: Made) -> Path:
    name = str(request.param)
    return (views if name in VIEWS else annotated).folder / name


every_object = pytest.mark.parametrize("file", [VIEWS[0], VIEWS[2], *ANNOTATED], indirect=True)


@every_object
def test_the_validator_finds_no_error(file: Path, program: Callable[..., str]) -> None:
    text = program("dciodvfy", file)
    assert not errors(text)
    assert IODS[file.name.removesuffix(".dcm").partition("-")[0]] in text.splitlines()  # it knows what it read


@every_object
def test_dcmtk_reads_every_object(file: Path, program: Callable[..., str]) -> None:
    text = program("dcmdump", file)
    assert "SYNTHETIC^XGEM" in text
    if pydicom.dcmread(file).Modality == "SR":
        shown = program("dsrdump", file)
        assert "Patient             : SYNTHETIC^XGEM" in shown
        assert ("Impression" if "report" in file.name else "Image Region") in shown


def test_every_object_says_what_it_is(views: Made, annotated: Made) -> None:
    for made, names in ((views, VIEWS), (annotated, ANNOTATED)):
        assert {path.name for path in made.folder.iterdir()} == {"generation.json", *names}
        for name in names:
            ds = pydicom.dcmread(made.folder / name)
            assert ds.SOPClassUID.name == CLASSES[name.removesuffix(".dcm").partition("-")[0]]
            assert (ds.SyntheticData, str(ds.PatientName)) == ("YES", "SYNTHETIC^XGEM")
            assert ds.PatientID.startswith("SYNTHETIC-")
            assert (ds.Manufacturer, ds.SoftwareVersions) == ("xgem", made.generation.metadata["xgem"])
            assert (ds.StudyDate, ds.ContentDate) == ("20000101", "20000101")
            assert json.loads(ds.private_block(0x99, "XGEM")[0x01].value)["seed"] == 7
    record = json.loads((annotated.folder / "generation.json").read_text())
    (entry,) = record["files"]["frontal"]
    assert (entry["file"], sorted(entry["annotations"])) == (ANNOTATED[0], sorted(ANNOTATED[1:]))
    assert entry["sha256"] == hashlib.sha256((annotated.folder / "frontal.dcm").read_bytes()).hexdigest()


def test_images_say_how_they_are_to_be_shown(views: Made, annotated: Made) -> None:
    frontal, lateral = pydicom.dcmread(annotated.folder / "frontal.dcm"), pydicom.dcmread(views.folder / VIEWS[0])
    assert (frontal.ViewPosition, list(frontal.PatientOrientation)) == ("PA", ["L", "F"])
    assert (lateral.ViewPosition, list(lateral.PatientOrientation)) == ("LL", ["P", "F"])
    assert (lateral.ConversionType, lateral.Modality) == ("SYN", "OT")
    for ds in (frontal, lateral):
        assert (ds.BodyPartExamined, ds.BurnedInAnnotation, ds.ImageType[0]) == ("CHEST", "NO", "DERIVED")
        assert (ds.PhotometricInterpretation, ds.BitsStored, ds.BitsAllocated) == ("MONOCHROME2", 8, 8)


# ------------------------------------------------------------------------------------------- what is read back


def test_pixels_are_those_of_the_png(views: Made, annotated: Made, tmp_path: Path) -> None:
    for number, (made, name) in enumerate(((views, VIEWS[1]), (annotated, ANNOTATED[0]))):
        made.generation.save(tmp_path / str(number))
        with Image.open(tmp_path / str(number) / f"{Path(name).stem}.png") as image:
            png = np.asarray(image)
        assert np.array_equal(pydicom.dcmread(made.folder / name).pixel_array, png)
        assert np.array_equal(np.rint(read_image(made.folder / name).pixels * 255), png)  # as an input of xgem


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_arrays_are_saved_as_the_same_object(pipeline: XgemPipeline, tmp_path: Path, output_type: str) -> None:
    for kind in ("pil", output_type):
        pipeline({}, "frontal", output_type=kind, **QUICK).save(tmp_path / kind, format="dicom")
    assert (tmp_path / "pil/frontal.dcm").read_bytes() == (tmp_path / output_type / "frontal.dcm").read_bytes()


def test_an_image_of_odd_size_is_padded_to_an_even_length() -> None:
    from xgem.dicom.images import radiograph

    pixels = np.random.default_rng(0).integers(0, 256, (33, 35), dtype=np.uint8)
    ds = radiograph(pixels, "frontal", identity("frontal"))
    assert len(ds.PixelData) == 33 * 35 + 1
    assert np.array_equal(ds.pixel_array, pixels)


def identity(output: str, **more: Any) -> Identity:
    checkpoint = {"name": "random", "hash": "12ab"}
    return Identity({"output": output, "outputs": [output], "checkpoint": checkpoint, "xgem": "1", "image": {}} | more)


def test_a_view_of_unknown_orientation_is_a_secondary_capture(tmp_path: Path, program: Callable[..., str]) -> None:
    from xgem.dicom.images import radiograph

    known = identity("oblique", image={"oblique": {"pixel_spacing": [1, 1]}})
    ds = radiograph(np.zeros((32, 32), np.uint8), "oblique", known)
    ds.save_as(tmp_path / "oblique.dcm", enforce_file_format=True)
    assert (ds.SOPClassUID.name, "ViewPosition" in ds) == (CLASSES["lateral"], False)
    assert not errors(program("dciodvfy", tmp_path / "oblique.dcm"))


REPORTS = {
    "Clear lungs.": {"Impressions": "Clear lungs."},
    "Findings: Heart is large. Impression: Cardiomegaly.": {
        "Findings": "Heart is large.",
        "Impressions": "Cardiomegaly.",
    },
    "Findings: Größe 3 mm².": {"Findings": "Größe 3 mm²."},
}


@pytest.mark.parametrize("text", REPORTS)
def test_a_report_has_its_sections(text: str, tmp_path: Path, program: Callable[..., str]) -> None:
    text_report(text, identity("report")).save_as(tmp_path / "r.dcm", enforce_file_format=True)
    ds = pydicom.dcmread(tmp_path / "r.dcm")
    root = highdicom.sr.ContentSequence.from_sequence(ds.ContentSequence)
    sections = [item for item in root if item.ValueType == "CONTAINER"]
    assert {one.name.meaning: one.ContentSequence[0].TextValue for one in sections} == REPORTS[text]
    assert ds.private_block(0x99, "XGEM")[0x02].value == text
    assert not errors(program("dciodvfy", tmp_path / "r.dcm"))


def test_masks_are_segments_that_may_overlap(annotated: Made) -> None:
    segmentation: Any = highdicom.seg.segread(annotated.folder / "frontal.mask.dcm")
    image = pydicom.dcmread(annotated.folder / "frontal.dcm")
    given = annotated.generation.annotations["mask"].masks
    assert [one.SegmentLabel for one in segmentation.SegmentSequence] == list(given)
    assert (given["right lung"] & given["consolidation"]).any()
    pixels = segmentation.get_pixels_by_source_instance(
        [image.SOPInstanceUID], ignore_spatial_locations=True, segment_numbers=range(1, 4)
    )
    for index, (name, mask) in enumerate(given.items()):
        assert np.array_equal(pixels[0, ..., index], mask), name
    codes = [one.SegmentedPropertyTypeCodeSequence[0] for one in segmentation.SegmentSequence]
    assert {(one.CodeValue, one.CodingSchemeDesignator) for one in codes} >= {("44029006", "SCT"), ("95436008", "SCT")}
    read = read_masks(annotated.folder / "frontal.mask.dcm")
    assert read.sha256 == annotated.generation.annotations["mask"].sha256


def test_boxes_are_regions_of_the_image(annotated: Made) -> None:
    report: Any = highdicom.sr.srread(annotated.folder / "frontal.boxes.dcm")
    image = pydicom.dcmread(annotated.folder / "frontal.dcm")
    groups = report.content.get_planar_roi_measurement_groups()
    given = annotated.generation.annotations["boxes"]
    assert len(groups) == len(given.boxes) == 2
    for group, box in zip(groups, given.boxes, strict=True):
        left, top, right, bottom = np.array([box.x, box.y, box.x + box.w, box.y + box.h]) * given.size[0]
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        np.testing.assert_allclose(group.roi.value, corners, atol=1e-4)
        source = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
        assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert group.finding_type.meaning.lower() == box.label
    assert read_boxes(annotated.folder / "frontal.boxes.dcm").sha256 == given.sha256


# ----------------------------------------------------------------------------------------------------- identity


def uids(folder: Path) -> dict[str, tuple[str, str, str]]:
    files = {path.name: pydicom.dcmread(path) for path in folder.glob("*.dcm")}
    return {name: (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID) for name, ds in files.items()}


def test_each_index_is_a_study_and_each_object_a_series(views: Made, annotated: Made) -> None:
    found = uids(views.folder)
    first, second = (found[f"lateral-00{number}.dcm"][0] for number in (0, 1))
    assert first != second
    assert (found["report-000.dcm"][0], found["report-001.dcm"][0]) == (first, second)
    assert len({series for _, series, _ in found.values()}) == 4
    of_one = uids(annotated.folder)
    assert len({study for study, _, _ in of_one.values()}) == 1
    assert len({uid for _, *others in of_one.values() for uid in others}) == 6
    everything = {uid for one in (*found.values(), *of_one.values()) for uid in one}
    assert all(uid.startswith("2.25.") and len(uid) <= 64 and UID(uid).is_valid for uid in everything)


def test_the_same_request_gives_the_same_bytes_and_another_one_fresh_uids(
    control: XgemPipeline, annotated: Made, cxr: Path, tmp_path: Path
) -> None:
    from tests.dicom.conftest import BOXES, coco_of

    inputs = {"report": TEXT, "mask": masks(), "boxes": coco_of(BOXES)}
    changes: dict[str, dict[str, Any]] = {"same": {}, "seed": {"seed": 8}, "guidance": {"guidance_scale": 3.0}}
    for name, change in changes.items():
        made = control(inputs, "frontal", image={"frontal": cxr}, **(QUICK | change))
        made.save(tmp_path / name, format="dicom")
    control(inputs | {"report": "Clear."}, "frontal", image={"frontal": cxr}, **QUICK).save(
        tmp_path / "input", format="dicom"
    )
    for path in annotated.folder.iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes(), path.name
    known = {uid for one in uids(annotated.folder).values() for uid in one}
    for name in ("seed", "guidance", "input"):
        assert known.isdisjoint(uid for one in uids(tmp_path / name).values() for uid in one), name


def test_uids_follow_from_parts() -> None:
    expected = int.from_bytes(hashlib.sha256(b"a\0b").digest()[:16], "big")
    assert uid_of("a", "b") == f"2.25.{expected}"
    assert uid_of("a", "b") != uid_of("ab")


def test_metadata_without_a_request_have_a_study_too(views: Made) -> None:
    metadata = read_metadata(views.folder / VIEWS[0])
    old = {key: value for key, value in metadata.items() if key != "request"}
    assert Identity(old).study_uid == Identity(old | {}).study_uid
    assert Identity(old).study_uid != Identity(old | {"seed": 8}).study_uid


# ------------------------------------------------------------------------------------------------------ patient


@every_object
def test_nothing_of_the_patient_is_taken_over(file: Path) -> None:
    data = file.read_bytes()
    for value in (*SECRET.values(), *ELSEWHERE.values(), "1.2.3.0"):
        if len(value) > 1:
            assert value.encode() not in data


def test_the_patient_of_the_input_is_kept_when_asked_for(views: Made, tmp_path: Path) -> None:
    views.generation.save(tmp_path / "kept", format="dicom", keep_patient=True)
    for path in (tmp_path / "kept").glob("*.dcm"):
        ds = pydicom.dcmread(path)
        assert {keyword: str(ds[keyword].value) for keyword in SECRET} == SECRET
        assert ds.SyntheticData == "YES"
        assert "Ospedale" not in str(ds)
    plain, kept = (
        {uid for one in uids(folder).values() for uid in one} for folder in (views.folder, tmp_path / "kept")
    )
    assert plain.isdisjoint(kept)


def test_a_patient_that_cannot_be_kept(pipeline: XgemPipeline, views: Made, cxr: Path, tmp_path: Path) -> None:
    from_text = pipeline({"report": TEXT}, "lateral", **QUICK)
    other = write_dicom(tmp_path / "other.dcm", seed=1, PatientID="PID-78")
    of_two = pipeline({"frontal": cxr}, "lateral", image={"lateral": other}, allow_any=True, **QUICK)
    refused: list[tuple[Generation, Format, str]] = [
        (from_text, "dicom", "no input is a DICOM file"),
        (of_two, "dicom", r"other\.dcm and cxr\.dcm are of different patients"),
        (views.generation, "png", "give format dicom"),
    ]
    for generation, kind, message in refused:
        with pytest.raises(InputError, match=message):
            generation.save(tmp_path / "out", keep_patient=True, format=kind)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- spacing, writing


def test_the_spacing_is_that_of_the_grid(control: XgemPipeline, annotated: Made, tmp_path: Path) -> None:
    side = control.preset.transform.size
    # 96 x 80 pixels of 0.5 mm, padded to 96 x 96 = 48 mm, on the model's grid
    ds = pydicom.dcmread(annotated.folder / "frontal.dcm")
    np.testing.assert_allclose(np.array(ds.ImagerPixelSpacing, float), 48 / side, rtol=1e-9)
    assert annotated.generation.metadata["image"]["frontal"]["pixel_spacing"] == pytest.approx([48 / side] * 2)
    unknown = write_dicom(tmp_path / "unknown.dcm", spacing=None)
    noise_alone: dict[str, Any] = {"strength": 1.0}
    for image, options in ((unknown, {}), (write_dicom(tmp_path / "known.dcm"), noise_alone)):
        made = control({"report": TEXT}, "frontal", image={"frontal": image}, **QUICK, **options)
        made.save(tmp_path / f"{image.stem}", format="dicom")
        assert pydicom.dcmread(tmp_path / image.stem / "frontal.dcm").SOPClassUID.name == CLASSES["lateral"]


def test_a_severity_has_no_object_of_its_own(control: XgemPipeline, tmp_path: Path) -> None:
    control({"severity": 12, "demographics": {"sex": "F"}}, "frontal", **QUICK).save(tmp_path / "out", format="dicom")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"generation.json", "frontal.dcm"}


def test_results_of_another_format_are_replaced(views: Made, tmp_path: Path) -> None:
    views.generation.save(tmp_path / "out")
    views.generation.save(tmp_path / "out", format="dicom", overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"generation.json", *VIEWS}
    with pytest.raises(OutputError, match="not empty"):
        views.generation.save(tmp_path / "out", format="dicom")


def test_one_sample_is_written_by_itself(views: Made, tmp_path: Path) -> None:
    for output in views.generation:
        (path,) = views.generation.write_sample(output, 1, tmp_path, format="dicom")
        assert path.read_bytes() == (views.folder / path.name).read_bytes()


def test_a_write_that_fails_leaves_nothing(annotated: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xgem.dicom.segmentations.segmentation", fail)  # the last object
    with pytest.raises(OutputError, match="No space left"):
        annotated.generation.save(tmp_path / "out", format="dicom")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_as_dicom(pipeline: XgemPipeline, views: Made, tmp_path: Path) -> None:
    unknown: Any = "jpeg"
    with pytest.raises(InputError, match="format is 'jpeg', expected one of: png, dicom"):
        views.generation.save(tmp_path / "out", format=unknown)
    latent = pipeline({}, ["frontal", "report"], output_type="latent", **QUICK)
    with pytest.raises(InputError, match="decode latents first"):
        latent.save(tmp_path / "out", format="dicom")
    assert not list(tmp_path.iterdir())


@pytest.mark.data
@pytest.mark.parametrize("name", ["mono1_8bit_jpeg_baseline.dcm", "cr_mono1_10bit_explicit_le.dcm"])
def test_nothing_of_a_real_header_is_taken_over(
    control: XgemPipeline, data_dir: Path, tmp_path: Path, name: str, program: Callable[..., str]
) -> None:
    source = pydicom.dcmread(data_dir / "dicom" / name, stop_before_pixels=True)
    made = control({"report": TEXT, "mask": masks()}, "frontal", image={"frontal": data_dir / "dicom" / name}, **QUICK)
    made.save(tmp_path / "out", format="dicom")
    data = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    texts = [str(one.value) for one in source.iterall() if one.VR in ("PN", "LO", "SH", "UI", "DA", "TM", "LT", "ST")]
    own = {text for text in texts if len(text) > 5 and not text.startswith("1.2.840.10008.")}
    assert len(own) >= 3
    assert not [text for text in own if text.encode() in data]
    assert not errors(program("dciodvfy", tmp_path / "out" / "frontal.dcm"))
    side = control.preset.transform.size
    ds = pydicom.dcmread(tmp_path / "out" / "frontal.dcm")
    if "PixelSpacing" in source:
        width = max(source.Rows, source.Columns) * float(source.PixelSpacing[0])
        assert float(ds.ImagerPixelSpacing[0]) * side == pytest.approx(width, rel=0.01)
    else:
        assert ds.Modality == "OT"
