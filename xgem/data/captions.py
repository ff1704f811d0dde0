"""Captions from annotated labels, so that models also understand free text like "Large left pleural effusion.".

Labels are names as published with data sets: MeSH-like headings ("Fractures, Bone"), plain findings ("Cardiomegaly"),
underscores ("Pleural_Thickening"). Captions are sentences as a radiologist would write them.
"""

from __future__ import annotations

from collections.abc import Iterable

from xgem.labels.vocabulary import NORMAL_TERMS

NORMAL_CAPTION = "No acute cardiopulmonary abnormality."
LABELLED_NORMAL = "No finding."
"""Said instead of ``NORMAL_CAPTION`` of studies without a report: what radiologists write belongs to their images."""

# Headings that name an anatomical site or a property but no finding: the annotators saw something there
_PLACES = frozenset(
    {
        "abdomen",
        "adipose tissue",
        "aorta",
        "aorta, thoracic",
        "bone and bones",
        "cardiac shadow",
        "cervical vertebrae",
        "costophrenic angle",
        "diaphragm",
        "heart",
        "heart atria",
        "heart ventricles",
        "humerus",
        "lumbar vertebrae",
        "lung",
        "lymph nodes",
        "markings",
        "mediastinum",
        "pleura",
        "pulmonary artery",
        "ribs",
        "shoulder",
        "spine",
        "sulcus",
        "thoracic vertebrae",
        "thorax",
        "trachea",
        "trachea, carina",
    }
)
# Headings whose plain reversal would not be idiomatic
_SPOKEN = {
    "trachea, carina": "tracheal carina",
    "tube, inserted": "inserted tube",
    "bone diseases, metabolic": "metabolic bone disease",
    "lung diseases, interstitial": "interstitial lung disease",
    "density": "increased density",
    "shift": "mediastinal shift",
    "edema": "pulmonary edema",
    "effusion": "pleural effusion",
    "infiltration": "infiltrate",
    "hernia": "hiatal hernia",
    # Of sets with short or misspelt names
    "tb": "tuberculosis",
    "fracture old": "old fracture",
    "enlarged pa": "enlarged pulmonary artery",
    "ild": "interstitial lung disease",
    "interstitial lung disease - ild": "interstitial lung disease",
    "brocho-pneumonia": "bronchopneumonia",
    "bronchectasis": "bronchiectasis",
    "cpam": "congenital pulmonary airway malformation",
    "dextro cardia": "dextrocardia",
    "diagphramatic hernia": "diaphragmatic hernia",
    "diffuse aveolar opacity": "diffuse alveolar opacity",
    "paraveterbral mass": "paravertebral mass",
    "covid 19": "COVID-19",
    "swan ganz catheter present": "Swan-Ganz catheter",
    **{
        f"{short} - {place}": words.format(name)
        for short, name in (
            ("ett", "endotracheal tube"),
            ("ngt", "nasogastric tube"),
            ("cvc", "central venous catheter"),
        )
        for place, words in (
            ("abnormal", "malpositioned {}"),
            ("borderline", "{} in borderline position"),
            ("normal", "{} in normal position"),
            ("incompletely imaged", "incompletely imaged {}"),
        )
    },
}


def spoken(label: str) -> str:
    """A label in reading order and lower case: ``"Hernia, Hiatal"`` -> ``"hiatal hernia"``."""
    name = " ".join(label.replace("_", " ").split()).lower()
    if name in _SPOKEN:
        return _SPOKEN[name]
    return " ".join(reversed([part.strip() for part in name.split(",") if part.strip()]))


def caption_from_labels(labels: Iterable[str]) -> str:
    """One sentence per label, in the given order, without repeats.

    ``("Cardiomegaly", "Pleural Effusion")`` -> ``"Cardiomegaly. Pleural effusion."``. "normal" and "No Finding" give
    ``NORMAL_CAPTION``, but only without any finding. A heading that only names an anatomical site ("Lung") becomes
    "Abnormality of the lung.". Without labels the caption is empty.
    """
    sentences: dict[str, None] = {}
    normal = False
    for label in labels:
        name = " ".join(label.replace("_", " ").split()).lower()
        if not name:
            continue
        if name in NORMAL_TERMS:
            normal = True
            continue
        text = spoken(label)
        if not text:
            continue
        if name in _PLACES:
            text = f"abnormality of the {text}"
        sentences[text[0].upper() + text[1:] + "."] = None
    if not sentences and normal:
        return NORMAL_CAPTION
    return " ".join(sentences)


_SEXES = {"F": "Female", "M": "Male"}


def preface(
    *, sex: str | None = None, age: float | None = None, race: str | None = None, severity: float | None = None
) -> str:
    """Patient data as the prefix of a text: ``"sex:Male, age:71.0, race:Black."`` (ChexGen).

    Unknown fields are left out; without any the prefix is empty. ``sex`` is ``"F"`` or ``"M"``, ``age`` is in years,
    ``severity`` is a Brixia score from 0 to 18.
    """
    fields = {
        "sex": None if sex is None else _SEXES[sex],
        "age": None if age is None else f"{age:.1f}",
        "race": race,
        "severity": None if severity is None else f"{severity:g}",
    }
    known = ", ".join(f"{name}:{value}" for name, value in fields.items() if value is not None)
    return known + "." if known else ""
