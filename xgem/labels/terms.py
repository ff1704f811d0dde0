"""Terms of findings, and those of the sources that have many; :mod:`xgem.labels.vocabulary` joins them to one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

NO_FINDING: Final = "No Finding"
SUPPORT_DEVICES: Final = "Support Devices"
ABNORMAL: Final = "Abnormal"
"""The term of a study whose annotators deny "No Finding"."""
DENIED, DOUBTED = "no ", "possible "
"""What stands before a term that annotators deny or doubt: ``"no Edema"``, ``"possible Edema"``."""


@dataclass(frozen=True)
class Term:
    """What a source's term says: the classes that it ``affirms``, ``denies``, and ``leaves_open``.

    A term that does none of these is a finding outside the classes. A term leaves a class open where the source uses it
    for findings of that class and for others: "Cardiac Shadow" heads enlarged and irregular ones alike.
    """

    affirms: tuple[str, ...] = ()
    leaves_open: tuple[str, ...] = ()
    denies: tuple[str, ...] = ()

    @property
    def abnormal(self) -> bool:
        """Whether it names something that a normal study does not show."""
        if self.affirms:
            return bool(set(self.affirms) - {NO_FINDING, SUPPORT_DEVICES})
        return not self.denies and NO_FINDING not in self.leaves_open


def affirming(*classes: str) -> Term:
    """A term that means these classes."""
    return Term(affirms=classes)


def open_for(*classes: str) -> Term:
    """A term for findings of these classes and for others."""
    return Term(leaves_open=classes)


def with_doubts(terms: Mapping[str, Term]) -> dict[str, Term]:
    """The same and, of each finding, one that annotators doubt or do not agree on."""
    doubted = {
        f"{DOUBTED}{name}": open_for(*dict.fromkeys((*term.affirms, *term.leaves_open, NO_FINDING)))
        for name, term in terms.items()
        if NO_FINDING not in term.affirms
    }
    return {**terms, **doubted}


def with_denials(classes: Iterable[str]) -> dict[str, Term]:
    """Terms of annotators who state of each class whether it is present, absent or in doubt, or nothing."""
    named = {name: affirming(name) for name in classes}
    denied = {f"{DENIED}{name}": Term(denies=(name,)) for name in named if name != NO_FINDING}
    return with_doubts(named) | denied | {ABNORMAL: Term()}


def stated_term(name: str, value: float) -> str | None:
    """The term of a class that annotators state as 1, 0 or -1 (in doubt), as :func:`with_denials` has it.

    None where it says nothing: "No Finding" in doubt.

    Raises:
        ValueError: another value.
    """
    if value not in (1, 0, -1):
        raise ValueError(f"is {value:g}; expected 1, 0, -1 (uncertain) or nothing")
    if name == NO_FINDING:
        return {1: name, 0: ABNORMAL}.get(int(value))
    return {1: name, 0: DENIED + name, -1: DOUBTED + name}[int(value)]


_OPACITY, _EDEMA, _LESION = "Lung Opacity", "Edema", "Lung Lesion"
_EFFUSION, _PLEURA = "Pleural Effusion", "Pleural Other"
_WIDE: Final = "Enlarged Cardiomediastinum"

PADCHEST: Final[dict[str, Term]] = {
    "normal": affirming(NO_FINDING),
    "cardiomegaly": affirming("Cardiomegaly"),
    "pericardial effusion": open_for("Cardiomegaly"),
    **dict.fromkeys(("mediastinal enlargement", "superior mediastinal enlargement"), affirming(_WIDE)),
    **dict.fromkeys(("goiter", "mediastinic lipomatosis"), open_for(_WIDE)),
    "mediastinal mass": open_for(_WIDE, _LESION),
    **dict.fromkeys(("nodule", "multiple nodules", "mass", "pulmonary mass", "lung metastasis"), affirming(_LESION)),
    **dict.fromkeys(("pseudonodule", "calcified densities"), open_for(_LESION)),
    **dict.fromkeys(("cavitation", "abscess", "lepidic adenocarcinoma"), open_for(_LESION, _OPACITY)),
    **dict.fromkeys(
        ("infiltrates", "alveolar pattern", "ground glass pattern", "miliary opacities", "increased density"),
        affirming(_OPACITY),
    ),
    **dict.fromkeys(
        (
            *("interstitial pattern", "reticular interstitial pattern", "reticulonodular interstitial pattern"),
            *("bronchovascular markings", "chronic changes", "dai", "lymphangitis carcinomatosa"),
            *("post radiotherapy changes", "pulmonary fibrosis", "tuberculosis"),
        ),
        open_for(_OPACITY),
    ),
    **dict.fromkeys(("asbestosis signs", "tuberculosis sequelae"), open_for(_OPACITY, _PLEURA)),
    "fibrotic band": open_for(_OPACITY, "Atelectasis"),
    "consolidation": affirming("Consolidation"),
    "air bronchogram": open_for("Consolidation", _OPACITY),
    **dict.fromkeys(("pneumonia", "atypical pneumonia"), affirming("Pneumonia")),
    "pulmonary edema": affirming(_EDEMA),
    **dict.fromkeys(
        (
            *("heart insufficiency", "hilar congestion", "vascular redistribution", "central vascular redistribution"),
            "pulmonary venous hypertension",
        ),
        open_for(_EDEMA),
    ),
    **dict.fromkeys(("kerley lines", "respiratory distress"), open_for(_EDEMA, _OPACITY)),
    **dict.fromkeys(
        (
            *("atelectasis", "atelectasis basal", "laminar atelectasis", "lobar atelectasis", "round atelectasis"),
            *("segmental atelectasis", "total atelectasis"),
        ),
        affirming("Atelectasis"),
    ),
    **dict.fromkeys(("volume loss", "hypoexpansion", "hypoexpansion basal"), open_for("Atelectasis")),
    "pneumothorax": affirming("Pneumothorax"),
    "hydropneumothorax": affirming("Pneumothorax", _EFFUSION),
    "air fluid level": open_for("Pneumothorax", _EFFUSION, _LESION),
    **dict.fromkeys(
        ("pleural effusion", "loculated pleural effusion", "loculated fissural effusion", "empyema"),
        affirming(_EFFUSION),
    ),
    **dict.fromkeys(
        ("costophrenic angle blunting", "fissure thickening", "minor fissure thickening", "major fissure thickening"),
        open_for(_EFFUSION, _PLEURA),
    ),
    **dict.fromkeys(
        (
            *("pleural thickening", "apical pleural thickening", "calcified pleural thickening", "pleural plaques"),
            *("calcified pleural plaques", "pleural mass"),
        ),
        affirming(_PLEURA),
    ),
    **dict.fromkeys(
        (
            *("fracture", "rib fracture", "callus rib fracture", "clavicle fracture", "humeral fracture"),
            "vertebral fracture",
        ),
        affirming("Fracture"),
    ),
    **dict.fromkeys(("vertebral compression", "vertebral anterior compression"), open_for("Fracture")),
    **dict.fromkeys(
        (
            *("pacemaker", "electrical device", "dual chamber device", "single chamber device", "endotracheal tube"),
            *("NSG tube", "tracheostomy tube", "chest drain tube", "gastrostomy tube", "nephrostomy tube"),
            *("ventriculoperitoneal drain tube", "double J stent", "catheter", "central venous catheter"),
            *("central venous catheter via jugular vein", "central venous catheter via subclavian vein"),
            *("central venous catheter via umbilical vein", "reservoir central venous catheter"),
        ),
        affirming(SUPPORT_DEVICES),
    ),
    **dict.fromkeys(
        (
            *("abnormal foreign body", "external foreign body", "metal", "osteosynthesis material", "prosthesis"),
            *("endoprosthesis", "aortic endoprosthesis", "humeral prosthesis", "artificial heart valve", "sternotomy"),
            *("artificial aortic heart valve", "artificial mitral heart valve", "surgery", "surgery heart"),
        ),
        open_for(SUPPORT_DEVICES),
    ),
    **dict.fromkeys(
        (
            *("COPD signs", "Chilaiditi sign", "adenopathy", "air trapping", "aortic aneurysm", "aortic atheromatosis"),
            *("aortic button enlargement", "aortic elongation", "ascendent aortic elongation", "axial hyperostosis"),
            *("azygoesophageal recess shift", "azygos lobe", "blastic bone lesion", "bone cement", "bone metastasis"),
            *("breast mass", "bronchiectasis", "bullas", "calcified adenopathy", "calcified fibroadenoma"),
            *("calcified granuloma", "calcified mediastinal adenopathy", "cervical rib", "cyst", "dextrocardia"),
            *("costochondral junction hypertrophy", "descendent aortic elongation", "diaphragmatic eventration"),
            *("emphysema", "end on vessel", "esophagic dilatation", "flattened diaphragm", "granuloma"),
            *("gynecomastia", "heart valve calcified", "hemidiaphragm elevation", "hiatal hernia", "hilar enlargement"),
            *("hyperinflated lung", "kyphosis", "lipomatosis", "lung vascular paucity", "lytic bone lesion"),
            *("mammary prosthesis", "mastectomy", "mediastinal shift", "nipple shadow", "obesity", "osteopenia"),
            *("non axial articular degenerative changes", "osteoporosis", "pectum carinatum", "pectum excavatum"),
            *("pneumomediastinum", "pneumoperitoneo", "pulmonary artery enlargement", "pulmonary artery hypertension"),
            *("pulmonary hypertension", "right sided aortic arch", "sclerotic bone lesion", "scoliosis"),
            *("soft tissue mass", "sternoclavicular junction hypertrophy", "subacromial space narrowing"),
            *("subcutaneous emphysema", "supra aortic elongation", "surgery breast", "surgery humeral", "surgery lung"),
            *("surgery neck", "suture material", "thoracic cage deformation", "tracheal shift"),
            *("vascular hilar enlargement", "vertebral degenerative changes"),
        ),
        Term(),
    ),
}
"""PadChest's findings. Differential diagnoses of the heart leave edema open: the image need not show it."""

