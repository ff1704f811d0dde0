"""The classes of findings, and what each source's terms say about them.

The classes are CheXpert's (Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert
Comparison", AAAI 2019). :data:`SOURCES` is the only table from a source's terms to them; everything that compares
annotations with scores, reports or boxes derives its labels from it (ADR-0011).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from xgem.labels.terms import (
    BIMCV,
    CANDID,
    CATHETERS,
    CHESTDR,
    CHESTX_DET,
    CHESTX_DET10,
    DENIED,
    DOUBTED,
    NO_FINDING,
    OBJECTS,
    PADCHEST,
    PCXR,
    SUPPORT_DEVICES,
    VINDR,
    Term,
    with_denials,
)
from xgem.labels.terms import affirming as _is
from xgem.labels.terms import open_for as _may_be

CHEXPERT_CLASSES: Final[tuple[str, ...]] = (
    NO_FINDING,
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Lung Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    SUPPORT_DEVICES,
)
CHEXPERT_5: Final[tuple[str, ...]] = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The five classes of the CheXpert competition."""
XGEM_10: Final[tuple[str, ...]] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Lung Lesion",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
"""The ten classes of XGeM 3.5.2, image classification; for reports the paper adds "No Finding"."""
CLASS_SETS: Final[dict[str, tuple[str, ...]]] = {
    "14": CHEXPERT_CLASSES,
    "5": CHEXPERT_5,
    "10+": (*XGEM_10, NO_FINDING),
    "findings": tuple(name for name in CHEXPERT_CLASSES if name != NO_FINDING),
}
"""Sets of classes for reports: CheXGenBench's F1-14 and F1-5, XGeM's ten with "No Finding", and findings alone."""
PARENTS: Final[dict[str, str]] = {
    "Cardiomegaly": "Enlarged Cardiomediastinum",
    "Edema": "Lung Opacity",
    "Consolidation": "Lung Opacity",
    "Pneumonia": "Consolidation",
    "Atelectasis": "Lung Opacity",
    "Lung Lesion": "Lung Opacity",
}
"""CheXpert's hierarchy (Irvin et al. 2019, Fig. 1): a class and its parent class."""


class Labelled(Protocol):
    """What annotators say about a study: their terms, and the source whose vocabulary it is."""

    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def source(self) -> str: ...


