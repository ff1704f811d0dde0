"""Crops of images that the image codec learns from."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.train.batches import batch_of
from xgem.configs.preset import Preset
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.image_vae import ImageVAEStage, crops
from xgem.train.share import fixed_rngs


def test_crops_are_parts_of_their_images_on_the_grid() -> None:
    x = torch.arange(2 * 32 * 32.0).view(2, 1, 32, 32)
    found: set[tuple[int, int]] = set()
    for seed in range(40):
        parts = crops(x, 16, 8, fixed_rngs(seed, count=2))
        assert parts.shape == (2, 1, 16, 16)
        for image, part in zip(x, parts, strict=True):
            i, j = divmod(int(part[0, 0, 0] - image[0, 0, 0]), 32)
            torch.testing.assert_close(part[0], image[0, i : i + 16, j : j + 16])
            found.add((i, j))
    assert found == {(i, j) for i in (0, 8, 16) for j in (0, 8, 16)}


def test_the_codec_is_trained_on_crops_and_measured_on_whole_images(
    debug_preset: Preset, corpora: tuple[Corpus, Corpus]
) -> None:
    config = debug_preset.train["image-vae"]
    sides: dict[float, int] = {}
    for crop in (1.0, 0.5):
        settings = config.model_copy(update={"loss": {"crop": crop}})
        preset = debug_preset.model_copy(update={"train": {"image-vae": settings}})
        stage = ImageVAEStage(StageContext(preset, *corpora, Path("root"), seed=0))
        batch = batch_of(stage, 3)
        assert torch.equal(batch["x"], batch_of(stage, 3)["x"])  # a function of the step alone
        assert not torch.equal(batch["x"], batch_of(stage, 4)["x"])
        loss, terms = stage.loss(stage.module, batch)
        assert set(terms) == {"l1", "gradient", "spectral", "kl"}  # the crop is no term
        assert torch.isfinite(loss)
        with torch.no_grad():
            assert stage.validate(stage.module.eval())["psnr"] > 0
        sides[crop] = batch["x"].shape[-1]
    assert sides == {1.0: 32, 0.5: 16}
