"""Images that use a small part of their range, negatives, transparent pixels, and pixels that are not square."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from xgem.configs.components import TransformConfig
from xgem.data.pixels import brightened
from xgem.data.read import read_image
from xgem.data.transforms import read_square
from xgem.types import ImageError


def _written(tmp_path: Path, kind: str, stored: np.ndarray, write_dicom) -> Path:
    path = tmp_path / f"x.{kind}"
    if kind == "png":
        Image.fromarray(stored).save(path)
    elif kind == "tif":
        tifffile.imwrite(path, stored)
    elif kind == "npy":
        np.save(path, stored)
    else:
        return write_dicom(stored, bits=16)
    return path


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("kind", ["png", "tif", "npy", "dcm"])
def test_few_bits_in_16_are_read_by_their_depth_with_a_note(tmp_path: Path, chest, write_dicom, kind: str, bits: int):
    stored = chest(bits=bits)
    path = _written(tmp_path, kind, stored, write_dicom)
    image = read_image(path)
    np.testing.assert_allclose(image.pixels, stored / (2**bits - 1), atol=1e-6)
    assert len(image.notes) == 1
    assert f"read as {bits} bits" in image.notes[0]
    assert image.used == pytest.approx((2**bits - 1) / 65535)
    header = read_image(path, rescale="header")
    np.testing.assert_allclose(header.pixels, stored / 65535, atol=1e-6)
    assert "dark or flat" in header.notes[0]
    assert read_image(path, rescale="minmax").pixels.max() == 1


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("dark", [0.5, 0.9])
def test_images_of_different_brightness_become_alike_by_their_percentile(chest, dark: float, invert: bool):
    bright = np.clip(chest(bits=8) / 255 * 1.2, 0, 1).astype(np.float32)
    dull = 1 - dark * bright if invert else dark * bright
    image = read_image(dull, rescale="percentile", invert=invert)
    white = np.percentile(bright, 99.5)
    np.testing.assert_allclose(image.pixels, np.clip(bright / white, 0, 1), atol=1e-5)
    assert np.percentile(image.pixels, 99.5) == pytest.approx(1)
    assert abs(read_image(dull, invert=invert).pixels - image.pixels).max() > 0.05


def test_background_outside_the_detector_does_not_count_for_the_percentile():
    inside = np.zeros((64, 64), dtype=bool)
    inside[:, :16] = True
    pixels = np.where(inside, np.float32(0.5), np.float32(1))
    assert brightened(pixels, inside)[inside].max() == 1
    assert brightened(pixels)[inside].max() == 0.5
    np.testing.assert_array_equal(brightened(np.zeros((8, 8), np.float32)), 0)


@pytest.mark.parametrize("kind", ["png", "tif", "npy", "dcm"])
def test_images_that_use_their_range_stay_as_they_are(tmp_path: Path, chest, write_dicom, kind: str):
    stored = chest(bits=16)
    path = _written(tmp_path, kind, stored, write_dicom)
    image = read_image(path)
    assert image.notes == ()
    assert image.used == 1
    np.testing.assert_array_equal(image.pixels, (stored / 65535).astype(np.float32))
    np.testing.assert_array_equal(read_image(path, rescale="header").pixels, image.pixels)


def test_a_depth_that_the_file_states_is_kept(tmp_path: Path, chest, write_dicom):
    stored = chest(bits=12) // 8  # a dark image of 12 bits
    image = read_image(write_dicom(stored, bits=12))
    np.testing.assert_allclose(image.pixels, stored / 4095, atol=1e-6)
    assert "dark or flat" in image.notes[0]
    Image.fromarray(chest() // 8).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    np.testing.assert_allclose(image.pixels, (chest() // 8) / 255, atol=1e-6)
    assert "dark or flat" in image.notes[0]
    assert "dark or flat" in read_image(chest() / 2550).notes[0]


def _with_sbit(path: Path, stored: np.ndarray, bits: int) -> Path:
    Image.fromarray(stored).save(path)
    data = path.read_bytes()
    chunk = b"sBIT" + bytes([bits])
    path.write_bytes(data[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])
    return path


def test_significant_bits_of_png(tmp_path: Path, chest):
    stored = chest(bits=12)
    plain = read_image(_with_sbit(tmp_path / "plain.png", stored, 12))
    np.testing.assert_allclose(plain.pixels, stored / 4095, atol=1e-6)
    assert plain.notes == ()
    # As the standard has it, values are scaled to the sample depth: nothing to do
    scaled = (stored << 4) | (stored >> 8)
    image = read_image(_with_sbit(tmp_path / "scaled.png", scaled, 12))
    np.testing.assert_allclose(image.pixels, scaled / 65535, atol=1e-6)


def test_signed_values_without_negative_ones(chest, write_dicom):
    stored = chest(bits=12).astype(np.int16)
    np.testing.assert_allclose(read_image(write_dicom(stored, bits=16)).pixels, stored / 4095, atol=1e-6)
    negative = (stored // 2 - 1000).astype(np.int16)
    np.testing.assert_allclose(read_image(write_dicom(negative, bits=16)).pixels, (negative + 2048) / 4095, atol=1e-6)


def test_rescale_is_checked(chest):
    with pytest.raises(ImageError, match="rescale 'max' is unknown; expected one of auto, header, minmax, percentile"):
        read_image(chest(), rescale="max")  # type: ignore[arg-type]


def _framed(chest) -> np.ndarray:
    """A bright body before dark air, with a dark lung."""
    y, x = np.mgrid[-1:1:96j, -1:1:80j]
    body = np.clip(1.3 - x**2 - (y - 0.4) ** 2, 0, 1)
    return np.rint(255 * body / body.max()).astype(np.uint8)


@pytest.mark.parametrize("kind", ["array", "dcm"])
def test_a_negative_is_said_and_can_be_turned_around(chest, write_dicom, kind: str):
    positive = _framed(chest)
    source = 255 - positive if kind == "array" else write_dicom(255 - positive, photometric="MONOCHROME2")
    assert any("looks like a negative" in note for note in read_image(source).notes)
    turned = read_image(source, invert=True)
    np.testing.assert_allclose(turned.pixels, positive / 255, atol=1e-6)
    assert turned.notes == read_image(positive).notes == ()
    marked = write_dicom(255 - positive, photometric="MONOCHROME1")
    assert read_image(marked).notes == ()


@pytest.mark.data
def test_few_real_images_look_like_negatives_and_most_negatives_do(data_dir: Path):
    found = np.zeros(2, int)
    paths = sorted((data_dir / "openi/images").iterdir())[::120]
    for path in paths:
        image = read_image(path).pixels
        found += [any("negative" in note for note in read_image(one).notes) for one in (image, 1 - image)]
    assert found[0] <= 1
    assert found[1] >= 0.8 * len(paths)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L"])
def test_transparent_pixels_are_black(tmp_path: Path, chest, mode: str):
    stored = np.maximum(chest(), 1)
    stored[:, :10] = 0 if mode in ("P", "L") else 255
    image = Image.fromarray(stored)
    options = {}
    if mode in ("LA", "RGBA"):
        alpha = np.full_like(stored, 255)
        alpha[:, :10] = 0
        image.putalpha(Image.fromarray(alpha))
        image = image.convert(mode)
    else:
        options["transparency"] = 0
    image.save(tmp_path / "x.png", **options)
    read = read_image(tmp_path / "x.png")
    assert (read.pixels[:, :10] == 0).all()
    np.testing.assert_allclose(read.pixels[:, 10:], stored[:, 10:] / 255, atol=1e-6)
    assert read.notes == ("transparent pixels are read as black",)


@pytest.mark.parametrize(
    "tags", [{"PixelSpacing": [0.4, 0.2]}, {"PixelAspectRatio": [2, 1]}, {"ImagerPixelSpacing": [0.28, 0.14]}]
)
def test_pixels_that_are_not_square_are_resampled(chest, write_dicom, tags):
    stored = chest(96, 96)
    config = TransformConfig(size=96)
    squeezed = write_dicom(stored[::2], **tags)  # half as many rows
    np.testing.assert_allclose(read_square(squeezed, config), read_square(stored, config), atol=0.05)
    assert read_image(squeezed).aspect == pytest.approx(2)


def test_settings_of_the_transform_reach_the_reader_and_leave_old_configurations_alone(chest):
    config = TransformConfig(size=96, rescale="minmax", invert=True)
    stored = chest(96, 96) // 8
    expected = 1 - 2 * (stored / stored.max())
    np.testing.assert_allclose(read_square(stored, config), expected, atol=1e-5)
    assert "rescale" not in TransformConfig().model_dump_json()
    assert "invert" not in TransformConfig(rescale="auto").model_dump()
    assert TransformConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", ["png16_range12.png", "tiff16_range12.tif", "npy16_range12.npy"])
def test_cases_of_small_ranges(cases_dir: Path, name: str):
    image = read_image(cases_dir / "pictures" / name)
    plain = read_image(cases_dir / "pictures" / "plain16.png")
    np.testing.assert_allclose(image.pixels, plain.pixels, atol=1 / 4095)
    assert "read as 12 bits" in image.notes[0]
    assert plain.notes == ()


@pytest.mark.parametrize("name", ["la", "rgba"])
def test_cases_of_transparency(cases_dir: Path, name: str):
    image = read_image(cases_dir / "pictures" / f"{name}_white_under_transparent.png")
    assert (image.pixels == 0).mean() > 0.1


def test_webp_is_read_whatever_its_name(cases_dir: Path):
    plain = read_image(cases_dir / "pictures" / "plain16.png").pixels
    np.testing.assert_allclose(read_image(cases_dir / "pictures" / "webp_named.png").pixels, plain, atol=0.2)
