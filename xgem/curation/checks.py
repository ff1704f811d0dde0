"""Whether a text says what is known of a study, all of it, and nothing else.

xgem's own labeller (:mod:`xgem.labels.rules`) reads the text; its statements are compared with the annotators'. What the
labeller has no class for is searched by its name. The rest are rules: sex, age, side, extent and view that no fact
states, measurements, priors, names, dates, addresses, markup, and what chat models say of themselves.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

from xgem.curation.facts import Facts
from xgem.data.captions import spoken
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
    "a comparison with earlier images": r"\b(?:compar(?:ed|ison)|prior|previous(?:ly)?|interval|unchanged|worsen(?:ed|ing)|"
    r"improv(?:ed|ing|ement)|new(?:ly)?|stable|again (?:seen|noted)|resol(?:ved|ution|ving))\b",
    "a measurement": r"\b\d+(?:\.\d+)?\s*(?:x\s*\d+(?:\.\d+)?\s*)?(?:mm|cm|ml|millimet|centimet)",
    "a date or a time": r"\b(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}:\d{2}|(?:january|february|march|april|june|july|"
    r"august|september|october|november|december)\s+\d)",
    "a phone number or an address": r"\+?\d[\d\s()-]{7,}\d|\bhttps?:|\bwww\.|\S@\S+\.\w",
    "a person's name": r"\b(?:dr|mr|mrs|ms|prof)\.?\s+[A-Z]|\b(?:patient name|name:|MRN|signed by|dictated)",
    "markup": r"[*#`_]{2,}|^\s*[-*#>]\s|</?\w+>|[{}\[\]|]|\bXXXX\b",
    "words about itself": r"\bas an? (?:ai|language model|assistant)|\b(?:language model|I (?:cannot|can't|am|have)|"
    r"I'm|sorry|certainly|here is|here's|sure[,!])",
    "advice": r"\b(?:recommend(?:ed|ation|s)?|follow-?up|clinical correlation|correlate|advised?|suggest (?:ct|further))\b",
}
_PLAIN_CASE: Final = {"a person's name"}


@cache
def _strange() -> dict[str, re.Pattern[str]]:
    return {
        what: re.compile(pattern, re.MULTILINE | (0 if what in _PLAIN_CASE else re.IGNORECASE))
        for what, pattern in _STRANGE.items()
    }


@cache
def _others() -> dict[str, re.Pattern[str]]:
    """Findings that annotators name and that are in none of the classes, by their plain names."""
    found: dict[str, re.Pattern[str]] = {}
    for terms in SOURCES.values():
        for name, term in terms.items():
            if not term.affirms and not term.denies and term.abnormal:
                text = spoken(name)
                if len(text) > 3:
                    found[plain(name)] = re.compile(rf"\b{re.escape(text)}s?\b", re.IGNORECASE)
    return found


def ways_wrong(text: str, facts: Facts) -> list[str]:
    """What is wrong with a description made from ``facts``, each on a line; empty where nothing is."""
    wrong = [*_classes(text, facts), *_other_findings(text, facts), *_patient(text, facts), *_sides(text, facts)]
    lower = f" {text.lower()} "
    for word in (*EXTENTS, *_MORE_EXTENTS):
        if re.search(rf"\b{word}(?:ly)?\b", lower) and not any(one.startswith(word) for one in facts.words):
            wrong.append(f"says {word!r}, an extent that no fact states")
    for view, pattern in _VIEW.items():
        if facts.views and view not in facts.views and pattern.search(text):
            wrong.append(f"speaks of a {view} view, the images are {' and '.join(facts.views)}")
    wrong += [f"holds {what}" for what, pattern in _strange().items() if pattern.search(text)]
    return wrong


def contradictions(report: str, facts: Facts) -> list[str]:
    """In what a study's own report contradicts its annotators, each on a line.

    Only plain statements count: a finding denied that the labels name; and one affirmed in a study that they call
    normal. What they merely do not name may be there: annotators do not name all that a report mentions.
    """
    found: list[str] = []
    for name, label in label_report(report).items():
        known = facts.known.get(name)
        if name in (NO_FINDING, SUPPORT_DEVICES):
            continue
        if label == 0 and known == 1:
            found.append(f"denies {name}, which the labels name")
        if label == 1 and facts.normal:
            found.append(f"states {name}, where the labels name no finding")
    return [*found, *_patient(report, facts)]


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


def _other_findings(text: str, facts: Facts) -> list[str]:
    given = {plain(term.split("/")[0]) for term in facts.terms}
    named = " ".join(facts.findings).lower()
    wrong: list[str] = []
    for name, pattern in _others().items():
        match = pattern.search(text)
        if match and name not in given and not pattern.search(named):
            wrong.append(f"speaks of {spoken(name)}, which is not among the facts")
    for term in facts.terms:
        if not classes_of(term) and plain(term) in _others():
            match = _others()[plain(term)].search(text)
            if match is None:
                wrong.append(f"does not mention {spoken(term)}")
            elif re.search(
                r"\b(?:no|without|not|absence of|negative for)\b[^.,;]*$", text[: match.start()], re.IGNORECASE
            ):
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
    for match in _DECADE.finditer(text):
        if facts.age is None or facts.age // 10 * 10 != int(match[1]):
            wrong.append(f"says an age in the {match[1]}s, it is {'unknown' if facts.age is None else facts.age}")
    return wrong


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
