from __future__ import annotations

import numpy as np
import pytest

from xgem.types import InputError
from xgem.utils.sheets import contact_sheet


def test_images_and_texts_in_their_places() -> None:
    images = np.stack([np.full((128, 128), value, dtype=np.uint8) for value in (50, 200, 250)])
    sheet = contact_sheet([("real", images), ("report", ["No acute disease."] * 3)], rows=2)
    pixels = np.asarray(sheet)
    assert pixels.shape == (16 + 2 * 132 - 4, 2 * 132 - 4)
    assert pixels[16 + 60, 60] == 50
    assert pixels[16 + 132 + 60, 60] == 200
    assert pixels[16:140, 132:].max() > 200  # the text


def test_columns_must_match() -> None:
    with pytest.raises(InputError, match="same number"):
        contact_sheet([("a", ["x"]), ("b", ["x", "y"])])
