"""Texts that differ from a true one in a single statement: the other side, another size, another finding, a denial.

A contrastive loss over whole reports hardly ever sees "left" against "right": any other report differs in more than
that. Texts made by rules from the study's own one show it the difference (Yuksekgonul et al., "When and why
vision-language models behave like bags-of-words, and what to do about it", ICLR 2023).
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

from xgem.labels.rules import is_known_text, label_report
from xgem.labels.sentences import written_sentences
from xgem.labels.sides import BOTH_SIDES
from xgem.labels.vocabulary import NO_FINDING

_DENYING: Final = re.compile(
    r"\b(?:no|not|without|free of|negative for|clear|absent|absence|resolved|normal|unremarkable|n't|nor|neither)\b",
    re.IGNORECASE,
)
_SIDE: Final = re.compile(r"\b(left|right)(?=\b|ward)", re.IGNORECASE)
_OPPOSITE: Final = {"left": "right", "right": "left"}
_EXTENTS: Final = {
    "small": "large",
    "tiny": "large",
    "minimal": "large",
    "large": "small",
    "mild": "severe",
    "mildly": "severely",
    "borderline": "severe",
    "severe": "mild",
    "severely": "mildly",
    "slight": "marked",
    "slightly": "markedly",
    "marked": "slight",
    "markedly": "slightly",
}
_EXTENT: Final = re.compile(rf"\b({'|'.join(_EXTENTS)})\b", re.IGNORECASE)
# Within a group the sentence stays English with any of the names: those that are counted, and those that are not
_NAMES: Final[tuple[dict[str, tuple[str, str]], ...]] = (
    {
        "Pleural Effusion": ("pleural effusion", r"pleural effusion"),
        "Pneumothorax": ("pneumothorax", r"pneumothorax"),
        "Lung Lesion": ("nodule", r"(?:(?:lung|pulmonary) )?(?:nodule|mass)"),
        "Lung Opacity": ("opacity", r"(?:airspace |lung |pulmonary )?opacity"),
        "Fracture": ("fracture", r"(?:rib )?fracture"),
    },
    {
        "Atelectasis": ("atelectasis", r"atelectasis"),
        "Consolidation": ("consolidation", r"consolidation"),
        "Pneumonia": ("pneumonia", r"pneumonia"),
        "Edema": ("pulmonary edema", r"(?:pulmonary |interstitial )*edema"),
        "Cardiomegaly": ("cardiomegaly", r"cardiomegaly"),
        "Pleural Other": ("pleural thickening", r"pleural thickening"),
    },
)
_ARTICLE: Final = re.compile(r"\b([Aa])n?(?= ([A-Za-z]))")
_THERE: Final = re.compile(r"^(There (?:is|are)) (?:an? |some )?(?=\w)")
_THERE_NO: Final = re.compile(r"^(There (?:is|are)) (?:no|no evidence of)(?: evidence of)? (?=\w)")
_NO: Final = re.compile(r"^No (?:evidence of )?(?=\w)")
_NOTHING_ACUTE: Final = re.compile(r"^No (?:evidence of )?(?:acute|active) .*(?:abnormalit|disease|process|finding)")
_COMPARED: Final = re.compile(
    r"\b(?:(?:un|no )?changed?|improve\w*|increas\w*|decreas\w*|stable|probabl[ey]|possibl[ey]|questionable|suspected"
    r"|recommend\w*|xxxx)\b",
    re.IGNORECASE,
)
_STATED: Final = re.compile(
    r"\b(?:is|are) (?:again )?(?:seen|present|noted|identified|visible|visualized|demonstrated)\.$"
)
_VERB: Final = re.compile(
    r"\b(?:is|are|was|were|has|have|had|be|been|appears?|remains?|shows?|demonstrates?|may|can|could|suggests?"
    r"|represents?|seen|noted)\b",
    re.IGNORECASE,
)


def other_side(sentence: str) -> str | None:
    """The sentence with left and right exchanged; None where it names no side or both, or denies something."""
    named = {match[0].lower() for match in _SIDE.finditer(sentence)}
    if len(named) != 1 or BOTH_SIDES.search(sentence) or _DENYING.search(sentence):
        return None
    return _SIDE.sub(lambda match: _as_written(_OPPOSITE[match[0].lower()], match[0]), sentence)


def other_extent(sentence: str) -> str | None:
    """The sentence with "small" for "large", "mild" for "severe", and so on; None without one, or in a denial."""
    if _DENYING.search(sentence) or not _EXTENT.search(sentence):
        return None
    return _with_articles(
        _EXTENT.sub(lambda match: _as_written(_EXTENTS[match[0].lower()], match[0]), sentence, count=1)
    )


def other_findings(sentence: str, absent: Collection[str]) -> list[str]:
    """The sentence with its finding exchanged for each of CheXpert's classes in ``absent`` that fits its grammar."""
    if _DENYING.search(sentence):
        return []
    for names in _NAMES:
        for own, (_, pattern) in names.items():
            found = re.search(rf"\b{pattern}\b", sentence, re.IGNORECASE)
            if found is None or own in absent:
                continue
            return [
                _with_articles(sentence[: found.start()] + _as_written(name, found[0]) + sentence[found.end() :])
                for other, (name, _) in names.items()
                if other in absent
            ]
    return []


