"""``xgem-rules``: a rule-based labeller of chest reports for CheXpert's 14 classes, with negation and uncertainty.

It is xgem's own and is never reported as "CheXpert-labeler". Each sentence is searched for mentions
(:mod:`xgem.labels.patterns`); a mention is negated or uncertain if it is in the scope of such a cue, following NegEx
(Chapman et al. 2001): the scope of a cue extends to the end of its clause.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from xgem.labels import patterns
from xgem.labels.sentences import sentences
from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING

LABELLER: Final = "xgem-rules"
LABELLER_VERSION: Final = 2
Label = Literal[1, 0, -1] | None
"""1 positive, 0 negated, -1 uncertain, None not mentioned."""

_RANK: Final[dict[Label, int]] = {None: 0, 0: 1, -1: 2, 1: 3}
_BETWEEN = re.compile(r"^[^,.;:]{0,40}\b(?:versus|vs|or|and ?/ ?or)\b[^,.;:]{0,30}$")


@dataclass(frozen=True)
class _Mention:
    label: str
    start: int  # a cue before the mention must end here
    end: int


def label_report(text: str) -> dict[str, Label]:
    """Label one report.

    Args:
        text: free text in any case, with or without section headings; de-identification marks (``XXXX``) are allowed.

    Returns:
        one label for each of :data:`CHEXPERT_CLASSES`: 1 positive, 0 negated, -1 uncertain, ``None`` not mentioned. The
        strongest statement in a report counts (1, then -1, then 0). "No Finding" is 1 if the text has a word that the
        rules know (:func:`is_known_text`) and states nothing as positive or uncertain but support devices; otherwise it
        is ``None``.
    """
    strongest: dict[str, Label] = {}
    for sentence in sentences(text):
        for name, label in _label_sentence(sentence):
            if _RANK[label] > _RANK[strongest.get(name)]:
                strongest[name] = label
    result: dict[str, Label] = {name: strongest.get(name) for name in CHEXPERT_CLASSES}
    abnormal = any(strongest.get(name) in (1, -1) for name in strongest if name != "Support Devices")
    result[NO_FINDING] = 1 if not abnormal and is_known_text(text) else None
    return result


def is_known_text(text: str) -> bool:
    """Whether a text has a word of chest reports: a finding, a structure, "normal". "nan" has none."""
    searched = (*patterns.MENTIONS.values(), *patterns.NORMAL_STATEMENTS.values(), (patterns.KNOWN_WORDS,))
    return any(pattern.search(sentence) for sentence in sentences(text) for known in searched for pattern in known)


def label_matrix(
    reports: Iterable[str],
    *,
    classes: Sequence[str] = CHEXPERT_CLASSES,
    uncertain: Literal["positive", "negative"] = "positive",
) -> NDArray[np.bool_]:
    """Label many reports at once.

    Args:
        reports: n texts; identical texts are labelled once.
        classes: columns of the result.
        uncertain: what -1 counts as. "positive" (default) keeps the findings that a reader would act on.

    Returns:
        (n, classes) bool, True where the class is positive.
    """
    counted = {1, -1} if uncertain == "positive" else {1}
    cache: dict[str, list[bool]] = {}
    rows: list[list[bool]] = []
    for text in reports:
        if text not in cache:
            labels = label_report(text)
            cache[text] = [labels[name] in counted for name in classes]
        rows.append(cache[text])
    return np.array(rows, dtype=bool).reshape(len(rows), len(classes))


def _label_sentence(sentence: str) -> list[tuple[str, Label]]:
    """The labels that a sentence states, by class; a class may come several times."""
    # Statements about the structures themselves: "the lungs are clear"
    about_structures: list[tuple[str, Label]] = []
    for name, statements in patterns.NORMAL_STATEMENTS.items():
        if any(pattern.search(sentence) for pattern in statements):
            about_structures.append((name, 0))
    if patterns.BORDERLINE_HEART.search(sentence):
        about_structures.append(("Cardiomegaly", -1))
    # Mentions of findings, each within its clause
    edges = [0, *(match.start() for match in patterns.TERMINATORS.finditer(sentence)), len(sentence)]
    mentions = _mentions(sentence)
    labels: list[Label] = []
    for mention in mentions:
        low = max(edge for edge in edges if edge <= mention.start)
        high = min(edge for edge in edges if edge >= mention.end)
        labels.append(_judge(sentence, low, high, mention))
    for i, first in enumerate(mentions):
        # "atelectasis or scarring", "infiltrate versus atelectasis": one of both, so neither is certain
        for j, second in enumerate(mentions):
            both = first.end <= second.start and labels[i] == labels[j] == 1 and first.label != second.label
            if both and _BETWEEN.match(sentence[first.end : second.start]):
                labels[i] = labels[j] = -1
    stated: list[tuple[str, Label]] = [
        (mention.label, label) for mention, label in zip(mentions, labels, strict=True) if label is not None
    ]
    return [*about_structures, *stated]


def _mentions(sentence: str) -> list[_Mention]:
    result: list[_Mention] = []
    for name, mentions in patterns.MENTIONS.items():
        for pattern in mentions:
            for match in pattern.finditer(sentence):
                start = match.start("at") if "at" in pattern.groupindex and match.group("at") else match.start()
                result.append(_Mention(name, start, match.end()))
    return result


def _judge(sentence: str, low: int, high: int, mention: _Mention) -> Label:
    """The label of one mention inside its clause ``sentence[low:high]``; None where it states nothing."""
    before = sentence[low : mention.start]
    after = sentence[mention.end : high]
    # Questions, history and advice state nothing
    if patterns.HYPOTHETICAL.search(sentence[low:high]):
        return None
    masked = patterns.PSEUDO_NEGATIONS.sub(lambda m: "#" * len(m[0]), before)
    doubt = _last(patterns.UNCERTAIN_BEFORE, masked)
    # Cues before the mention. "cannot exclude" contains "not": a cue of uncertainty is not a negation as well
    unmasked = patterns.UNCERTAIN_BEFORE.sub(lambda m: "#" * len(m[0]), masked)
    denial = _last(patterns.NEGATIVE_BEFORE, unmasked)
    ends = [m.start() for m in patterns.NEGATION_ENDS.finditer(sentence[low : mention.end])]
    if denial is not None and not any(edge >= denial for edge in ends):
        return 0
    # Cues after the mention
    if patterns.UNCERTAIN_AFTER.search(after):
        return -1
    reach = _reach(before, after)
    if reach and patterns.NEGATIVE_AFTER.search(patterns.PSEUDO_NEGATIONS.sub("#", after)):
        return 0
    if doubt is not None and not any(edge >= doubt for edge in ends if sentence[low + edge] == ","):
        return -1
    return 1


def _reach(before: str, after: str) -> bool:
    """Whether a cue after the mention refers to it: a comma ends its scope unless the comma separates a list."""
    head = patterns.NEGATIVE_AFTER.split(after, maxsplit=1)[0]
    return "," not in head or re.search(r"\b(?:or|and|nor)\b", head) is not None


def _last(pattern: re.Pattern[str], text: str) -> int | None:
    """The end of the last match, or None."""
    last: int | None = None
    for match in pattern.finditer(text):
        last = match.end()
    return last
