"""What asks for a finding where a plan has no texts of its own: short sentences, in xgem's own words.

Each sentence affirms its class alone, as ``xgem.labels.rules.label_report`` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from xgem.data.captions import NORMAL_CAPTION
from xgem.labels.vocabulary import NO_FINDING

SENTENCES: Final[dict[str, tuple[str, ...]]] = {
    NO_FINDING: (NORMAL_CAPTION, "Normal chest radiograph.", "No acute abnormality is seen."),
    "Enlarged Cardiomediastinum": ("The mediastinum is widened.", "Widening of the mediastinum."),
    "Cardiomegaly": ("Cardiomegaly.", "The heart is enlarged.", "Cardiac enlargement."),
    "Lung Lesion": ("Pulmonary nodule.", "There is a nodule in the lung.", "Lung mass."),
    "Lung Opacity": ("Lung opacity.", "There is an airspace opacity.", "Patchy opacities in the lungs."),
    "Edema": ("Pulmonary edema.", "Interstitial edema.", "The lungs show pulmonary edema."),
    "Consolidation": ("Consolidation.", "There is a focal consolidation.", "Lobar consolidation."),
    "Pneumonia": ("Pneumonia.", "The appearance is that of pneumonia.", "Lobar pneumonia."),
    "Atelectasis": ("Atelectasis.", "Bibasilar atelectasis.", "There is atelectasis at the lung base."),
    "Pneumothorax": ("Pneumothorax.", "There is a pneumothorax.", "Apical pneumothorax."),
    "Pleural Effusion": ("Pleural effusion.", "There is a pleural effusion.", "Small pleural effusion."),
    "Pleural Other": ("Pleural thickening.", "There is pleural thickening.", "Pleural plaque."),
    "Fracture": ("Rib fracture.", "There is a fracture of a rib.", "Fractured rib."),
    "Support Devices": ("Pacemaker in place.", "A central venous catheter is in place."),
}


def sentences(labels: Sequence[str]) -> tuple[str, ...]:
    """Texts that ask for all of ``labels`` (CheXpert classes) at once, each class once a text."""
    count = max(len(SENTENCES[label]) for label in labels)
    return tuple(" ".join(SENTENCES[one][k % len(SENTENCES[one])] for one in labels) for k in range(count))