# Open-i's index terms without a counterpart among the classes; many are anatomical sites ("Spine"), with the finding
# itself in a qualifier that the list of problems omits.
_OPENI_OTHER: Final = (
    *("Abdomen", "Adipose Tissue", "Aorta", "Aorta, Thoracic", "Aortic Aneurysm", "Arthritis", "Atherosclerosis"),
    *("Blister", "Bone Diseases, Metabolic", "Bone and Bones", "Breast Implants", "Bronchiectasis", "Bronchitis"),
    *("Bullous Emphysema", "Calcified Granuloma", "Calcinosis", "Cervical Vertebrae", "Cholelithiasis"),
    *("Colonic Interposition", "Contrast Media", "Cysts", "Diaphragm", "Diaphragmatic Eventration", "Dislocations"),
    *("Emphysema", "Epicardial Fat", "Expansile Bone Lesions", "Foreign Bodies", "Funnel Chest", "Granuloma"),
    *("Granulomatous Disease", "Hernia, Diaphragmatic", "Hernia, Hiatal", "Humerus"),
    *("Hyperostosis, Diffuse Idiopathic Skeletal", "Hypertension, Pulmonary", "Hypovolemia", "Kyphosis"),
    *("Lucency", "Lumbar Vertebrae", "Lung", "Lung, Hyperlucent", "Lymph Nodes", "Mastectomy", "Mediastinum"),
    *("Nipple Shadow", "Osteophyte", "Osteoporosis", "Pectus Carinatum", "Pneumonectomy", "Pneumoperitoneum"),
    *("Pulmonary Artery", "Pulmonary Disease, Chronic Obstructive", "Pulmonary Emphysema", "Ribs", "Sclerosis"),
    *("Scoliosis", "Shift", "Shoulder", "Spine", "Spondylosis", "Subcutaneous Emphysema", "Surgical Instruments"),
    *("Sutures", "Thoracic Vertebrae", "Thorax", "Trachea", "Trachea, Carina"),
)
_OPENI: Final[dict[str, Term]] = {
    "normal": _is(NO_FINDING),
    "Cardiomegaly": _is("Cardiomegaly"),
    "Nodule": _is("Lung Lesion"),
    "Mass": _is("Lung Lesion"),
    "Opacity": _is("Lung Opacity"),
    "Airspace Disease": _is("Lung Opacity"),
    "Infiltrate": _is("Lung Opacity"),
    "Density": _is("Lung Opacity"),  # 86 of 119 times in the lung, the thorax or behind the heart
    "Pulmonary Edema": _is("Edema"),
    "Pulmonary Congestion": _is("Edema"),
    "Heart Failure": _is("Edema"),
    "Consolidation": _is("Consolidation"),
    "Pneumonia": _is("Pneumonia"),
    "Pulmonary Atelectasis": _is("Atelectasis"),
    "Pneumothorax": _is("Pneumothorax"),
    "Hydropneumothorax": _is("Pneumothorax", "Pleural Effusion"),  # air and fluid in one pleural space
    "Hemopneumothorax": _is("Pneumothorax", "Pleural Effusion"),
    "Pleural Effusion": _is("Pleural Effusion"),
    "Thickening": _is("Pleural Other"),  # 39 of 46 times "of the pleura"
    "Fractures, Bone": _is("Fracture"),
    "Catheters, Indwelling": _is(SUPPORT_DEVICES),
    "Implanted Medical Device": _is(SUPPORT_DEVICES),
    "Medical Device": _is(SUPPORT_DEVICES),
    "Stents": _is(SUPPORT_DEVICES),
    "Tube, Inserted": _is(SUPPORT_DEVICES),
    # The site alone: 47 of 51 cardiac shadows are enlarged
    "Cardiac Shadow": _may_be("Cardiomegaly"),
    "Heart": _may_be("Cardiomegaly"),
    "Heart Atria": _may_be("Cardiomegaly"),
    "Heart Ventricles": _may_be("Cardiomegaly"),
    "Pericardial Effusion": _may_be("Cardiomegaly"),
    # Blunted: by fluid or by a scar
    "Costophrenic Angle": _may_be("Pleural Effusion", "Pleural Other"),
    "Pleura": _may_be("Pleural Effusion", "Pleural Other"),
    "Sulcus": _may_be("Pleural Effusion", "Pleural Other"),
    # CheXpert's labeller counts parenchymal scarring and interstitial markings as opacities
    "Cicatrix": _may_be("Lung Opacity", "Pleural Other"),
    "Cystic Fibrosis": _may_be("Lung Opacity"),
    "Fibrosis": _may_be("Lung Opacity"),
    "Lung Diseases, Interstitial": _may_be("Lung Opacity"),
    "Markings": _may_be("Lung Opacity"),
    "Pulmonary Fibrosis": _may_be("Lung Opacity"),
    "Sarcoidosis": _may_be("Lung Opacity"),
    "Tuberculosis": _may_be("Lung Opacity"),
    "Cavitation": _may_be("Lung Lesion", "Lung Opacity"),
    "Volume Loss": _may_be("Atelectasis"),
    "Deformity": _may_be("Fracture"),  # most often of vertebrae and ribs
    "Spinal Fusion": _may_be(SUPPORT_DEVICES),  # hardware, if it is visible
    **dict.fromkeys(_OPENI_OTHER, Term()),
}
_NIH: Final[dict[str, Term]] = {
    "No Finding": _is(NO_FINDING),
    "Atelectasis": _is("Atelectasis"),
    "Cardiomegaly": _is("Cardiomegaly"),
    "Consolidation": _is("Consolidation"),
    "Edema": _is("Edema"),
    "Effusion": _is("Pleural Effusion"),
    "Emphysema": Term(),
    "Fibrosis": _may_be("Lung Opacity"),
    "Hernia": Term(),
    "Infiltration": _is("Lung Opacity"),
    "Infiltrate": _is("Lung Opacity"),  # its name in the annotated boxes
    "Mass": _is("Lung Lesion"),
    "Nodule": _is("Lung Lesion"),
    "Pleural_Thickening": _is("Pleural Other"),
    "Pneumonia": _is("Pneumonia"),
    "Pneumothorax": _is("Pneumothorax"),
}
_CHEXPERT: Final[dict[str, Term]] = {name: _is(name) for name in CHEXPERT_CLASSES}
_STATED: Final[dict[str, Term]] = with_denials(CHEXPERT_CLASSES)

