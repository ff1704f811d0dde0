"""Fits and measures the classifier of views that `xgem data prepare dicom --guess-views` uses, and ships it.

    xgem data prepare openi openi --extra openi_extra --out openi.parquet
    python benchmarks/views.py openi.parquet --out xgem/assets/judges/views

Fits on the split train and measures on val: accuracy of all, and of those that it is sure of. For comparison, the best
threshold on how much an image equals its mirror image. `--frontals MANIFEST` measures on another data set's frontals.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xgem.data.manifest import Manifest
from xgem.data.prepare import prepare_images
from xgem.data.rows import SPLITS
from xgem.judges.extractors import open_extractor
from xgem.judges.views import LEAST, SPACE, TRANSFORM, VIEWS, ViewGuess, vectors_of

INVERSE_PENALTY = 0.01


def images_of(path: Path, splits: Sequence[str], cache: str) -> tuple[Any, Any]:
    """Images (n, s, s) uint8 of frontals and laterals, and (n,) whether each is a lateral."""
    manifest, images = Manifest.read(path), {view: list[Any]() for view in VIEWS}
    for split in splits:
        studies = manifest.studies(split)
        if studies:
            prepared = prepare_images(manifest, split, TRANSFORM, cache)
            for view, found in images.items():
                rows = [row for number, study in enumerate(studies) for row in prepared.rows(number, study, view)]
                found.extend(prepared.values[rows].numpy())
    return np.stack([*images[VIEWS[0]], *images[VIEWS[1]]]), np.repeat([False, True], [*map(len, images.values())])


def symmetry(images: Any) -> Any:
    """Correlation (n,) of each image with its mirror image."""
    centred = images - images.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    mirrored = (centred * centred[:, :, ::-1]).sum(axis=(1, 2))
    return mirrored / (centred**2).sum(axis=(1, 2))


def measured(probability: Any, lateral: Any) -> dict[str, Any]:
    right = (probability > 0.5) == lateral
    sure = np.maximum(probability, 1 - probability) >= LEAST
    return {
        "n": len(lateral),
        "accuracy": round(float(right.mean()), 4),
        "sure": int(sure.sum()),
        "accuracy of the sure": round(float(right[sure].mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--frontals", type=Path)
    options = parser.parse_args()
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features = open_extractor(SPACE)
    with tempfile.TemporaryDirectory() as cache:
        images, lateral = images_of(options.manifest, ["train"], cache)
        held_out, truth = images_of(options.manifest, ["val"], cache)
        vectors = vectors_of(images, features)
        scaler = StandardScaler().fit(vectors)
        fitted = LogisticRegression(C=INVERSE_PENALTY, max_iter=5000).fit(scaler.transform(vectors), lateral)
        weight = (fitted.coef_[0] / scaler.scale_).astype(np.float32).astype(np.float64)
        guess = ViewGuess(features, weight, float(np.float32(fitted.intercept_[0] - weight @ scaler.mean_)))
        results = {"train": measured(guess.laterals(images), lateral), "val": measured(guess.laterals(held_out), truth)}
        alike, seen = symmetry(images), symmetry(held_out)
        cuts = np.quantile(alike, np.linspace(0.01, 0.99, 99))
        cut = cuts[np.argmax([((alike < one) == lateral).mean() for one in cuts])]
        results["symmetry, val"] = {"n": len(truth), "accuracy": round(float(((seen < cut) == truth).mean()), 4)}
        if options.frontals:
            others, none = images_of(options.frontals, SPLITS, cache)
            results["other frontals"] = measured(guess.laterals(others[~none]), none[~none])
    print(json.dumps(results, indent=2))
    if options.out:
        about = {"data": "Open-i, split train", "least": LEAST, "n": len(lateral), "val": results["val"]}
        options.out.mkdir(parents=True, exist_ok=True)
        guess.save(options.out, about)


if __name__ == "__main__":
    main()
