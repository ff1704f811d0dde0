"""Average precision and recall of bounding boxes at IoU 0.5, matched by pycocotools, on each resampling of images."""

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
"""Maximum number of detections per image that count, by score (COCO)."""


@dataclass(frozen=True)
class Matches:
    """Detections in n images matched with the ground truth.

    ``image``, ``label`` (m,) int, ``score`` (m,), ``hit`` (m,) bool; ``boxes`` (n, classes): numbers of true boxes.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: Array
    hit: NDArray[np.bool_]
    boxes: NDArray[np.int64]


def match(found: dict[str, NDArray[Any]], truth: NDArray[Any], classes: int, size: int) -> Matches:
    """Match detections with annotated boxes at IoU 0.5, class by class, in order of descending score.

    Args:
        found: ``image``, ``label``, ``score`` (m,), ``box`` (m, 4) as x1, y1, x2, y2 in pixels.
        truth: (n, k, 5) of label, x1, y1, x2, y2; rows of label -1 are padding.

    Raises:
        NotComputed: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise NotComputed("the package pycocotools is not installed") from error

    def annotation(image: int, label: int, box: Any, score: float, number: int) -> dict[str, Any]:
        """One box in COCO's form: x, y, width, height."""
        x, y, right, bottom = (float(edge) for edge in box)
        bbox = [x, y, right - x, bottom - y]
        area = bbox[2] * bbox[3]
        return {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": bbox,
            "area": area,
            "score": score,
            "iscrowd": 0,
        }

    # True boxes and detections as (image, label, box, score)
    annotated = [(image, int(row[0]), row[1:], 1.0) for image, rows in enumerate(truth) for row in rows if row[0] >= 0]
    detections = list(zip(found["image"].tolist(), found["label"].tolist(), found["box"], found["score"], strict=True))
    counts = np.zeros((len(truth), classes), dtype=np.int64)
    for image, label, _, _ in annotated:
        counts[image, label] += 1
    # Let COCOeval match them
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        sides: list[Any] = []
        for boxes in (annotated, detections):
            side: Any = COCO()
            side.dataset = {
                "images": [{"id": k, "width": size, "height": size} for k in range(len(truth))],
                "categories": [{"id": k, "name": str(k)} for k in range(classes)],
                "annotations": [
                    annotation(image, label, box, float(score), number)
                    for number, (image, label, box, score) in enumerate(boxes, start=1)
                ],
            }
            side.createIndex()
            sides.append(side)
        evaluator: Any = COCOeval(sides[0], sides[1], "bbox")
        evaluator.params.iouThrs = np.array([IOU])
        evaluator.params.maxDets = [MOST]
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.evaluate()
    # One result per image and class; row 0 of the matches is the only IoU threshold
    results = [result for result in evaluator.evalImgs if result is not None]
    parts = [
        (result["image_id"], result["category_id"], score, matched > 0)
        for result in results
        for score, matched in zip(result["dtScores"], result["dtMatches"][0], strict=True)
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
    # The class's detections, best first
    rows = np.flatnonzero(matches.label == label)
    rows = rows[np.argsort(-matches.score[rows], kind="stable")]
    box_counts = weights @ matches.boxes[:, label].astype(np.float64)  # (b,)
    points = np.linspace(0, 1, 101)
    average_precision, recall = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    for b in np.flatnonzero(box_counts):
        # Recall and precision after each detection
        counted = weights[b, matches.image[rows]]
        hits = (counted * matches.hit[rows]).cumsum()
        recalls = hits / box_counts[b]
        precisions = hits / (counted.cumsum() + np.spacing(1))
        # Interpolated precision: the highest at this recall or above
        highest = np.maximum.accumulate(precisions[::-1])[::-1]
        at = np.searchsorted(recalls, points, side="left")
        average_precision[b] = np.where(at < len(rows), np.append(highest, 0.0)[at], 0.0).mean()
        recall[b] = recalls[-1] if len(rows) else 0.0
    return average_precision, recall


def image_f1(matches: Matches, threshold: float) -> Array:
    """F1 of each image's boxes with scores of at least ``threshold``, (n,); 1 for an image without any box."""
    n = len(matches.boxes)
    kept = matches.score >= threshold
    detected = np.bincount(matches.image[kept], minlength=n)
    hits = np.bincount(matches.image[kept & matches.hit], minlength=n)
    total = detected + matches.boxes.sum(axis=1)
    return np.divide(2.0 * hits, total, out=np.ones(n), where=total > 0)
