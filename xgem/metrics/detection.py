"""Average precision and recall of boxes at IoU 0.5, by pycocotools' matching, on every resampling of the images."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array
from xgem.types import NotComputed

IOU: Final = 0.5
MOST: Final = 100
"""Detections an image that count, the best first (COCO)."""


@dataclass(frozen=True)
class Matches:
    """Detections of n images matched with the truth.

    ``image``, ``label`` (m,) int, ``score`` (m,), ``hit`` (m,) bool; ``boxes`` (n, classes): how many are there.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: Array
    hit: NDArray[np.bool_]
    boxes: NDArray[np.int64]


def match(found: dict[str, NDArray[Any]], truth: NDArray[Any], classes: int, size: int) -> Matches:
    """Match detections with annotated boxes, class by class and best score first, at IoU 0.5.

    Args:
        found: ``image``, ``label``, ``score`` (m,), ``box`` (m, 4) as x1, y1, x2, y2 in pixels.
        truth: (n, k, 5) of label, x1, y1, x2, y2; rows of label -1 are no boxes.

    Raises:
        NotComputed: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise NotComputed("the package pycocotools is not installed") from error

    def corners(image: int, label: int, box: Any, score: float, number: int) -> dict[str, Any]:
        x, y, right, bottom = (float(one) for one in box)
        sides = [x, y, right - x, bottom - y]
        area = sides[2] * sides[3]
        return {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": sides,
            "area": area,
            "score": score,
            "iscrowd": 0,
        }

    rows = [(image, int(row[0]), row[1:], 1.0) for image, own in enumerate(truth) for row in own if row[0] >= 0]
    detections = list(zip(found["image"].tolist(), found["label"].tolist(), found["box"], found["score"], strict=True))
    counts = np.zeros((len(truth), classes), dtype=np.int64)
    for image, label, _, _ in rows:
        counts[image, label] += 1
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        sides: list[Any] = []
        for boxes in (rows, detections):
            side: Any = COCO()
            side.dataset = {
                "images": [{"id": k, "width": size, "height": size} for k in range(len(truth))],
                "categories": [{"id": k, "name": str(k)} for k in range(classes)],
                "annotations": [
                    corners(image, label, box, float(score), number)
                    for number, (image, label, box, score) in enumerate(boxes, start=1)
                ],
            }
            side.createIndex()
            sides.append(side)
        judge: Any = COCOeval(sides[0], sides[1], "bbox")
        judge.params.iouThrs = np.array([IOU])
        judge.params.maxDets = [MOST]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
    results = [one for one in judge.evalImgs if one is not None]
    parts = [
        (one["image_id"], one["category_id"], score, matched > 0)
        for one in results
        for score, matched in zip(one["dtScores"], one["dtMatches"][0], strict=True)
    ]
    image, label, score, hit = zip(*parts, strict=True) if parts else ((), (), (), ())
    return Matches(
        np.array(image, dtype=np.int64),
        np.array(label, dtype=np.int64),
        np.array(score, dtype=np.float64),
        np.array(hit, dtype=bool),
        counts,
    )


def precision_and_recall(matches: Matches, label: int, weights: Array) -> tuple[Array, Array]:
    """AP50 (101 recall points, Lin et al. 2014) and the highest recall of one class on b resamplings: (b,) each.

    ``weights`` (b, n): how often each image counts. NaN where a resampling has no box of the class.
    """
    rows = np.flatnonzero(matches.label == label)
    rows = rows[np.argsort(-matches.score[rows], kind="stable")]
    there = weights @ matches.boxes[:, label].astype(np.float64)
    points = np.linspace(0, 1, 101)
    precision, recall = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    for b in np.flatnonzero(there):
        counted = weights[b, matches.image[rows]]
        hits = (counted * matches.hit[rows]).cumsum()
        share = hits / there[b]
        precise = hits / (counted.cumsum() + np.spacing(1))
        highest = np.maximum.accumulate(precise[::-1])[::-1]
        at = np.searchsorted(share, points, side="left")
        precision[b] = np.where(at < len(rows), np.append(highest, 0.0)[at], 0.0).mean()
        recall[b] = share[-1] if len(rows) else 0.0
    return precision, recall


def image_f1(matches: Matches, threshold: float) -> Array:
    """F1 of each image's boxes with scores from ``threshold`` on, (n,); 1 where none is there and none was found."""
    n = len(matches.boxes)
    sure = matches.score >= threshold
    found = np.bincount(matches.image[sure], minlength=n)
    hits = np.bincount(matches.image[sure & matches.hit], minlength=n)
    total = found + matches.boxes.sum(axis=1)
    return np.divide(2.0 * hits, total, out=np.ones(n), where=total > 0)
