"""What xgem's own neighbours, SSIM and small classifier cost beside the libraries that do the same (ADR-0016).

    python benchmarks/libraries.py prdc [--n 8000] [--dim 768]
    python benchmarks/libraries.py ssim [--pairs 60]
    python benchmarks/libraries.py classifier --manifest MANIFEST [--epochs 5] [--seeds 3]

Each prints the ratio of processor time, library over ours, and by how much both differ. Run with OMP_NUM_THREADS=1.
``classifier`` trains on up to 2,400 frontal images of the split ``train`` and tests on up to 900 of other patients.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

K = 5


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def prdc(n: int, dim: int) -> dict[str, Any]:
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors

    from xgem.metrics import neighbours

    rng = np.random.default_rng(0)
    real = rng.standard_normal((n, dim), dtype=np.float32)
    generated = rng.standard_normal((n, dim), dtype=np.float32) * np.float32(1.02) + np.float32(0.02)

    def shares(balls: NDArray[Any], covered: NDArray[Any], reached: NDArray[Any]) -> dict[str, float]:
        values = {"precision": balls > 0, "recall": reached, "density": balls / K, "coverage": covered}
        return {name: float(value.mean()) for name, value in values.items()}

    def ours() -> dict[str, float]:
        radii = [neighbours.squared_radii(points, K) for points in (real, generated)]
        found = neighbours.overlap(real, generated, *radii)
        return shares(found.balls, found.covered, found.reached)

    def theirs() -> dict[str, float]:
        first, second = (
            NearestNeighbors(n_neighbors=K, algorithm="brute").fit(points).kneighbors()[0][:, -1]
            for points in (real, generated)
        )
        balls, covered, reached = np.zeros(n, dtype=np.int64), np.zeros(n, bool), np.zeros(n, bool)

        def count(block: NDArray[Any], start: int) -> None:
            rows = slice(start, start + len(block))
            inside = block < first[rows, None]
            balls[:] += inside.sum(axis=0)
            covered[rows], reached[rows] = inside.any(axis=1), (block < second).any(axis=1)

        for _ in pairwise_distances_chunked(real, generated, reduce_func=count, working_memory=256):
            pass
        return shares(balls, covered, reached)

    (own, mine), (library, other) = timed(ours), timed(theirs)
    return {"n": n, "dim": dim, "ratio": round(library / own, 2), "ours": mine, "scikit-learn": other}


def ssim(pairs: int) -> dict[str, Any]:
    import torch
    from skimage.metrics import structural_similarity
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as their_ms_ssim
    from torchmetrics.functional.image import structural_similarity_index_measure as their_ssim

    from xgem.metrics import similarity

    rng = np.random.default_rng(0)
    options: dict[str, Any] = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1.0,
    }
    result: dict[str, Any] = {"pairs": pairs}

    def put(name: str, own: tuple[float, Any], library: tuple[float, Any]) -> None:
        difference = float(np.abs(np.asarray(own[1]) - np.asarray(library[1])).max())
        result[name] = {"ratio": round(library[0] / own[0], 2), "largest difference": difference}

    for side in (64, 128, 256):
        x = rng.random((pairs, side, side))
        y = np.clip(x + rng.normal(0, 0.1, x.shape), 0, 1)
        both = list(zip(x, y, strict=True))
        tensors = [torch.from_numpy(values)[:, None] for values in (x, y)]
        own = timed(lambda both=both: [similarity.ssim(a, b) for a, b in both])
        put(
            f"SSIM {side}, scikit-image",
            own,
            timed(lambda both=both: [structural_similarity(a, b, **options) for a, b in both]),
        )
        put(
            f"SSIM {side}, torchmetrics",
            own,
            timed(lambda tensors=tensors: their_ssim(tensors[0], tensors[1], data_range=1.0, reduction="none")),
        )
        if side >= similarity.MS_SSIM_SIDE:
            put(
                f"MS-SSIM {side}, torchmetrics",
                timed(lambda both=both: [similarity.ms_ssim(a, b) for a, b in both]),
                timed(lambda tensors=tensors: their_ms_ssim(tensors[0], tensors[1], data_range=1.0, reduction="none")),
            )
    return result


def classifier(manifest: str, epochs: int, seeds: int) -> list[dict[str, Any]]:
    import timm
    from sklearn.metrics import roc_auc_score
    from torch import Tensor, nn

    from xgem.data.augment import standardised
    from xgem.data.set_files import read_set
    from xgem.judges import classifier as judges

    class Timm(nn.Module):
        def __init__(self, classes: int, width: int, dropout: float) -> None:
            super().__init__()
            channels = tuple(width * 2**stage for stage in range(4))
            self.body = timm.create_model("resnet18", pretrained=False, in_chans=1, num_classes=0, channels=channels)
            self.dropout, self.head = nn.Dropout(dropout), nn.Linear(channels[-1], classes)

        def features(self, x: Tensor) -> Tensor:
            return self.body(standardised(x))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.dropout(self.features(x)))

    items = read_set(manifest, split="train", view="frontal").with_images()
    patients = np.array([item.subject if item.subject is not None else item.id for item in items.items])
    held_out = np.isin(patients, np.random.default_rng(0).permutation(np.unique(patients))[:700])
    sets = [items.subset(np.flatnonzero(rows)[:most]) for rows, most in ((~held_out, 2400), (held_out, 900))]
    (images, labels), (test, truth) = (
        (part.images(128), np.where(part.labels() < 0, np.nan, part.labels())) for part in sets
    )
    kept = judges.learnable(labels)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name, network in (("ours", judges.SmallResNet), ("timm", Timm)):
            judges.SmallResNet = network  # pyright: ignore[reportAttributeAccessIssue]
            config = judges.ClassifierConfig(epochs=epochs, seed=seed)
            classes = [str(k) for k in kept]
            seconds, judge = timed(
                lambda c=config, n=classes: judges.train_classifier(images, labels[:, kept], n, config=c)
            )
            logits, areas = judge.logits(test), []
            for column, k in enumerate(kept):
                known = np.isfinite(truth[:, k])
                if min((truth[known, k] == value).sum() for value in (0, 1)) >= 10:
                    areas.append(roc_auc_score(truth[known, k], logits[known, column]))
            rows.append({"seed": seed, "network": name, "auroc": float(np.mean(areas)), "cpu_s": round(seconds, 1)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["prdc", "ssim", "classifier"])
    for name, default in (("--n", 8000), ("--dim", 768), ("--pairs", 60), ("--epochs", 5), ("--seeds", 3)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--manifest")
    options = parser.parse_args()
    if options.task == "prdc":
        found: Any = prdc(options.n, options.dim)
    elif options.task == "ssim":
        found = ssim(options.pairs)
    elif options.manifest:
        found = classifier(options.manifest, options.epochs, options.seeds)
    else:
        parser.error("classifier: --manifest is required")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
