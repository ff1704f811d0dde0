"""Whether a text says what is known of a study, all of it, and nothing else.

xgem's own labeller (:mod:`xgem.labels.rules`) reads the text; its statements are compared with the annotators'. What
the labeller has no class for is searched by its name. The rest are rules: sex, age, side, extent and view that no fact
states, measurements, priors, names, dates, addresses, markup, and what chat models say of themselves.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

from xgem.curation.facts import Facts
from xgem.data.captions import caption_from_labels, spoken
from xgem.labels.qualified import EXTENTS
from xgem.labels.rules import label_report
from xgem.labels.sides import BOTH_SIDES, SIDES, named_sides
from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING, PARENTS, SOURCES, SUPPORT_DEVICES, classes_of, plain

_FEMALE: Final = re.compile(r"\b(?:female|woman|women|girl|lady|she|her|hers|mrs|ms)\b", re.IGNORECASE)
_MALE: Final = re.compile(r"\b(?:male|man|men|boy|gentleman|he|him|his|mr)\b", re.IGNORECASE)
_AGE: Final = re.compile(
    r"\b(\d{1,3})(?:\s*-\s*|\s+)(?:year|yr)s?(?:\s*-\s*|\s+)?(?:old|of age)|\b(\d{1,3})\s*(?:y/?o|yo)\b"
    r"|\bage[ds]?:?\s*(?:of\s+)?(\d{1,3})\b|\b(\d{1,3})\s+years\b",
    re.IGNORECASE,
)
_DECADE: Final = re.compile(r"\bin (?:his|her|their) (?:early |mid-?|late )?(\d0)s\b", re.IGNORECASE)
_SIDED: Final = re.compile(r"\b(?:left|right|bilateral(?:ly)?|both (?:lungs|sides))\b", re.IGNORECASE)
_VIEW: Final = {
    "lateral": re.compile(r"\blateral (?:chest |view|radiograph|projection|film|x-?ray)", re.IGNORECASE),
    "frontal": re.compile(r"\b(?:frontal|PA|AP|posteroanterior|anteroposterior)\b(?! window)"),
}
_MORE_EXTENTS: Final = ("massive", "extensive", "minimal", "trace", "tiny", "marked", "slight", "subtle", "huge")
_STRANGE: Final = {
    "a comparison with earlier images": r"\b(?:compar(?:ed|ison)|prior|previous(?:ly)?|interval|unchanged|"
    r"worsen(?:ed|ing)|improv(?:ed|ing|ement)|new(?:ly)?|stable|again (?:seen|noted)|resol(?:ved|ution|ving))\b",
    "a measurement": r"\b\d+(?:\.\d+)?\s*(?:x\s*\d+(?:\.\d+)?\s*)?(?:mm|cm|ml|millimet|centimet)",
    "a date or a time": r"\b(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}:\d{2}|(?:january|february|march|april|june|july|"
    r"august|september|october|november|december)\s+\d)",
    "a phone number or an address": r"\+?\d[\d\s()-]{7,}\d|\bhttps?:|\bwww\.|\S@\S+\.\w",
    "a person's name": r"\b(?i:dr|mr|mrs|ms|prof)\.?\s+[A-Z]|\b(?i:patient name|name:|MRN|signed by|dictated)",
    "markup": r"[*#`_]{2,}|^\s*[-*#>]\s|</?\w+>|[{}\[\]|]|\bXXXX\b",
    "words about itself": r"\bas an? (?:ai|language model|assistant)|\b(?:language model|I (?:cannot|can't|am|have)|"
    r"I'm|sorry|certainly|here is|here's|sure[,!])",
    "advice": r"\b(?:recommend(?:ed|ation|s)?|follow-?up|clinical correlation|correlate|advised?)\b",
}
_DENIAL: Final = re.compile(r"\b(?:no|without|not|absence of|negative for)\b[^.,;]*$", re.IGNORECASE)
_GENERIC: Final = re.compile(r"\b(?:opacit|densit|airspace|normal|device|abnormalit|chest|finding)", re.IGNORECASE)
NAMED_ALWAYS: Final = ("Cardiomegaly", "Edema", "Pneumonia", "Pneumothorax", "Pleural Effusion")
"""Classes that a report of a study which has them names."""
_PLAIN_CASE: Final = {"a person's name"}


@cache
def _strange() -> dict[str, re.Pattern[str]]:
    return {
        what: re.compile(pattern, re.MULTILINE | (0 if what in _PLAIN_CASE else re.IGNORECASE))
        for what, pattern in _STRANGE.items()
    }


@cache
def _named() -> dict[str, re.Pattern[str]]:
    """Findings as annotators of any source name them, by their plain names; structures and mere opacity are none."""
    found: dict[str, re.Pattern[str]] = {}
    for terms in SOURCES.values():
        for name, term in terms.items():
            text = spoken(name)
            is_place = caption_from_labels([name]).startswith("Abnormality of")
            if term.abnormal and not term.denies and len(text) > 3 and not is_place and not _GENERIC.search(text):
                found[plain(name)] = re.compile(rf"\b{re.escape(text)}s?\b", re.IGNORECASE)
    return found


def ways_wrong(text: str, facts: Facts) -> list[str]:
    """What is wrong with a description made from ``facts``, each on a line; empty where nothing is."""
    wrong = [*_classes(text, facts), *_by_name(text, facts), *_patient(text, facts), *_sides(text, facts)]
    lower = f" {text.lower()} "
    wrong += [
        f"says {word!r}, an extent that no fact states"
        for word in (*EXTENTS, *_MORE_EXTENTS)
        if re.search(rf"\b{word}(?:ly)?\b", lower) and not any(one.startswith(word) for one in facts.words)
    ]
    for view, pattern in _VIEW.items():
        if facts.views and view not in facts.views and pattern.search(text):
            wrong.append(f"speaks of a {view} view, the images are {' and '.join(facts.views)}")
    wrong += [f"holds {what}" for what, pattern in _strange().items() if pattern.search(text)]
    return wrong


def contradictions(report: str, facts: Facts) -> list[str]:
    """In what a study's own report contradicts its annotators, each on a line.

    Only plain statements count: a finding denied that the labels name, one affirmed in a study that they call normal,
    and a report without any finding for a study with one that no report passes over (:data:`NAMED_ALWAYS`). What the
    labels merely do not name may be there: annotators do not name all that a report mentions.
    """
    stated = label_report(report)
    found: list[str] = []
    for name, label in stated.items():
        if name in (NO_FINDING, SUPPORT_DEVICES):
            continue
        if label == 0 and facts.known.get(name) == 1 and name not in PARENTS.values():
            found.append(f"denies {name}, which the labels name")
        if label == 1 and facts.normal:
            found.append(f"states {name}, where the labels name no finding")
    missed = [name for name in NAMED_ALWAYS if facts.known.get(name) == 1]
    if stated[NO_FINDING] == 1 and missed and not found:
        found.append(f"names no finding, where the labels name {missed[0]}")
    return [*found, *(_patient(report, facts) if facts.sex and facts.age is not None else [])]


def _classes(text: str, facts: Facts) -> list[str]:
    stated, wrong = label_report(text), list[str]()
    implied = {above for name, value in facts.known.items() if value == 1 for above in _above(name)}
    for name in CHEXPERT_CLASSES:
        label, known = stated[name], facts.known.get(name)
        if name == NO_FINDING:
            continue
        if known == 1 and label is None:
            wrong.append(f"does not mention {name}")
        elif known == 1 and label == 0:
            wrong.append(f"denies {name}")
        elif known == 0 and label in (1, -1) and name not in implied:
            wrong.append(f"states {name}, which the labels deny")
        elif known is None and label in (1, -1) and name not in implied:
            wrong.append(f"states {name}, which is not among the facts")
        elif known is None and label == 0 and name not in implied and not facts.normal:
            wrong.append(f"denies {name}, of which nothing is known")
    return wrong


def _above(name: str) -> list[str]:
    parent = PARENTS.get(name)
    return [] if parent is None else [parent, *_above(parent)]


def _by_name(text: str, facts: Facts) -> list[str]:
    """Findings that the text affirms and no fact names; and those without a class that it omits or denies.

    A nodule and a mass are one class, and pneumonia leaves consolidation open: names tell them apart.
    """
    facts_say = " ".join((*facts.findings, *map(spoken, facts.terms))).lower()
    wrong: list[str] = []
    for pattern in _named().values():
        match = pattern.search(text)
        if match and not pattern.search(facts_say) and not _DENIAL.search(text[: match.start()]):
            wrong.append(f"speaks of {match[0].lower()}, which is not among the facts")
    for term in facts.terms:
        pattern = _named().get(plain(term))
        if pattern is not None and not classes_of(term):
            match = pattern.search(text)
            if match is None:
                wrong.append(f"does not mention {spoken(term)}")
            elif _DENIAL.search(text[: match.start()]):
                wrong.append(f"denies {spoken(term)}")
    return wrong


def _patient(text: str, facts: Facts) -> list[str]:
    wrong: list[str] = []
    for sex, pattern in (("F", _FEMALE), ("M", _MALE)):
        match = pattern.search(text)
        if match and facts.sex != sex:
            wrong.append(f"says {match[0]!r}, the sex is {facts.sex or 'unknown'}")
    for match in _AGE.finditer(text):
        age = int(next(filter(None, match.groups())))
        if age != facts.age:
            wrong.append(f"says an age of {age}, it is {'unknown' if facts.age is None else facts.age}")
    decades = [
        match[1] for match in _DECADE.finditer(text) if facts.age is None or facts.age // 10 * 10 != int(match[1])
    ]
    known = "unknown" if facts.age is None else facts.age
    return [*wrong, *(f"says an age in the {decade}s, it is {known}" for decade in decades)]


def _sides(text: str, facts: Facts) -> list[str]:
    wrong: list[str] = []
    for name, sides in named_sides(text).items():
        allowed = facts.sides.get(name)
        if allowed is None and name in PARENTS.values():
            below = [facts.sides[one] for one in facts.sides if name in _above(one)]
            allowed = frozenset().union(*below) if below else None
        if allowed is not None and not sides <= allowed:
            wrong.append(
                f"places {name} on the {' and '.join(sorted(sides))}, it is on the {' and '.join(sorted(allowed))}"
            )
    given = {side for sides in facts.sides.values() for side in sides}
    given |= {side for side in SIDES if side in facts.words}
    given |= {*SIDES} if facts.words & {"bilateral", "both", "bibasilar", "biapical"} else set()
    for match in _SIDED.finditer(text):
        word = match[0].lower()
        needed: set[Any] = {*SIDES} if BOTH_SIDES.match(word) else {word}
        if not needed <= given:
            wrong.append(f"says {word!r}, a side that no fact states")
            break
    return wrong
