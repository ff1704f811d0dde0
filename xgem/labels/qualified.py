"""Findings with what annotators say of each: side, place, size, course.

The form is that of Open-i's MeSH column (Demner-Fushman et al., JAMIA 2016): a heading and its qualifiers, divided by
slashes, ``"Pleural Effusion/left/small"``. The order of the qualifiers says nothing. Sides are the patient's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from xgem.labels.vocabulary import NORMAL_TERMS, is_silent, plain

SIDES: Final = ("left", "right", "bilateral")
EXTENTS: Final = ("borderline", "small", "mild", "moderate", "large", "severe")
"""Qualifiers of size and severity, from the least on."""
MANNERS: Final = (
    *("acute", "chronic", "healed", "multiple", "scattered", "diffuse", "focal", "multilobar"),
    *("patchy", "streaky", "round", "irregular", "reticular", "interstitial", "bronchovascular"),
)
"""Qualifiers of course, number and appearance."""
STATES: Final = (
    *("hypoinflation", "hyperdistention", "degenerative", "tortuous", "enlarged", "elevated", "flattened", "blunted"),
    *("obscured", "prominent", "abnormal"),
)
"""Qualifiers that say what is wrong with the anatomical site that the heading names."""
PLACES: Final = (
    *("lung", "base", "apex", "upper lobe", "middle lobe", "lower lobe", "lingula", "azygos lobe", "hilum", "bronchi"),
    *("pulmonary alveoli", "pleura", "pleural sinus", "costophrenic angle", "cardiophrenic angle", "sulcus"),
    *("diaphragm", "mediastinum", "lymph nodes", "trachea", "trachea, carina", "esophagus", "heart", "heart atria"),
    *("heart ventricles", "aortic valve", "mitral valve", "aorta", "aorta, thoracic", "coronary vessels"),
    *("pulmonary artery", "blood vessels", "spine", "cervical vertebrae", "thoracic vertebrae", "lumbar vertebrae"),
    *("ribs", "clavicle", "sternum", "humerus", "shoulder", "thorax", "breast", "breast implants", "neck", "abdomen"),
    *("adipose tissue", "anterior", "posterior", "retrocardiac", "supracardiac", "paratracheal"),
)
"""Qualifiers of place: structures, and positions within or beside them."""


@dataclass(frozen=True)
class QualifiedFinding:
    """One annotated finding; all words in lower case.

    ``name`` is the heading ("pleural effusion"; of some findings the site, "aorta", with the finding in ``states``);
    ``side`` is one of :data:`SIDES`, or None where none is stated; ``extents``, ``manners``, ``states`` and ``places``
    are those of the constants of these names, in the annotators' order; ``unread`` are qualifiers in none of them.
    """

    name: str
    side: str | None = None
    extents: tuple[str, ...] = ()
    manners: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @classmethod
    def parse(cls, term: str) -> QualifiedFinding:
        """The finding of a term like ``"Opacity/lung/base/left/streaky"``; left and right together are bilateral.

        Raises:
            ValueError: the term has no heading.
        """
        name, *qualifiers = (plain(part) for part in term.split("/"))
        if not name:
            raise ValueError(f"finding {term!r}: expected a heading and its qualifiers, like 'Pleural Effusion/left'")
        given = tuple(dict.fromkeys(filter(None, qualifiers)))
        sides = [one for one in given if one in SIDES]
        known = {*SIDES, *EXTENTS, *MANNERS, *STATES, *PLACES}

        def of(kind: Sequence[str]) -> tuple[str, ...]:
            return tuple(one for one in given if one in kind)

        return cls(
            name,
            None if not sides else sides[0] if len(sides) == 1 else "bilateral",
            *map(of, (EXTENTS, MANNERS, STATES, PLACES)),
            unread=tuple(one for one in given if one not in known),
        )


def qualified_terms(terms: Iterable[str]) -> tuple[str, ...]:
    """Terms of annotators as a manifest keeps them: single blanks, no repeats, nothing that is no finding.

    "normal" and terms about the study itself ("No Indexing") are left out.
    """
    kept: dict[str, None] = {}
    for term in terms:
        parts = [" ".join(part.split()) for part in term.split("/")]
        if parts[0] and plain(parts[0]) not in NORMAL_TERMS and not is_silent(parts[0]):
            kept["/".join(part for part in parts if part)] = None
    return tuple(kept)