VINDR: Final[dict[str, Term]] = with_doubts(
    {
        "No finding": affirming(NO_FINDING),
        "Atelectasis": affirming("Atelectasis"),
        "Cardiomegaly": affirming("Cardiomegaly"),
        **dict.fromkeys(("Clavicle fracture", "Rib fracture"), affirming("Fracture")),
        "Consolidation": affirming("Consolidation"),
        "Edema": affirming(_EDEMA),
        **dict.fromkeys(("Infiltration", "Lung Opacity"), affirming(_OPACITY)),
        **dict.fromkeys(("Nodule/Mass", "Lung tumor"), affirming(_LESION)),
        "Lung cavity": open_for(_LESION, _OPACITY),
        **dict.fromkeys(("ILD", "Pulmonary fibrosis", "Tuberculosis"), open_for(_OPACITY)),
        "Pleural effusion": affirming(_EFFUSION),
        "Pleural thickening": affirming(_PLEURA),
        "Pneumonia": affirming("Pneumonia"),
        "Pneumothorax": affirming("Pneumothorax"),
        "Other lesion": open_for("Fracture", _PLEURA),
        **dict.fromkeys(
            (
                *("Aortic enlargement", "COPD", "Calcification", "Emphysema", "Enlarged PA", "Lung cyst"),
                *("Mediastinal shift", "Other disease", "Other diseases"),
            ),
            Term(),
        ),
    }
)
"""VinDr-CXR's findings and diagnoses; one that its readers do not agree on is doubted."""

