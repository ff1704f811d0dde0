"""Sentences in many wordings from findings with side, place and size.

``"Pleural Effusion/left/small"`` (:mod:`xgem.labels.qualified`) is "Small left pleural effusion.", "Pleural effusion on
the left, small.", "There is a small left-sided pleural effusion.", and more: a text encoder that has read all of them
takes the words of any user. What annotators of a whole study do not name is denied ("No pneumothorax.").
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from xgem.data.captions import NORMAL_CAPTION
from xgem.data.phrases import Noun, described
from xgem.labels.qualified import QualifiedFinding
from xgem.labels.vocabulary import NO_FINDING, SUPPORT_DEVICES, annotated_labels

_OTHER_EXTENTS: Final = {"mild": "slight", "severe": "marked"}
_DENIED: Final = {
    "Enlarged Cardiomediastinum": "widening of the mediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Lesion": "pulmonary nodule or mass",
    "Lung Opacity": "pulmonary opacity",
    "Edema": "pulmonary edema",
    "Consolidation": "focal consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "fracture",
}
_DENIALS: Final = ("No {}.", "There is no {}.", "No evidence of {}.", "No {} is seen.")
_DENIED_BESIDE_FINDINGS: Final = 0.3  # share of the random captions of abnormal studies that also deny one class


@dataclass(frozen=True)
class _Parts:
    """What a sentence is made of: ``adjectives``, ``side`` as an adjective if it is one, the noun, and the place."""

    adjectives: tuple[str, ...]
    side: str | None
    noun: Noun
    place: str

    def phrase(self, *, adjectives: bool = True, side: str | None = "", place: bool = True) -> str:
        """The noun phrase; ``side`` in place of its own unless it is empty, None for none."""
        written = self.side if side == "" else side
        words = [*(self.adjectives if adjectives else ()), written, self.noun.text, self.place if place else ""]
        return " ".join(filter(None, words))


def wordings(finding: QualifiedFinding) -> tuple[str, ...]:
    """All sentences for a finding, without repeats; the first is the canonical one.

    Each states all that the annotators do, except ``finding.unread``.
    """
    return _wordings(finding)


@lru_cache(maxsize=8192)
def _wordings(finding: QualifiedFinding) -> tuple[str, ...]:
    texts: dict[str, None] = {}
    for noun, adjectives, place in described(finding):
        side = None if noun.says_side else finding.side
        for extents in dict.fromkeys((adjectives, tuple(_OTHER_EXTENTS.get(word, word) for word in adjectives))):
            texts |= dict.fromkeys(map(_sentence, _phrases(_Parts(extents, side, noun, place))))
    return tuple(texts)


def _phrases(parts: _Parts) -> list[str]:
    """Statements without capital and full stop; those without a verb first."""
    noun = parts.noun
    whole = parts.phrase()
    made = [whole]
    verb = "are" if noun.plural else "is"
    seen = [whole]
    if parts.side:
        beside = "on both sides" if parts.side == "bilateral" else f"on the {parts.side}"
        last = f"{parts.phrase(side=None)} {beside}"
        sided = whole if parts.side == "bilateral" else parts.phrase(side=f"{parts.side}-sided")
        made += [last, sided]
        seen += [sided, last]
        if parts.adjectives:
            made.append(f"{parts.phrase(adjectives=False, side=None)} {beside}, {', '.join(parts.adjectives)}")
    if parts.adjectives:
        made.append(f"{parts.phrase(adjectives=False)}, {', '.join(parts.adjectives)}")
    made += [f"there {verb} {noun.with_article(phrase)}" for phrase in seen]
    made += [f"{noun.with_article(phrase)} {verb} {word}" for phrase in seen for word in ("seen", "present")]
    if parts.place.startswith("in "):
        made.append(f"{parts.place}, there {verb} {noun.with_article(parts.phrase(place=False))}")
    return made


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def absent_classes(labels: Iterable[str], source: str) -> tuple[str, ...]:
    """CheXpert's classes that annotators of a whole study state, by their words or their silence, to be absent."""
    known = annotated_labels(labels, source)
    return tuple(name for name, value in known.items() if value == 0 and name not in (NO_FINDING, SUPPORT_DEVICES))


def denial(name: str, rng: random.Random | None = None) -> str:
    """A sentence that denies one of CheXpert's classes: ``"No pleural effusion."``, or a random wording.

    Raises:
        KeyError: a class that is not denied in words ("No Finding", "Support Devices").
    """
    return (_DENIALS[0] if rng is None else rng.choice(_DENIALS)).format(_DENIED[name])


def caption(qualified: Sequence[str], labels: Sequence[str], source: str) -> str:
    """The canonical caption: a sentence per finding, ``NORMAL_CAPTION`` for a normal study, else empty.

    Args:
        qualified: findings with their qualifiers, as of ``Study.qualified``.
        labels, source: as of ``Study``; they say that a study is normal.
    """
    if qualified:
        return " ".join(dict.fromkeys(wordings(QualifiedFinding.parse(term))[0] for term in qualified))
    return NORMAL_CAPTION if _is_normal(labels, source) else ""


def random_caption(qualified: Sequence[str], labels: Sequence[str], source: str, rng: random.Random) -> str:
    """:func:`caption` in a random wording, findings in random order; the same for the same state of ``rng``.

    A normal study is called normal (one time in three), or one to three classes are denied that it does not have. A
    study with findings gets one such denial in three captions of ten. Empty where :func:`caption` is.
    """
    absent = absent_classes(labels, source)
    if not qualified:
        if not _is_normal(labels, source):
            return ""
        if not absent or rng.random() < 1 / 3:
            return NORMAL_CAPTION
        denied = rng.sample(absent, min(len(absent), rng.randint(1, 3)))
        return " ".join(denial(name, rng) for name in denied)
    sentences = [rng.choice(wordings(QualifiedFinding.parse(term))) for term in qualified]
    rng.shuffle(sentences)
    if absent and rng.random() < _DENIED_BESIDE_FINDINGS:
        sentences.append(denial(rng.choice(absent), rng))
    return " ".join(dict.fromkeys(sentences))


def _is_normal(labels: Sequence[str], source: str) -> bool:
    return annotated_labels(labels, source).get(NO_FINDING) == 1
