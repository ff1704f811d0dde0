"""A sanity check of a labeller of reports: does it find in the text what human annotators indexed for the study?

The annotators' terms are not CheXpert's classes, so perfect agreement cannot be expected: they index the findings that
are present, whereas the labeller also counts possible ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from xgem.data.study import Study
from xgem.judges.report_labellers import ReportLabeller, RuleLabeller
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_matrix
from xgem.metrics.classification import as_binary
from xgem.types import DataError


def check_labeller(studies: Iterable[Study], labeller: ReportLabeller | None = None) -> dict[str, Any]:
    """Precision and recall of each class over the studies that have both text and labels (uncertain is positive).

    The labeller is xgem's rules unless another is given.

    Each class is evaluated on the studies whose annotation decides whether it is present; a class without positive
    annotations is left out.

    Raises:
        DataError: no study has both.
    """
    kept = [(study, f"{study.findings} {study.impression}".strip()) for study in studies if study.labels]
    kept = [(study, text) for study, text in kept if text]
    if not kept:
        raise DataError("no study has both a report and annotated labels: nothing to check the labeller against")
    # (n, 14) each; where an annotation is NaN, the label counts neither as right nor as wrong
    labeller = labeller or RuleLabeller()
    predicted = as_binary(labeller.label([text for _, text in kept]), uncertain="positive", blank="negative") == 1
    annotations = annotated_matrix(study for study, _ in kept)
    classes: dict[str, Any] = {}
    for name, positive, truth in zip(CHEXPERT_CLASSES, predicted.T, annotations.T, strict=True):
        annotated, labelled = int((truth == 1).sum()), int((positive & np.isfinite(truth)).sum())
        hits = int((positive & (truth == 1)).sum())
        if not annotated:
            continue
        classes[name] = {
            "annotated": annotated,
            "labelled": labelled,
            "precision": hits / labelled if labelled else None,
            "recall": hits / annotated,
        }
    return {"labeller": f"{labeller.name} {labeller.version[:16]}", "n": len(kept), "classes": classes}