PCXR: Final[dict[str, Term]] = {
    # Diseases, with the spelling of the columns
    "No finding": affirming(NO_FINDING),
    **dict.fromkeys(("Pneumonia", "Brocho-pneumonia"), affirming("Pneumonia")),
    "Pleuro-pneumonia": Term(affirms=("Pneumonia",), leaves_open=(_EFFUSION, _PLEURA)),
    "Lung tumor": affirming(_LESION),
    "Mediastinal tumor": open_for(_WIDE, _LESION),
    "CPAM": open_for(_LESION, _OPACITY),
    **dict.fromkeys(("Bronchiolitis", "Hyaline membrane disease", "Tuberculosis"), open_for(_OPACITY)),
    **dict.fromkeys(
        ("Bronchitis", "Congenital emphysema", "Diagphramatic hernia", "Other disease", "Situs inversus"), Term()
    ),
    # Findings, with the spelling of the boxes
    "Atelectasis": affirming("Atelectasis"),
    "Cardiomegaly": affirming("Cardiomegaly"),
    "Clavicle fracture": affirming("Fracture"),
    "Consolidation": affirming("Consolidation"),
    "Edema": affirming(_EDEMA),
    **dict.fromkeys(
        (
            *("Diffuse aveolar opacity", "Infiltration", "Other opacity", "Reticulonodular opacity"),
            "Peribronchovascular interstitial opacity",
        ),
        affirming(_OPACITY),
    ),
    "Other nodule/mass": affirming(_LESION),
    "Pleural effusion": affirming(_EFFUSION),
    "Pleural thickening": affirming(_PLEURA),
    "Pneumothorax": affirming("Pneumothorax"),
    **dict.fromkeys(("Boot-shaped heart", "Egg on string sign"), open_for("Cardiomegaly")),
    **dict.fromkeys(("Interstitial lung disease - ILD", "Pulmonary fibrosis"), open_for(_OPACITY)),
    "Anterior mediastinal mass": open_for(_WIDE, _LESION),
    "Lung cavity": open_for(_LESION, _OPACITY),
    "Other lesion": open_for("Fracture", _PLEURA),
    **dict.fromkeys(
        (
            *("Aortic enlargement", "Bronchectasis", "Bronchial thickening", "Calcification", "Chest wall mass"),
            *("Dextro cardia", "Emphysema", "Enlarged PA", "Expanded edges of the anterior ribs", "Lung cyst"),
            *("Intrathoracic digestive structure", "Lung hyperinflation", "Mediastinal shift"),
            *("Paraveterbral mass", "Stomach on the right side"),
        ),
        Term(),
    ),
}
"""VinDr-PCXR's diseases and findings of children."""

