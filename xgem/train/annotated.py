"""Latents of annotated images and of their annotations: training data of a ControlNet."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xgem.configs.components import ControlNetConfig, TransformConfig
from xgem.data.annotations import Annotation, Box, check_known, render
from xgem.data.cache import ArrayCache
from xgem.data.study import ANNOTATED_VIEW, read_study
from xgem.train.corpus import Corpus
from xgem.types import DataError
from xgem.utils.hashing import module_hash
from xgem.utils.random import mix

VERSION = 3
"""To be incremented whenever the same study would give different latents."""
KINDS = ("masks", "boxes", "severity")
_VARIANTS, _SUBSETS = 8, 2
_MANY = 500  # a structure, class or score with this many images needs no augmented variants
_LEAST_BOX = 0.01
_CHUNK = 64


@dataclass(frozen=True)
class AnnotatedBank:
    """``targets`` (v, c, h, w): latents of images; ``annotations`` (a, c, h, w): latents of annotation images.

    ``pairs``: by study, (image row, annotation row): every variant of the image (slightly shifted and scaled, never
    mirrored) with all of its annotation, with random parts of it, and with each kind alone.
    ``holds``: for every row of ``annotations``, the kinds that it shows.
    """

    targets: Tensor
    annotations: Tensor
    pairs: dict[int, list[tuple[int, int]]]
    holds: list[frozenset[str]]
    kinds: dict[str, dict[str, list[int]]]
    """By kind (masks, boxes, severity): the studies with each structure, class or score."""


def annotated_bank(
    corpus: Corpus,
    config: TransformConfig,
    codec: Any,
    cache: ArrayCache,
    device: torch.device,
    *,
    control: ControlNetConfig,
    vary: bool,
    seed: int,
) -> AnnotatedBank:
    """Encode the annotated frontal images of a corpus and their annotations, drawn as ``control`` specifies, or load
    both from the cache.

    Raises:
        DataError: no study of the split is annotated. InputError: a structure or class that
            ``control`` has no name for.
    """
    drawn: dict[int, Annotation] = {}
    for index, study in enumerate(corpus.studies):
        if study.annotated and corpus.rows(index, ANNOTATED_VIEW):
            drawn[index] = read_study(study, config)
            check_known(drawn[index], control.vocabulary)
    if not drawn:
        raise DataError("no annotated frontal image in this split: train on a manifest that has some")
    pairs: dict[int, list[tuple[int, int]]] = {}
    kinds = {kind: _by_thing(kind, drawn) for kind in KINDS}
    rare = {
        index for things in kinds.values() for studies in things.values() if len(studies) < _MANY for index in studies
    }
    plan: list[tuple[int, int, list[Annotation]]] = []
    holds: list[frozenset[str]] = []
    images = rows = 0
    for index, annotation in drawn.items():
        rng = random.Random(mix(seed, "annotated", corpus.studies[index].id))
        shown = [annotation]
        if vary:
            shown += [_some(annotation, rng) for _ in range(_SUBSETS)]
            shown += [_only(kind, annotation) for kind in KINDS if {kind} < _shows(annotation)]
        pairs[index] = []
        for variant in range(_VARIANTS if vary and index in rare else 1):
            plan.append((index, variant, shown))
            pairs[index] += [(images, rows + number) for number in range(len(shown))]
            holds += [_shows(part) for part in shown]
            images, rows = images + 1, rows + len(shown)

    @torch.no_grad()
    def make() -> dict[str, Tensor]:
        codec.to(device)
        targets, annotations = [], []
        for image, drawings in _variants(plan, corpus, config, control, seed):
            targets.append(image)
            annotations += drawings
        return {
            name: torch.cat(
                [codec.encode(torch.cat(found[i : i + _CHUNK]).to(device)).cpu() for i in range(0, len(found), _CHUNK)]
            )
            for name, found in (("targets", targets), ("annotations", annotations))
        }

    key = {
        "version": VERSION,
        "data": corpus.fingerprint(),
        "studies": [corpus.studies[index].id for index in drawn],
        "annotations": [annotation.sha256 for annotation in drawn.values()],
        "filled": control.filled_boxes,
        "vary": vary,
        "seed": seed,
        "codec": module_hash(codec),
        "config": codec.config.model_dump(mode="json"),
    }
    if control.structures or control.box_classes:  # else as it always was: drawn before, found again
        key["added"] = [control.structures, control.box_classes]
    return AnnotatedBank(**cache.get_or_make("annotated", key, make), pairs=pairs, holds=holds, kinds=kinds)


def _by_thing(kind: str, drawn: Mapping[int, Annotation]) -> dict[str, list[int]]:
    things: dict[str, list[int]] = {}
    for index, annotation in drawn.items():
        if kind == "masks":
            names = list(annotation.masks)
        elif kind == "boxes":
            names = sorted({box.label for box in annotation.boxes})
        else:
            names = [] if annotation.severity is None else [kind]
        for name in names:
            things.setdefault(name, []).append(index)
    return things


def _variants(
    plan: list[tuple[int, int, list[Annotation]]],
    corpus: Corpus,
    config: TransformConfig,
    control: ControlNetConfig,
    seed: int,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Every variant of every image (1, 1, s, s) with its annotation images, (1, 1, s, s) each."""
    how: dict[str, Any] = {"filled": control.filled_boxes, "vocabulary": control.vocabulary}
    for index, variant, shown in plan:
        image = corpus.images.floats(corpus.rows(index, ANNOTATED_VIEW)[:1])
        rng = random.Random(mix(seed, "moved", corpus.studies[index].id, variant))
        move = (1.0, 0.0, 0.0)
        if variant:
            move = (rng.uniform(0.88, 1.1), rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06))
        drawings = [
            torch.from_numpy(render(_moved(annotation, *move), config.size, **how))[None, None] for annotation in shown
        ]
        yield _moved_image(image + 1, *move, mode="bilinear") - 1, drawings


