"""The judge of masks: trained on squares, cached by content, and blind to what is not outlined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xgem.data.augment import small_moves
from xgem.data.outlines import Outlines
from xgem.judges import segmenter as shapes
from xgem.judges.segmenter import SegmenterConfig, train_segmenter
from xgem.metrics import spatial
from xgem.types import InputError

SIZE = 32


def square(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    images = rng.integers(60, 120, (count, SIZE, SIZE), dtype=np.uint8)
    masks = np.zeros((count, 1, SIZE, SIZE), dtype=bool)
    for image, mask in zip(images, masks[:, 0], strict=True):
        y, x = rng.integers(4, 16, 2)
        mask[y : y + 12, x : x + 12] = True
        image[mask] += 100
    return images, masks


def test_segmenter_is_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = square(np.random.default_rng(0), 32)
    outlines = Outlines(("square",), masks, np.ones((32, 1), dtype=bool))
    config = SegmenterConfig(width=8, epochs=10)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = train_segmenter(images, outlines, config=config, cache=tmp_path)
    assert torch.equal(torch.rand(3), expected), "the random state outside is left alone"
    test, truth = square(np.random.default_rng(1), 16)
    dice, iou = spatial.overlaps(first.masks(test)[:, 0], truth[:, 0])
    assert np.diag(dice).mean() > 0.9
    assert np.diag(iou).mean() > 0.8
    assert train_segmenter(images, outlines, config=config).hash == first.hash

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(shapes, "fit", fail)
    again = train_segmenter(images, outlines, config=config, cache=tmp_path)
    assert again.hash == first.hash
    np.testing.assert_array_equal(again.masks(test), first.masks(test))
    with pytest.raises(AssertionError, match="trained again"):
        train_segmenter(images, Outlines(("square",), ~masks, outlines.known), config=config, cache=tmp_path)


def test_unknown_masks_have_no_say() -> None:
    images, masks = square(np.random.default_rng(0), 16)
    known = np.arange(16)[:, None] % 2 == 0
    config = SegmenterConfig(width=8, epochs=1)
    wrong = np.where(known[..., None, None], masks, ~masks)
    hashes = {train_segmenter(images, Outlines(("a",), one, known), config=config).hash for one in (masks, wrong)}
    assert len(hashes) == 1
    everything = Outlines(("a",), wrong, np.ones_like(known))
    assert train_segmenter(images, everything, config=config).hash not in hashes


def test_segmenter_refuses_what_it_cannot_use() -> None:
    images, masks = square(np.random.default_rng(0), 16)
    outlines = Outlines(("a",), masks, np.ones((16, 1), dtype=bool))
    with pytest.raises(InputError, match=r"expected \(n, k, s, s\)"):
        train_segmenter(images[:8], outlines)
    with pytest.raises(InputError, match="divisible by 16"):
        train_segmenter(images[:, :30, :30], replace(outlines, masks=masks[..., :30, :30]))
    with pytest.raises(InputError, match="at least one batch"):
        train_segmenter(images, outlines, config=SegmenterConfig(batch_size=32))


def test_augmentation_never_mirrors() -> None:
    torch.manual_seed(0)
    grid = small_moves(torch.zeros(2000, 1, 8, 8))
    assert (grid[:, :, 1:, 0] > grid[:, :, :-1, 0]).all()
    assert (grid[:, 1:, :, 1] > grid[:, :-1, :, 1]).all()
