"""Retrieval baseline: the report of the training study whose images are nearest to those of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xgem.data.sets import EvalSet
from xgem.eval.features import extract
from xgem.judges.extractors import Extractor
from xgem.metrics.agreement import directions
from xgem.metrics.bootstrap import Array
from xgem.metrics.privacy import latent_distance
from xgem.types import DataError, NotComputed


@dataclass(frozen=True)
class Retrieval:
    """Retrieved training reports by the id of the real study; ``settings`` say from which space and how many."""

    reports: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def of(self, items: EvalSet) -> list[str]:
        """The retrieved report of each item.

        Raises:
            DataError: an item has none.
        """
        missing = [item.id for item in items.items if item.id not in self.reports]
        if missing:
            raise DataError(f"{items.name}: no retrieved report for {len(missing)} items, first {missing[0]!r}")
        return [self.reports[item.id] for item in items.items]


def retrieve(
    real: Mapping[str, EvalSet],
    training: Mapping[str, EvalSet],
    report: str,
    spaces: Mapping[str, Extractor],
    *,
    cache: Path | None = None,
    device: str = "cpu",
) -> Retrieval:
    """The report of the training study with the highest mean cosine similarity over the prompt's views.

    Args:
        real: the prompts' images by view, row by row of the same studies.
        training: images by view and reports of training studies, matched by id; those that lack a view or the report
            are left out.
        report: the report's modality.
        spaces: a feature space for each view of the prompts.
        cache: folder of features.

    Raises:
        NotComputed: no training study has all of the views and a report.
        ImageError, DataError, OutputError: as :func:`xgem.eval.features.extract`.
    """
    views = list(spaces)
    written = {item.id: item.report for item in training[report].items if item.report.strip()}
    rows = [{item.id: row for row, item in enumerate(training[view].items) if item.file} for view in views]
    known = [name for name in written if all(name in one for one in rows)]
    if not known:
        raise NotComputed(f"no training study has {' and '.join(views)} and a report: there is nothing to retrieve")
    places = zip(views, rows, strict=True)
    candidates = {view: training[view].subset([one[name] for name in known]) for view, one in places}
    queries, keys = (_joined(sets, spaces, cache) for sets in (real, candidates))
    nearest = latent_distance(queries, keys, device=device).rows
    ids = [item.id for item in real[views[0]].items]
    return Retrieval(
        {name: written[known[int(row)]] for name, row in zip(ids, nearest, strict=True)},
        {
            "spaces": {view: {"name": space.name, "weights": space.weights} for view, space in spaces.items()},
            "training studies": len(known),
            "similarity": "cosine, mean over views",
        },
    )


def _joined(sets: Mapping[str, EvalSet], spaces: Mapping[str, Extractor], cache: Path | None) -> Array:
    """Directions of all views side by side: the nearest by distance then has the highest mean cosine similarity."""
    features = (extract(sets[view], space, cache).astype(np.float64) for view, space in spaces.items())
    return np.concatenate([directions(part) for part in features], axis=1)
