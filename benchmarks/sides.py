"""Trains and measures the judge of sides that `xgem eval prompts` uses, and ships it.

    xgem data prepare openi openi --out openi.parquet
    xgem data prepare nih nih --out nih.parquet
    xgem data prepare nih nih_boxes --out nih_boxes.parquet
    python benchmarks/sides.py openi.parquet nih.parquet nih_boxes.parquet --out xgem/assets/judges/sides

Sides are those that reports and boxes name. Trains on split train of every manifest, without the patients that are held
out: split val and test, and a share of the patients that have boxes, drawn by the seed. What is held out is measured by
manifest and group, beside a judge that says the side with the brighter half. `--mirror` adds mirrored copies with sides
exchanged to the training images, for comparison: the heart is then on the wrong side.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.data.manifest import Manifest
from xgem.data.sets import EvalSet, Item
from xgem.data.study import Study
from xgem.eval.prompts import sides_named
from xgem.judges.classifier import ClassifierConfig
from xgem.judges.saved import open_judge
from xgem.judges.sides import GROUPS, SideConfig, accuracy_of, sides_of, targets_of, train_sides
from xgem.labels.vocabulary import annotated_labels

VIEW = "frontal"


def images_of(studies: list[Study], size: int) -> NDArray[np.uint8]:
    """(n, size, size) of each study's first frontal."""
    items = tuple(Item(study.id, study.images[VIEW][0], reading=study.reading) for study in studies)
    return EvalSet("studies", items, pad=True).images(size)


def brighter_half(images: NDArray[np.uint8], sides: NDArray[np.float64]) -> dict[str, float]:
    """Share on which the half that is brighter than the other, compared with the median image, is the finding's."""
    half = images.shape[2] // 2
    difference = images[..., half:].mean(axis=(1, 2)) - images[..., :half].mean(axis=(1, 2))
    difference -= np.median(difference)
    right = np.where(np.isfinite(sides), (difference[:, None] > 0) == (sides > 0), np.nan)
    known = [k for k in range(len(GROUPS)) if np.isfinite(right[:, k]).any()]
    return {list(GROUPS)[k]: round(float(np.nanmean(right[:, k])), 3) for k in known}


def told(accuracy: dict[str, Any]) -> list[str]:
    """The groups whose side is told better than by chance on held-out images: binomial test, one-sided, p < 0.025."""
    from scipy.stats import binomtest

    names: list[str] = []
    for name in GROUPS:
        parts = [part[name] for part in accuracy.values() if part[name]["n"]]
        n, right = sum(part["n"] for part in parts), sum(round(part["n"] * part["accuracy"]) for part in parts)
        if n and binomtest(right, n, 0.5, alternative="greater").pvalue < 0.025:
            names.append(name)
    return names


def mirrored(images: NDArray[np.uint8], targets: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.concatenate([images, images[..., ::-1]]), np.concatenate([targets, targets[:, :, [1, 0, 2]]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--frozen", action="store_true", help="train only what reads the judge's maps: minutes on a CPU"
    )
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--epochs", type=int, default=SideConfig().epochs)
    parser.add_argument("--size", type=int, default=SideConfig().size)
    parser.add_argument("--held-out", type=float, default=0.3, help="share of the patients with boxes")
    parser.add_argument("--folder", type=Path, help="keeps the last epoch")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    config = SideConfig(epochs=options.epochs, size=options.size)
    if options.frozen:
        config = replace(config, learning_rate=3e-3, dropout=0.3)
    # Studies for training and for measuring, apart by patient
    read = {path.stem: Manifest.read(path).studies(None) for path in options.manifests}
    by_manifest = {name: [study for study in studies if VIEW in study.images] for name, studies in read.items()}
    everyone = [study for studies in by_manifest.values() for study in studies]
    boxed = sorted({study.subject for study in everyone if study.boxes})
    drawn = np.random.default_rng(config.seed).permutation(len(boxed))[: round(options.held_out * len(boxed))]
    kept_apart = {boxed[k] for k in drawn} | {study.subject for study in everyone if study.split != "train"}
    training = [study for study in everyone if study.subject not in kept_apart]
    # What is known of them; a box list is no statement about findings without a box
    labels = [annotated_labels(study.labels, study.source) for study in training]
    images, targets = images_of(training, config.size), targets_of([sides_named(s) for s in training], labels)
    if options.mirror:
        images, targets = mirrored(images, targets)
    start = open_judge(None, VIEW, None, config=ClassifierConfig()).classifier.state
    judge = train_sides(images, targets, start=start, frozen=options.frozen, config=config, folder=options.folder)
    accuracy: dict[str, Any] = {}
    for name, studies in by_manifest.items():
        held_out = [study for study in studies if study.subject in kept_apart]
        sides = sides_of([sides_named(study) for study in held_out])
        rows = np.flatnonzero(np.isfinite(sides).any(axis=1))
        if len(rows):
            seen, truth = images_of([held_out[k] for k in rows], config.size), sides[rows]
            accuracy[name] = {**accuracy_of(judge, seen, truth), "brighter half": brighter_half(seen, truth)}
    sided = np.isfinite(sides_of([sides_named(s) for s in training])).sum(axis=0)
    about = {
        "data": [path.stem for path in options.manifests],
        "training": {"n": len(training), "one-sided": dict(zip(GROUPS, sided.tolist(), strict=True))},
        "accuracy": accuracy,
    }
    about["told"] = told(accuracy)
    print(json.dumps(about, indent=2))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        judge.save(options.out, about)


if __name__ == "__main__":
    main()