SOURCES: Final[dict[str, dict[str, Term]]] = {
    "openi": _OPENI,
    "nih": _NIH,
    "chexpert": _CHEXPERT,
    "xgem": _CHEXPERT,
    "chexpert-v1": _STATED,
    "mimic-cxr": _STATED,
    "padchest": PADCHEST,
    "vindr-cxr": VINDR,
    "vindr-pcxr": PCXR,
    "brax": _STATED,
    "bimcv-covid19": BIMCV,
    "ranzcr-clip": CATHETERS,
    "siim-acr": with_denials(("Pneumothorax",)),
    "object-cxr": OBJECTS,
    "chestx-det": CHESTX_DET,
    "chestx-det10": CHESTX_DET10,
    "ralo": with_denials(("Lung Opacity",)),
    "candid-ptx": CANDID,
    "medfmc-chestdr": CHESTDR,
}
"""Terms by source (``Study.source``). Annotators name every finding that they have a term for: a class that they do not
name is absent if the source has a term that affirms it, and unknown otherwise. ``xgem`` are cohorts (the requested
findings), ``chexpert`` is any manifest that lists all of a study's findings by CheXpert's names. The data sets CheXpert
(``chexpert-v1``), MIMIC-CXR and BRAX have terms that deny a class, so what they do not name is unknown; so have sets of
one finding.
"""
NOT_FINDINGS: Final = (
    # Terms about the study itself, of Open-i and of PadChest
    "No Indexing",
    "Technical Quality of Image Unsatisfactory",
    *("exclude", "suboptimal study", "unchanged"),
    # Diagnoses in collections of COVID-19, which say nothing about the individual image
    *("ARDS", "COVID-19", "COVID 19", "COVID 19 uncertain", "Klebsiella", "Legionella", "Pneumocystis", "SARS"),
    "Streptococcus",
)
"""Terms that say nothing about what an image shows."""


def plain(term: str) -> str:
    """A term normalised for comparison: lower case, underscores as blanks, single blanks."""
    return " ".join(term.replace("_", " ").split()).lower()


TERMS: Final[dict[str, Term]] = {
    plain(name): term for source_terms in SOURCES.values() for name, term in source_terms.items()
} | {"no findings": _is(NO_FINDING)}
"""All sources' terms by their plain names (:func:`plain`); a term means the same in every source that has it."""
NORMAL_TERMS: Final[frozenset[str]] = frozenset(name for name, term in TERMS.items() if NO_FINDING in term.affirms)
"""Terms (plain) by which annotators call a study normal."""
_SILENT: Final = frozenset(plain(term) for term in NOT_FINDINGS)


def is_silent(term: str) -> bool:
    """Whether a term says nothing about what an image shows (:data:`NOT_FINDINGS`)."""
    return plain(term) in _SILENT


def classes_of(term: str) -> tuple[str, ...]:
    """The classes that a term of any source affirms; empty for a term that affirms none or is unknown."""
    return TERMS.get(plain(term), Term()).affirms


def annotated_classes(source: str) -> frozenset[str]:
    """The classes for which a source has a term, so that its silence means absence.

    None for an unknown source, and for one that has terms for absence itself.
    """
    if _states_absence(source):
        return frozenset()
    return frozenset(name for term in SOURCES.get(source, {}).values() for name in term.affirms)


