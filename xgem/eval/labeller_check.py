"""A sanity measure of ``xgem-rules``: does it find in the text what human annotators indexed for the study?

The annotators' terms are not CheXpert's classes, so that perfect agreement is not to be expected: they index what
is there, whereas the labeller also counts what is possible.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from xgem.eval.labels import CHEXPERT_CLASSES, LABELLER, LABELLER_VERSION, label_matrix
from xgem.types import DataError, Study

ANNOTATIONS: Final[dict[str, frozenset[str]]] = {
    "No Finding": frozenset({"normal", "No Finding"}),
    "Cardiomegaly": frozenset({"Cardiomegaly"}),
    "Lung Lesion": frozenset({"Nodule", "Mass"}),
    "Lung Opacity": frozenset({"Opacity", "Airspace Disease", "Infiltrate", "Infiltration", "Density"}),
    "Edema": frozenset({"Pulmonary Edema", "Pulmonary Congestion", "Heart Failure", "Edema"}),
    "Consolidation": frozenset({"Consolidation"}),
    "Pneumonia": frozenset({"Pneumonia"}),
    "Atelectasis": frozenset({"Pulmonary Atelectasis", "Atelectasis"}),
    "Pneumothorax": frozenset({"Pneumothorax", "Hydropneumothorax"}),
    "Pleural Effusion": frozenset({"Pleural Effusion", "Effusion"}),
    "Pleural Other": frozenset({"Thickening", "Pleural_Thickening"}),
    "Fracture": frozenset({"Fractures, Bone"}),
    "Support Devices": frozenset(
        {"Catheters, Indwelling", "Implanted Medical Device", "Medical Device", "Tube, Inserted", "Stents"}
    ),
}
"""The annotators' terms that stand for a class; Enlarged Cardiomediastinum has none."""


def check_labeller(studies: Iterable[Study]) -> dict[str, Any]:
    """Precision and recall of each class over the studies that have both text and labels (uncertain is positive).

    Raises:
        DataError: no study has both.
    """
    kept = [(study, f"{study.findings} {study.impression}".strip()) for study in studies if study.labels]
    kept = [(study, text) for study, text in kept if text]
    if not kept:
        raise DataError("no study has both a report and annotated labels: nothing to check the labeller against")
    predicted = label_matrix(text for _, text in kept)
    classes: dict[str, Any] = {}
    for name, terms in ANNOTATIONS.items():
        column = predicted[:, CHEXPERT_CLASSES.index(name)]
        hits = sum(
            bool(terms & set(study.labels)) and bool(said) for (study, _), said in zip(kept, column, strict=True)
        )
        annotated = sum(bool(terms & set(study.labels)) for study, _ in kept)
        labelled = int(column.sum())
        classes[name] = {
            "annotated": annotated,
            "labelled": labelled,
            "precision": hits / labelled if labelled else None,
            "recall": hits / annotated if annotated else None,
        }
    return {"labeller": f"{LABELLER} {LABELLER_VERSION}", "n": len(kept), "classes": classes}