BIMCV: Final[dict[str, Term]] = {**PADCHEST, "viral pneumonia": affirming("Pneumonia")}
"""BIMCV-COVID19's findings, which its annotators took over from PadChest."""

CATHETERS: Final[dict[str, Term]] = dict.fromkeys(
    (
        *("ETT - Abnormal", "ETT - Borderline", "ETT - Normal", "NGT - Abnormal", "NGT - Borderline"),
        *("NGT - Incompletely Imaged", "NGT - Normal", "CVC - Abnormal", "CVC - Borderline", "CVC - Normal"),
        "Swan Ganz Catheter Present",
    ),
    affirming(SUPPORT_DEVICES),
)
"""RANZCR CLiP's catheters and whether they lie well."""

FOREIGN_OBJECT: Final = "Foreign Object"
OBJECTS: Final[dict[str, Term]] = dict.fromkeys((FOREIGN_OBJECT, DENIED + FOREIGN_OBJECT), open_for(NO_FINDING))
"""Object-CXR's buttons, jewellery and the like, beside which a study may be normal."""

CANDID: Final[dict[str, Term]] = {
    **with_denials(("Pneumothorax",)),
    "Rib Fracture": affirming("Fracture"),
    "Chest Tube": affirming(SUPPORT_DEVICES),
    # Other fractures and devices are not annotated
    **dict.fromkeys((f"{DENIED}Rib Fracture", f"{DENIED}Chest Tube"), open_for(NO_FINDING)),
}
"""CANDID-PTX's three findings."""

CHESTX_DET10: Final[dict[str, Term]] = {
    NO_FINDING: affirming(NO_FINDING),
    **{name: affirming(name) for name in ("Atelectasis", "Consolidation", "Fracture", "Pneumothorax")},
    "Effusion": affirming(_EFFUSION),
    "Fibrosis": open_for(_OPACITY),
    **dict.fromkeys(("Mass", "Nodule"), affirming(_LESION)),
    **dict.fromkeys(("Calcification", "Emphysema"), Term()),
}
"""ChestX-Det10's ten findings; an image without any is called normal."""
CHESTX_DET: Final[dict[str, Term]] = {
    **CHESTX_DET10,
    "Cardiomegaly": affirming("Cardiomegaly"),
    "Diffuse Nodule": affirming(_LESION),
    "Pleural Thickening": affirming(_PLEURA),
}
"""ChestX-Det's thirteen."""

CHESTDR: Final[dict[str, Term]] = {
    NO_FINDING: affirming(NO_FINDING),
    "pleural effusion": affirming(_EFFUSION),
    "nodule": affirming(_LESION),
    "pneumonia": affirming("Pneumonia"),
    "cardiomegaly": affirming("Cardiomegaly"),
    "hilar enlargement": Term(),
    "fracture old": affirming("Fracture"),
    "fibrosis": open_for(_OPACITY),
    "aortic calcification": Term(),
    "tortuous aorta": Term(),
    "thickened pleura": affirming(_PLEURA),
    "TB": open_for(_OPACITY),
    "pneumothorax": affirming("Pneumothorax"),
    "emphysema": Term(),
    "atelectasis": affirming("Atelectasis"),
    "calcification": Term(),
    "pulmonary edema": affirming(_EDEMA),
    "increased lung markings": open_for(_OPACITY),
    "elevated diaphragm": Term(),
    "consolidation": affirming("Consolidation"),
}
"""MedFMC ChestDR's nineteen diseases, in the order of its lists; an image without any is called normal."""
