"""Radiographs as inputs: the content of a file decides, not its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xgem.configs.preset import Preset
from xgem.modalities import get_modality
from xgem.types import ImageError


def test_a_webp_file_is_refused_whatever_its_name(debug_preset: Preset, tmp_path: Path) -> None:
    """WebP is lossy and in colour; the same pixels as PNG, JPEG or BMP are read under any name."""
    y, x = np.mgrid[0:64, 0:64] / 64
    image = Image.fromarray(np.uint8(128 + 100 * np.sin(6 * x) * np.cos(4 * y)))
    for kind in ("PNG", "BMP", "JPEG"):
        image.save(tmp_path / "named.webp", kind)
        assert get_modality("frontal").read(tmp_path / "named.webp", debug_preset).value.shape[0] == 1
    image.save(tmp_path / "named.png", "WEBP", lossless=True)
    with pytest.raises(ImageError, match=r"named\.png: not an image that can be read; expected PNG, JPEG, TIFF"):
        get_modality("frontal").read(tmp_path / "named.png", debug_preset)
