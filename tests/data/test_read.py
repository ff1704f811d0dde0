"""Images from files and from memory, and everything that is none."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from xgem.data.read import read_image, sniff
from xgem.types import ImageError
from xgem.utils.hashing import array_hash


def save(path: Path, array: np.ndarray, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize(("bits", "suffix"), [(8, "png"), (16, "png"), (8, "tif"), (16, "tif"), (8, "bmp"), (8, "jp2")])
def test_whole_numbers_are_divided_by_their_depth(tmp_path: Path, chest, bits: int, suffix: str):
    stored = chest(bits=bits)
    path = save(tmp_path / f"x.{suffix}", stored)
    radiograph = read_image(path)
    np.testing.assert_allclose(radiograph.pixels, stored / (2**bits - 1), atol=1e-6)
    assert radiograph.pixels.dtype == np.float32
    assert radiograph.spacing is None
    assert radiograph.origin == f"x.{suffix}"
    assert radiograph.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_jpeg_is_close(tmp_path: Path, chest):
    stored = chest()
    radiograph = read_image(str(save(tmp_path / "x.jpg", stored, quality=98)))
    np.testing.assert_allclose(radiograph.pixels, stored / 255, atol=0.02)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_float_tiff(tmp_path: Path, chest, compression):
    values = (chest() / 255).astype(np.float32)
    tifffile.imwrite(tmp_path / "x.tif", values, compression="zlib" if compression else None)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif").pixels, values)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff_byte_orders_and_white_is_zero(tmp_path: Path, chest, bits: int, byteorder):
    stored = chest(bits=bits)
    for photometric in ("minisblack", "miniswhite"):
        tifffile.imwrite(tmp_path / "x.tif", stored, photometric=photometric, byteorder=byteorder)
        expected = stored / (2**bits - 1)
        expected = 1 - expected if photometric == "miniswhite" else expected
        np.testing.assert_allclose(read_image(tmp_path / "x.tif").pixels, expected, atol=1e-6)


def test_bigtiff_and_sixteen_bit_colour_tiff(tmp_path: Path, chest):
    stored = chest(bits=16)
    tifffile.imwrite(tmp_path / "x.tif", stored, bigtiff=True)
    np.testing.assert_allclose(read_image(tmp_path / "x.tif").pixels, stored / 65535, atol=1e-6)
    tifffile.imwrite(tmp_path / "y.tif", np.stack([stored] * 3, -1), photometric="rgb")
    np.testing.assert_allclose(read_image(tmp_path / "y.tif").pixels, stored / 65535, atol=1 / 255)


def test_signed_tiff(tmp_path: Path, chest):
    stored = (chest(bits=16).astype(np.int32) - 32768).astype(np.int16)
    tifffile.imwrite(tmp_path / "x.tif", stored)
    np.testing.assert_allclose(read_image(tmp_path / "x.tif").pixels, (stored + 32768.0) / 65535, atol=1e-6)


def test_content_decides_and_not_the_ending(tmp_path: Path, chest, write_dicom):
    stored = chest()
    expected = stored / 255
    png = save(tmp_path / "a.png", stored)
    for source, name in ((png, "a.dcm"), (write_dicom(stored), "b.png")):
        shutil.copy(source, tmp_path / name)
        np.testing.assert_allclose(read_image(tmp_path / name).pixels, expected, atol=1e-6)
    np.save(tmp_path / "c.npy", stored)
    shutil.copy(tmp_path / "c.npy", tmp_path / "c.jpg")
    np.testing.assert_allclose(read_image(tmp_path / "c.jpg").pixels, expected, atol=1e-6)


def test_sniff(chest, write_dicom):
    assert sniff(write_dicom(chest()).read_bytes()) == "dicom"
    assert sniff(b"\x93NUMPY\x01\x00") == "npy"
    assert sniff(b"\x89PNG\r\n\x1a\n") == "image"
    assert sniff(b"") == "image"


@pytest.mark.parametrize("kind", ["numpy", "torch", "pil", "npy"])
def test_memory_gives_what_files_give(tmp_path: Path, chest, kind: str):
    stored = chest()
    path = tmp_path / "x.npy"
    np.save(path, stored)
    source = {"numpy": stored, "torch": torch.from_numpy(stored), "pil": Image.fromarray(stored), "npy": path}[kind]
    np.testing.assert_allclose(read_image(source).pixels, stored / 255, atol=1e-7)


@pytest.mark.parametrize("shape", ["h w", "1 h w", "h w 1", "3 h w", "h w 3"])
def test_layouts(chest, shape: str):
    stored = chest()
    layouts = {
        "h w": stored,
        "1 h w": stored[None],
        "h w 1": stored[..., None],
        "3 h w": np.stack([stored] * 3),
        "h w 3": np.stack([stored] * 3, -1),
    }
    np.testing.assert_allclose(read_image(layouts[shape]).pixels, stored / 255, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors(chest, dtype: torch.dtype):
    values = torch.from_numpy(chest() / 255).to(dtype).requires_grad_()
    radiograph = read_image(values[None])
    np.testing.assert_allclose(radiograph.pixels, values.detach().double().numpy(), atol=1e-6)
    assert radiograph.origin == "array"


def test_grey_rgb_jpeg_is_grey(tmp_path: Path, chest):
    stored = chest()
    path = save(tmp_path / "x.jpg", np.stack([stored] * 3, -1), quality=60)
    np.testing.assert_allclose(read_image(path).pixels, stored / 255, atol=0.06)


def test_a_small_coloured_marker_is_no_photograph(chest):
    rgb = np.stack([chest(200, 200)] * 3, -1)
    rgb[5:15, 5:20] = (255, 0, 0)
    assert read_image(rgb).pixels.shape == (200, 200)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "1"])
def test_other_modes(chest, mode: str):
    image = Image.fromarray(chest())
    if mode in ("LA", "RGBA"):
        image.putalpha(255)
    image = image.convert(mode)
    expected = np.asarray(image.convert("L")) / 255
    np.testing.assert_allclose(read_image(image).pixels, expected, atol=0.01)


def test_exif_orientation_turns_and_never_mirrors_by_itself(tmp_path: Path, chest):
    stored = chest()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(tmp_path / "x.png", stored, exif=exif)
    np.testing.assert_allclose(read_image(turned).pixels, np.rot90(stored, -1) / 255, atol=1e-6)


def test_hash_knows_dtype_shape_and_content(chest):
    stored = chest()
    hashes = {
        array_hash(stored),
        array_hash(stored.reshape(-1)),
        array_hash(stored.astype(np.uint16)),
        array_hash(stored[::-1]),
    }
    assert len(hashes) == 4
    assert array_hash(stored.astype(">u2")) == array_hash(stored.astype("<u2"))
    assert array_hash(np.asfortranarray(stored)) == array_hash(stored)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=32, max_side=40),
        elements=st.floats(0, 1, width=32),
        fill=st.just(0.25),
    )
)
def test_floats_come_back_as_they_are(values: np.ndarray):
    if np.ptp(values) < 1e-3:
        with pytest.raises(ImageError, match="constant"):
            read_image(values)
    else:
        np.testing.assert_array_equal(read_image(values).pixels, values)


# --- bad input: one line, xgem's own class -------------------------------------------------------------------------


def refused(source, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_empty_file(tmp_path: Path):
    refused(tmp_path / "none.png", "no such file")
    refused(str(tmp_path / "none.png"), "no such file")
    refused(tmp_path, "folder")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty")
    refused("bad\0name.png", "cannot be read")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "npy"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
def test_truncated_files(tmp_path: Path, chest, suffix: str, share: float):
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, chest(256, 256))
    else:
        save(path, chest(256, 256))
    data = path.read_bytes()
    path.write_bytes(data[: max(1, int(len(data) * share))])
    refused(path, "truncated|usable|not an image|damaged")


@pytest.mark.parametrize(
    "content", [b"hello, radiograph", b"%PDF-1.7 ...", b"\x00" * 400, b"\x08\x00\x05\x00" + b"\xff" * 300]
)
def test_other_content(tmp_path: Path, content: bytes):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    refused(path, "not a|damaged|without pixels")


@given(
    st.binary(min_size=1, max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\x00", b"\x93NUMPY", b"\0" * 128 + b"DICM"]),
)
def test_noise_is_refused_and_never_crashes(tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes):
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(head + data)
    refused(path, "noise")


def test_pickles_are_never_loaded(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(tmp_path / "x.npy", "usable")


def test_colour_photograph(tmp_path: Path, chest):
    stored = chest()
    refused(save(tmp_path / "x.png", np.stack([stored, stored // 2, 255 - stored], -1)), "colour")
    sepia = np.stack([stored, (stored * 0.85).astype(np.uint8), (stored * 0.7).astype(np.uint8)], -1)
    refused(sepia, "colour")


def test_constant_small_and_odd_shapes(chest):
    refused(np.full((64, 64), 128, np.uint8), "constant")
    refused(chest(31, 80), "31 x 80 pixels")
    refused(chest(80, 31), "80 x 31 pixels")
    refused(np.zeros((0, 64), np.uint8), "no pixels")
    refused(np.zeros((4, 64, 64), np.uint8), "shape")
    refused(np.zeros(64, np.uint8), "shape")
    refused(torch.zeros(2, 1, 64, 64), "shape")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, chest, value: float):
    values = chest().astype(np.float32) / 255
    values[3, 4] = value
    refused(values, "NaN or infinite")
    refused(torch.from_numpy(values), "NaN or infinite")
    np.save(tmp_path / "x.npy", values)
    refused(tmp_path / "x.npy", "NaN or infinite")
    tifffile.imwrite(tmp_path / "x.tif", values)
    refused(tmp_path / "x.tif", "NaN or infinite")


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.bool_, np.complex64])
def test_types_without_a_range(chest, dtype: type):
    refused(chest().astype(dtype), "no stated range")


def test_values_out_of_range(tmp_path: Path, chest):
    values = chest().astype(np.float32) / 255
    refused(values * 2 - 1, r"values in \[-1, 1\]")
    refused(values * 255, r"\[0, 255\]")
    refused(values.astype(np.float64) * 1e300, "values in")
    tifffile.imwrite(tmp_path / "x.tif", values * 255)
    refused(tmp_path / "x.tif", "floats must lie")


def test_several_frames(tmp_path: Path, chest):
    frames = [Image.fromarray(chest()), Image.fromarray(chest().T)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    refused(tmp_path / "x.tif", "2 frames")


def test_a_lazy_truncated_pil_image(chest):
    stream = io.BytesIO()
    Image.fromarray(chest(256, 256)).save(stream, "PNG")
    refused(Image.open(io.BytesIO(stream.getvalue()[:3000])), "truncated")


def test_unknown_sources_and_options(chest):
    refused(12, "int")
    refused([[1, 2]], "list")
    with pytest.raises(ImageError, match="voi"):
        read_image(chest(), voi="windows")  # type: ignore[arg-type]


@pytest.mark.data
def test_real_images(data_dir: Path):
    for path in [*sorted((data_dir / "openi/images").iterdir())[:3], *sorted((data_dir / "nih/images").iterdir())[:3]]:
        radiograph = read_image(path)
        assert radiograph.pixels.shape == (256, 256)
        assert radiograph.pixels.std() > 0.05
