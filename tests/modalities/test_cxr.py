"""Radiographs as inputs: the content of a file decides, not its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xgem.configs.preset import Preset
from xgem.modalities import get_modality
from xgem.types import ImageError


def test_the_content_of_a_file_decides(debug_preset: Preset, tmp_path: Path) -> None:
    y, x = np.mgrid[0:64, 0:64] / 64
    image = Image.fromarray(np.uint8(128 + 100 * np.sin(6 * x) * np.cos(4 * y)))
    image.save(tmp_path / "right.png")
    expected = get_modality("frontal").read(tmp_path / "right.png", debug_preset).value
    for kind in ("PNG", "BMP", "WEBP"):
        for name in ("named.webp", "named.png"):
            image.save(tmp_path / name, kind, lossless=True)
            read = get_modality("frontal").read(tmp_path / name, debug_preset).value
            np.testing.assert_array_equal(read, expected)
    (tmp_path / "named.png").write_text("No images here.")
    with pytest.raises(ImageError, match=r"named\.png: not a readable image; expected PNG, JPEG, TIFF"):
        get_modality("frontal").read(tmp_path / "named.png", debug_preset)