def denied(sentence: str) -> str | None:
    """A finding denied, or a denied finding affirmed; None where no rule says how.

    "There is a nodule." and "There is no nodule.", "Small effusion is seen." and "No small effusion is seen.", "No
    edema." and "Edema." become each other. Doubts, comparisons, advice and longer statements are left alone.
    """
    if _DENYING.search(sentence):
        labels = label_report(sentence)
        if not (0 in labels.values() or _NOTHING_ACUTE.match(sentence)) or len(_DENYING.findall(sentence)) > 1:
            return None
        if _THERE_NO.match(sentence):
            return _THERE_NO.sub(r"\1 ", sentence)
        return _capital(_NO.sub("", sentence)) if _NO.match(sentence) else None
    if _COMPARED.search(sentence) or not is_known_text(sentence):
        return None
    if _THERE.match(sentence):
        return _THERE.sub(r"\1 no ", sentence)
    if _STATED.search(sentence) or not _VERB.search(sentence):
        return f"No {_lower(re.sub(r'^An? ', '', sentence))}"
    return None


def hard_negatives(
    text: str, count: int, rng: random.Random, *, absent: Collection[str] = (), told: Iterable[str] = ()
) -> list[str]:
    """Up to ``count`` texts that differ from ``text`` in one statement, and so are false of its study.

    The kind (side, size, finding, denial) is drawn first, then the sentence.

    Args:
        text: true of the study.
        count: number of texts wanted; fewer where the rules find fewer.
        rng: source of randomness; the same state gives the same texts.
        absent: CheXpert's classes that the study is known not to have, which can take the place of others.
        told: further true texts. What they state is not taken for false: no side is exchanged where one of them has the
            finding on the other side, or on both.
    """
    sentences = written_sentences(text)
    true = [*sentences, *(sentence for one in told for sentence in written_sentences(one))]
    kinds: dict[str, list[str]] = {"side": [], "extent": [], "finding": [], "denial": []}
    for place, sentence in enumerate(sentences):
        made = {
            "side": [other_side(sentence)] if not _on_both_sides(sentence, true) else [],
            "extent": [other_extent(sentence)],
            "finding": other_findings(sentence, absent),
            "denial": [denied(sentence)],
        }
        for kind, changed in made.items():
            kinds[kind] += [
                " ".join((*sentences[:place], one, *sentences[place + 1 :]))
                for one in changed
                if one is not None and one not in true
            ]
    chosen: list[str] = []
    while len(chosen) < count and (left := [kind for kind, texts in kinds.items() if texts]):
        texts = kinds[rng.choice(left)]
        one = texts.pop(rng.randrange(len(texts)))
        if one not in chosen:
            chosen.append(one)
    return chosen


def _on_both_sides(sentence: str, true: Iterable[str]) -> bool:
    """Whether a true sentence has what this one is about on its other side, as far as the rules can tell."""
    sides = {match[0].lower() for match in _SIDE.finditer(sentence)}
    if len(sides) != 1:
        return True
    other, own = _OPPOSITE[sides.pop()], _stated(sentence)
    for one in true:
        if one == sentence or _DENYING.search(one):
            continue
        there = BOTH_SIDES.search(one) or other in {match[0].lower() for match in _SIDE.finditer(one)}
        if there and (not own or not (about := _stated(one)) or own & about):
            return True
    return False


@lru_cache(maxsize=65536)
def _stated(sentence: str) -> frozenset[str]:
    """The classes that a sentence states as present or possible."""
    labels = label_report(sentence)
    return frozenset(name for name, label in labels.items() if label in (1, -1) and name != NO_FINDING)


def _as_written(word: str, like: str) -> str:
    return word.upper() if like.isupper() else _capital(word) if like[0].isupper() else word


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    """In lower case at the start, unless the first word is an abbreviation ("CHF")."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _with_articles(sentence: str) -> str:
    """The sentence with the articles that the words behind them need."""
    return _ARTICLE.sub(lambda match: match[1] + ("n" if match[2].lower() in "aeiou" else ""), sentence)