def _states_absence(source: str) -> bool:
    return any(term.denies for term in SOURCES.get(source, {}).values())


def named(label: str, names: Sequence[str], source: str) -> float:
    """Whether a study with the terms ``names`` has the source's term ``label``: 1, 0, or NaN if nothing is said."""
    if label in names:
        return 1.0
    if DENIED + label in names:
        return 0.0
    return math.nan if not names or DOUBTED + label in names or _states_absence(source) else 0.0


def is_affirmation(label: str) -> bool:
    """Whether a term names what is there, not what annotators deny or doubt."""
    return not label.startswith((DENIED, DOUBTED))


def annotated_labels(names: Iterable[str], source: str) -> dict[str, float]:
    """What annotators' terms say about CheXpert's classes: 1 present, 0 absent; unknown classes are left out.

    * A class is present if a term affirms it.
    * It is absent if a term denies it, or if the source has a term for it (:func:`annotated_classes`) and the study's
      terms do not name it, unless one of them leaves it open or affirms a child class (:data:`PARENTS`): pneumonia
      alone says nothing about "Consolidation" and "Lung Opacity". A term that is in no table may mean any class, and
      leaves all of them open.
    * "No Finding" is present if the annotators say so and name nothing else but support devices, absent if they name
      any other finding, whether or not it is one of the 14 classes.
    * Nothing is known about a study without terms, or with :data:`NOT_FINDINGS` alone.

    Args:
        names: the study's terms, in any case, with blanks or underscores.
        source: whose terms they are, a key of :data:`SOURCES`; with any other source only the named classes are known.
    """
    # What the terms affirm
    terms = [term for term in dict.fromkeys(map(plain, names)) if term not in _SILENT]
    known = [TERMS[term] for term in terms if term in TERMS]
    present = {name for term in known for name in term.affirms}
    denied = {name for term in known for name in term.denies}
    # Abnormal is whatever is neither "normal" nor a device alone
    abnormal = any(term.abnormal for term in known)
    complete = bool(terms) and len(known) == len(terms)
    if abnormal or not complete:
        present.discard(NO_FINDING)
    # Open: what a term leaves open, the ancestors of a present class, and "No Finding" unless something is abnormal
    open_classes = {name for term in known for name in term.leaves_open} | {NO_FINDING}
    open_classes.update(ancestor for name in present for ancestor in _ancestors(name))
    # Absent: the rest of the classes that are denied or that the source annotates
    listed = annotated_classes(source) if complete else frozenset[str]()
    labels = dict.fromkeys(present, 1.0) | dict.fromkeys((listed | denied) - present - open_classes, 0.0)
    if abnormal:
        labels[NO_FINDING] = 0.0
    return {name: labels[name] for name in CHEXPERT_CLASSES if name in labels}


def _ancestors(name: str) -> list[str]:
    """The classes above a class in the hierarchy, nearest first."""
    parent = PARENTS.get(name)
    return [] if parent is None else [parent, *_ancestors(parent)]


def annotated_matrix(studies: Iterable[Labelled], classes: Sequence[str] = CHEXPERT_CLASSES) -> NDArray[np.float64]:
    """:func:`annotated_labels` of n studies: (n, classes) of 1, 0, and NaN where a class is unknown."""
    rows = [annotated_labels(study.labels, study.source) for study in studies]
    values = [[labels.get(name, math.nan) for name in classes] for labels in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(classes))


def count_labels(labels: NDArray[np.float64]) -> Mapping[str, tuple[int, int, int]]:
    """Numbers of present, absent and unknown labels by class, for (n, 14) labels as from :func:`annotated_matrix`."""
    return {
        name: (int((column == 1).sum()), int((column == 0).sum()), int(np.isnan(column).sum()))
        for name, column in zip(CHEXPERT_CLASSES, labels.T, strict=True)
    }
