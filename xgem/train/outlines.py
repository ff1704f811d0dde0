"""Masks for images that nobody has outlined, drawn by a segmenter that learnt from those that somebody has.

A ControlNet needs many images with masks, and hand-drawn masks are few. What a segmenter draws is for training only:
measures ask for hand-drawn masks, of other patients.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xgem.configs.components import TransformConfig
from xgem.data.manifest import Manifest, place
from xgem.data.outlines import Outlines
from xgem.data.prepare import prepare_images
from xgem.data.study import ANNOTATED_VIEW, Study, read_study
from xgem.data.transforms import evened_size, read_with
from xgem.judges.segmenter import SegmenterConfig, train_segmenter
from xgem.types import DataError, OutputError

logger = logging.getLogger(__name__)

OUTLINED: Final = ("left lung", "right lung", "cardiomediastinum", "heart")
LEAST_SHARE: Final = 0.02
"""A mask of a smaller share of the image is no lung and no heart: the image gets none of that structure."""


def outline(
    manifest: Manifest,
    masks: Path,
    cache: Path,
    *,
    config: SegmenterConfig | None = None,
    structures: Sequence[str] = OUTLINED,
    device: str = "cpu",
    progress: bool = True,
) -> Manifest:
    """Give the training frontals without any annotation masks of ``structures``; all other rows stay as they are.

    The segmenter learns from every image with a hand-drawn mask of one of them; a structure that nobody has drawn is
    left out. Images with boxes or a severity score get none, so that a ControlNet sees these alone too.

    Args:
        manifest: with hand-drawn masks of some of these structures in its split ``train``.
        masks: folder for the new masks, one PNG an image and structure, of the image's own size.
        cache: prepared images, and the segmenter.

    Raises:
        DataError: no training study has a mask of any of the structures.
        OutputError: the masks cannot be written.
    """
    config = config or SegmenterConfig()
    transform = TransformConfig(size=config.size)
    prepared = prepare_images(manifest, "train", transform, cache, progress=progress)
    all_studies = manifest.studies("train")
    studies = [study for study in all_studies if ANNOTATED_VIEW in study.images]
    first = {
        study.id: prepared.rows(number, study, ANNOTATED_VIEW)[0]
        for number, study in enumerate(all_studies)
        if ANNOTATED_VIEW in study.images
    }
    known = [name for name in structures if any(name in study.masks for study in studies)]
    if not known:
        raise DataError(
            f"no study of split 'train' has a mask of {', '.join(structures)}: there is nothing to learn from"
        )
    drawn = [study for study in studies if any(name in study.masks for name in known)]

    def images(of: Sequence[Study]) -> NDArray[np.uint8]:
        return prepared.values[[first[study.id] for study in of]].numpy()

    outlines = Outlines.stacked([read_study(study, transform).masks for study in drawn], known, config.size)
    segmenter = train_segmenter(images(drawn), outlines, config=config, cache=cache, device=device)
    lacking = [study for study in studies if not study.annotated]
    try:
        masks.mkdir(parents=True, exist_ok=True)
        found = {
            study.id: _written(study, seen, segmenter.structures, masks, manifest.root)
            for study, seen in zip(lacking, segmenter.masks(images(lacking)) if lacking else (), strict=True)
        }
    except OSError as error:
        raise OutputError(f"{masks}: cannot be written ({error.strerror or error})") from error
    logger.info("segmenter %s learnt from %d studies and outlined %d", segmenter.hash, len(drawn), len(found))
    rows = tuple(row.model_copy(update={"masks": found.get(row.study) or row.masks}) for row in manifest.rows)
    return Manifest(rows, manifest.root)


def _written(
    study: Study, found: NDArray[np.bool_], structures: Sequence[str], folder: Path, root: Path
) -> dict[str, tuple[str, ...]]:
    """The study's masks (structures, s, s) as files on its image's own grid, without the square's padding."""
    file = study.images[ANNOTATED_VIEW][0]
    image = read_with(file, reading=study.reading_of(file))
    stored = image.pixels.shape
    height, width = evened_size((stored[0], stored[1]), image.aspect)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    files: dict[str, tuple[str, ...]] = {}
    for name, mask in zip(structures, found, strict=True):
        if mask.mean() < LEAST_SHARE:
            continue
        square = Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST)
        drawn = folder / f"{study.id}.{name.replace(' ', '-')}.png"
        partial = drawn.with_name(f".{drawn.name}.{os.getpid()}.part")
        shown = square.crop((left, top, left + width, top + height))
        shown.resize((stored[1], stored[0]), Image.Resampling.NEAREST).save(partial, format="PNG")
        partial.replace(drawn)
        files[name] = (place(drawn, root),)
    return files
