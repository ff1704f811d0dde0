"""DICOM in every encoding that radiographs come in, written here and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from xgem.data.dicom import window
from xgem.data.dicom_header import is_chest
from xgem.data.read import read_image
from xgem.labels.views import VIEWS
from xgem.types import ImageError

LOSSLESS = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
]


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name.replace(" ", "_"))
def test_lossless_encodings_give_the_stored_values(chest, write_dicom, syntax, bits):
    stored = chest(bits=bits)
    image = read_image(write_dicom(stored, bits=bits, syntax=syntax))
    assert image.pixels.dtype == np.float32
    np.testing.assert_allclose(image.pixels, stored / (2**bits - 1), atol=1e-6)


def test_jpeg_baseline_is_close(chest, write_dicom):
    stored = chest()
    image = read_image(write_dicom(stored, syntax=JPEGBaseline8Bit))
    np.testing.assert_allclose(image.pixels, stored / 255, atol=0.02)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless])
def test_monochrome1_is_turned_around(chest, write_dicom, syntax):
    stored = chest()
    one = write_dicom(stored, syntax=syntax, photometric="MONOCHROME1", name="1.dcm")
    two = write_dicom(stored, syntax=syntax, photometric="MONOCHROME2", name="2.dcm")
    np.testing.assert_allclose(read_image(one).pixels, 1 - read_image(two).pixels, atol=1e-6)
    kept = read_image(one, invert_monochrome1=False).pixels
    np.testing.assert_allclose(kept, read_image(two).pixels, atol=1e-6)


def test_signed_values_span_zero_to_one(chest, write_dicom):
    stored = (chest(bits=12).astype(np.int32) - 2048).astype(np.int16)
    image = read_image(write_dicom(stored, bits=12))
    np.testing.assert_allclose(image.pixels, (stored + 2048.0) / 4095, atol=1e-6)


def test_rescale_keeps_the_range_and_a_negative_slope_turns_it(chest, write_dicom):
    stored = chest(bits=12)
    plain = read_image(write_dicom(stored, bits=12, RescaleSlope=2.5, RescaleIntercept=-1000)).pixels
    np.testing.assert_allclose(plain, stored / 4095, atol=1e-5)
    turned = read_image(write_dicom(stored, bits=12, RescaleSlope=-1, RescaleIntercept=4095)).pixels
    np.testing.assert_allclose(turned, 1 - stored / 4095, atol=1e-5)


def test_window_is_an_option_and_acts_before_the_inversion(chest, write_dicom):
    stored = chest(bits=12)
    path = write_dicom(stored, bits=12, photometric="MONOCHROME1", WindowCenter=[1000, 9], WindowWidth=[801, 9])
    np.testing.assert_allclose(read_image(path).pixels, 1 - stored / 4095, atol=1e-6)
    expected = 1 - np.clip((stored - 999.5) / 800 + 0.5, 0, 1)
    np.testing.assert_allclose(read_image(path, voi="window").pixels, expected, atol=1e-5)


def test_window_acts_on_rescaled_values(chest, write_dicom):
    stored = chest(bits=12)
    path = write_dicom(
        stored,
        bits=12,
        RescaleSlope=2,
        RescaleIntercept=-100,
        WindowCenter=3000,
        WindowWidth=2000,
        VOILUTFunction="LINEAR_EXACT",
    )
    expected = np.clip((stored * 2.0 - 100 - 3000) / 2000 + 0.5, 0, 1)
    np.testing.assert_allclose(read_image(path, voi="window").pixels, expected, atol=1e-5)


def test_voi_lut_is_an_option(chest, write_dicom):
    stored = chest(bits=10)
    item = Dataset()
    item.LUTDescriptor = [1024, 0, 16]
    item.LUTData = (np.arange(1024, dtype=np.uint64) ** 2 * 65535 // 1023**2).astype(np.uint16).tobytes()
    path = write_dicom(stored, bits=10, VOILUTSequence=Sequence([item]))
    ds = pydicom.dcmread(path)
    assert "VOILUTSequence" in ds
    np.testing.assert_allclose(read_image(path, voi="lut").pixels, (stored / 1023.0) ** 2, atol=1e-4)
    np.testing.assert_allclose(read_image(path).pixels, stored / 1023, atol=1e-6)


@pytest.mark.parametrize("voi", ["window", "lut"])
def test_without_voi_in_the_header_the_stored_values_stay(chest, write_dicom, voi):
    stored = chest()
    np.testing.assert_allclose(read_image(write_dicom(stored), voi=voi).pixels, stored / 255, atol=1e-6)


@given(
    centre=st.floats(-500, 5000),
    width=st.floats(1, 5000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_windows_rise_and_stay_in_range(centre: float, width: float, function: str):
    values = window(np.linspace(-2000, 8000, 101), centre, width, function)
    assert values.min() >= 0
    assert values.max() <= 1
    assert (np.diff(values) >= 0).all()


def test_sigmoid_is_half_at_its_centre():
    assert window(np.array([700.0]), 700, 300, "SIGMOID")[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
        ({"ImagerPixelSpacing": [0.139, 0.139]}, (0.139, 0.139)),
        ({"PixelSpacing": [0.15, 0.15], "ImagerPixelSpacing": [0.2, 0.2]}, (0.15, 0.15)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.2]}, (0.2, 0.2)),
        ({"PixelSpacing": [0.000139, 0.000139]}, None),
        ({}, None),
    ],
)
def test_pixel_spacing(chest, write_dicom, tags: dict[str, Any], expected):
    assert read_image(write_dicom(chest(), **tags)).spacing == expected


def test_padding_becomes_background(chest, write_dicom):
    stored = chest(bits=12)
    stored[:, :10] = 4095
    stored[:, 10:] = np.minimum(stored[:, 10:], 4000)
    path = write_dicom(stored, bits=12, PixelPaddingValue=4095)
    pixels = read_image(path).pixels
    assert (pixels[:, :10] == 0).all()
    np.testing.assert_allclose(pixels[:, 10:], stored[:, 10:] / 4095, atol=1e-6)


def test_a_file_without_preamble_is_read(chest, write_dicom, tmp_path: Path):
    path = write_dicom(chest())
    ds = pydicom.dcmread(path)
    bare = tmp_path / "bare"
    del ds.file_meta, ds.preamble
    pydicom.dcmwrite(bare, ds, enforce_file_format=False, implicit_vr=True, little_endian=True)
    assert bare.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_image(bare).pixels, read_image(path).pixels)


def test_grey_stored_as_rgb_is_taken_and_colour_is_not(chest, write_dicom):
    stored = chest()
    grey = np.stack([stored] * 3, axis=-1)
    np.testing.assert_allclose(read_image(write_dicom(grey, photometric="RGB")).pixels, stored / 255, atol=1e-6)
    colour = np.stack([stored, stored // 2, 255 - stored], axis=-1)
    with pytest.raises(ImageError, match="colour"):
        read_image(write_dicom(colour, photometric="RGB"))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PixelData": None}, "without pixels"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"Modality": "CT"}, "modality CT"),
        ({"Modality": "MG"}, "modality MG"),
        ({"BodyPartExamined": "HAND"}, "body part HAND"),
        ({"ViewPosition": "LL"}, r"a lateral view \(ViewPosition LL\); expected a frontal view: pass it as lateral"),
    ],
)
def test_other_files_are_refused_in_one_line(chest, write_dicom, tags: dict[str, Any], words: str):
    with pytest.raises(ImageError, match=words) as caught:
        read_image(write_dicom(chest(), **tags), view="frontal")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("position", "view"), [("PA", "frontal"), ("AP", "frontal"), ("LL", "lateral"), ("", "lateral"), ("OBL", "frontal")]
)
def test_views_that_do_not_contradict_are_taken(chest, write_dicom, position: str, view: str):
    assert read_image(write_dicom(chest(), ViewPosition=position), view=view).pixels.shape == (96, 80)


def test_a_view_that_is_added_is_told_from_the_others(chest, write_dicom, monkeypatch: pytest.MonkeyPatch):
    file = write_dicom(chest(), ViewPosition="LAO")
    assert read_image(file, view="frontal").pixels.shape == (96, 80)
    monkeypatch.setitem(VIEWS, "oblique", ("LAO", "RAO"))
    assert read_image(file, view="oblique").pixels.shape == (96, 80)
    with pytest.raises(ImageError, match=r"oblique view \(ViewPosition LAO\); expected a frontal view"):
        read_image(file, view="frontal")


@pytest.mark.parametrize("tags", [{"Modality": "CT"}, {"BodyPartExamined": "HAND"}, {"ViewPosition": "LL"}])
def test_allow_any_takes_other_modalities_and_body_parts(chest, write_dicom, tags: dict[str, Any]):
    path = write_dicom(chest(), **tags)
    assert read_image(path, allow_any=True, view="frontal").pixels.shape == (96, 80)


@pytest.mark.parametrize("tags", [{"NumberOfFrames": 3}, {"PixelData": None}])
def test_allow_any_takes_no_broken_files(chest, write_dicom, tags: dict[str, Any]):
    with pytest.raises(ImageError):
        read_image(write_dicom(chest(), **tags), allow_any=True)


@pytest.mark.parametrize("part", ["CHEST", "THORAX", "PORT CHEST", "", "LUNG"])
def test_body_parts_that_are_chests(chest, write_dicom, part: str):
    assert read_image(write_dicom(chest(), BodyPartExamined=part)).pixels.size


def test_values_over_the_stated_bits_are_refused(chest, write_dicom):
    with pytest.raises(ImageError, match="bits of the header"):
        read_image(write_dicom(chest(bits=12), bits=10))


def test_overlay_bits_are_dropped_and_a_shifted_cell_is_read(chest, write_dicom):
    stored = chest(bits=12)
    marked = stored.copy()
    marked[10:20, 10:20] |= 0x8000
    path = write_dicom(marked, bits=12)
    ds = pydicom.dcmread(path)
    ds.add_new((0x6000, 0x0102), "US", 15)
    ds.save_as(path)
    np.testing.assert_allclose(read_image(path).pixels, stored / 4095, atol=1e-6)
    shifted = write_dicom(stored << 4, bits=12, HighBit=15)
    np.testing.assert_allclose(read_image(shifted).pixels, stored / 4095, atol=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEGBaseline8Bit], ids=lambda uid: uid.name.replace(" ", "_"))
def test_truncated_files_are_refused(chest, write_dicom, syntax, share: float):
    path = write_dicom(chest(256, 256), syntax=syntax)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "spacing"),
    [
        ("cr_mono1_10bit_explicit_le.dcm", (440, 440), None),
        ("cr_mono1_15bit_j2k_lossy.dcm", (1955, 1841), None),
        ("mono1_8bit_jpeg_baseline.dcm", (1024, 1024), (0.168, 0.168)),
        ("mono2_8bit_jpeg_baseline.dcm", (1024, 1024), (0.168, 0.168)),
    ],
)
def test_real_files(data_dir: Path, name: str, shape, spacing):
    image = read_image(data_dir / "dicom" / name)
    assert image.pixels.shape == shape
    assert image.spacing == (pytest.approx(spacing) if spacing else None)
    ds = pydicom.dcmread(data_dir / "dicom" / name)
    expected = ds.pixel_array / (2.0**ds.BitsStored - 1)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    np.testing.assert_allclose(image.pixels, expected, atol=1e-6)
    assert 0.3 < read_image(data_dir / "dicom" / name, voi="window").pixels.std() * 4 < 2


# --- headers as they come ------------------------------------------------------------------------------------------

# (case, what is said of it): each is the image of ok_12bit.dcm
SAME = [
    ("frames_text", "NumberOfFrames"),
    ("modality_lut_empty_item", "ModalityLUTSequence"),
    ("mono1", None),
    ("mono1_blank", None),
    ("mono2_plut_inverse", "PresentationLUTShape INVERSE"),
    ("part_cxr", None),
    ("part_torax_accent", None),
    ("signed_highbit15", None),
    ("slope_comma", "RescaleSlope '1,0'"),
    ("spacing_single", "PixelSpacing 0.139"),
    ("spacing_text", "PixelSpacing"),
    ("stored16_range12", "read as 12 bits"),
    ("voi_lut_empty_item", None),
    ("dx_lateral_by_code", None),
]


@pytest.mark.parametrize(("case", "note"), SAME)
def test_cases_are_read_alike(cases_dir: Path, case: str, note: str | None):
    expected = read_image(cases_dir / "dicom" / "ok_12bit.dcm")
    image = read_image(cases_dir / "dicom" / f"{case}.dcm")
    np.testing.assert_allclose(image.pixels, expected.pixels, atol=1e-6)
    assert image.spacing is None
    assert expected.notes == ()
    assert len(image.notes) == (note is not None)
    assert note is None or note in image.notes[0]


def test_case_of_padding_with_another_sign(cases_dir: Path):
    expected = read_image(cases_dir / "dicom" / "ok_12bit.dcm").pixels
    image = read_image(cases_dir / "dicom" / "padding_us_of_signed.dcm").pixels
    padding = image == 0
    assert 0 < padding.mean() < 0.5
    np.testing.assert_allclose(image[~padding], expected[~padding], atol=1e-6)


def test_case_of_an_aspect_ratio(cases_dir: Path):
    image = read_image(cases_dir / "dicom" / "aspect_2_1.dcm")
    assert (image.pixels.shape, image.aspect) == ((48, 80), 2)


def test_case_of_an_empty_voi_lut_that_is_asked_for(cases_dir: Path):
    image = read_image(cases_dir / "dicom" / "voi_lut_empty_item.dcm", voi="lut")
    assert image.notes == ("VOILUTSequence has an item without a LUT: taken as not stated",)


def test_case_of_a_view_by_code(cases_dir: Path):
    path = cases_dir / "dicom" / "dx_lateral_by_code.dcm"
    assert read_image(path, view="lateral").pixels.shape == (96, 80)
    with pytest.raises(ImageError, match=r"lateral view \(ViewCodeSequence left lateral\); expected a frontal view"):
        read_image(path, view="frontal")


@pytest.mark.parametrize(
    ("code", "scheme", "view"),
    [
        ("R-10214", "SRT", "frontal"),
        ("272479007", "SCT", "frontal"),
        ("399348003", "SCT", "frontal"),
        ("R-10206", "SNM3", "frontal"),
        ("399173006", "SCT", "lateral"),
        ("R-10232", "SRT", "lateral"),
        ("399182000", "SCT", None),
        ("1", "99LOCAL", None),
    ],
)
def test_view_codes(chest, write_dicom, code: str, scheme: str, view: str | None):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, scheme, "a view"
    path = write_dicom(chest(), ViewCodeSequence=Sequence([item]))
    for name in ("frontal", "lateral"):
        if view in (None, name):
            assert read_image(path, view=name).pixels.shape == (96, 80)
        else:
            with pytest.raises(ImageError, match="ViewCodeSequence a view"):
                read_image(path, view=name)


@pytest.mark.parametrize(
    ("part", "chest_like"),
    [
        *[(part, True) for part in ("CXR", "TÓRAX", "T\ufffdRAX", "Thorax pa", "TORAX AP", "ГРУДНАЯ КЛЕТКА", "胸部")],
        *[(part, True) for part in ("GÖĞÜS", "POUMONS", "흉부", "KLATKA PIERSIOWA")],
        *[(part, False) for part in ("HAND", "ABDOMEN", "SKULL", "KNEE", "BREAST", "PELVIS", "CSPINE")],
    ],
)
def test_words_for_the_chest(part: str, chest_like: bool):
    assert is_chest(part) == chest_like


@pytest.mark.parametrize("modality", ["CR", "DX", "DR", "XR"])
def test_modalities_of_radiography(chest, write_dicom, modality: str):
    assert read_image(write_dicom(chest(), Modality=modality)).notes == ()


def test_signed_values_at_the_top_of_their_cells(chest, write_dicom):
    stored = (chest(bits=12).astype(np.int32) - 2048).astype(np.int16)
    shifted = write_dicom((stored.astype(np.int32) << 4).astype(np.int16), bits=12, HighBit=15)
    np.testing.assert_allclose(read_image(shifted).pixels, (stored + 2048.0) / 4095, atol=1e-6)


def test_an_encoding_that_no_decoder_reads_is_named(chest, write_dicom):
    path = write_dicom(chest())
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")  # MPEG-4
    ds.PixelData = encapsulate([b"\0" * 64])
    ds["PixelData"].VR = "OB"
    ds.save_as(path)
    with pytest.raises(
        ImageError, match=r"transfer syntax MPEG-4 .*4\.102\), which no decoder here reads; export"
    ) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