def _some(annotation: Annotation, rng: random.Random) -> Annotation:
    """A random part of an annotation: each item with probability 1/2, at least one."""
    items = [*annotation.masks, *annotation.boxes] + (["severity"] if annotation.severity is not None else [])
    kept = [item for item in items if rng.random() < 0.5] or [rng.choice(items)]
    return replace(
        annotation,
        masks={name: mask for name, mask in annotation.masks.items() if name in kept},
        boxes=tuple(box for box in annotation.boxes if box in kept),
        severity=annotation.severity if "severity" in kept else None,
    )


def _only(kind: str, annotation: Annotation) -> Annotation:
    without: dict[str, Any] = {"masks": {}, "boxes": (), "severity": None}
    return replace(annotation, **{name: nothing for name, nothing in without.items() if name != kind})


def _shows(annotation: Annotation) -> frozenset[str]:
    present = (annotation.masks, annotation.boxes, annotation.severity is not None)
    return frozenset(kind for kind, there in zip(KINDS, present, strict=True) if there)


def _moved_image(images: Tensor, scale: float, right: float, down: float, *, mode: str) -> Tensor:
    """Images (n, 1, s, s) scaled about the centre and shifted by fractions of the side, padded with zeros."""
    theta = images.new_tensor([[1 / scale, 0, -2 * right / scale], [0, 1 / scale, -2 * down / scale]])
    grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, align_corners=False)


def _moved(annotation: Annotation, scale: float, right: float, down: float) -> Annotation:
    masks = annotation.masks
    if masks:
        stack = torch.from_numpy(np.stack(list(masks.values()))).float()[:, None]
        moved = _moved_image(stack, scale, right, down, mode="nearest")[:, 0].numpy() > 0.5
        masks = {name: mask for name, mask in zip(masks, moved, strict=True) if mask.any()}
    boxes = [_moved_box(box, scale, right, down) for box in annotation.boxes]
    return replace(annotation, masks=masks, boxes=tuple(box for box in boxes if box is not None))


def _moved_box(box: Box, scale: float, right: float, down: float) -> Box | None:
    """The box after scaling and shifting; None if too little of it remains inside the image."""

    def along(start: float, length: float, shift: float) -> tuple[float, float]:
        ends = [min(1.0, max(0.0, 0.5 + scale * (x - 0.5) + shift)) for x in (start, start + length)]
        return ends[0], ends[1] - ends[0]

    (x, w), (y, h) = along(box.x, box.w, right), along(box.y, box.h, down)
    return Box(box.label, x, y, w, h) if min(w, h) > _LEAST_BOX else None
