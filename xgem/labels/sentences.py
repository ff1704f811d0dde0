"""Text of reports as the labeller and the prompts take it: plain characters, and the sentences of wrapped lines."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_CHARACTERS: Final = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4`", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
    | dict.fromkeys("\u2014\u2015", " - ")
    # Invisible: zero-width characters and the byte order mark
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "")
)
_SOFT_HYPHEN: Final = re.compile("\u00ad[ \t]*(?:\r\n|[\r\n])?[ \t]*")
_CONTRACTION: Final = re.compile(
    r"\b(is|are|was|were|do|does|did|ca|could|has|have|had|wo|would|should)(?:n't|nt)\b", re.IGNORECASE
)
_IRREGULAR: Final = {"ca": "can", "wo": "will"}

_SECTIONS: Final = (
    r"(?:findings?|impressions?|conclusions?|opinion|indications?|(?:clinical )?(?:history|information|indication)"
    r"|comparisons?|techniques?|procedure|exam(?:ination)?|reason for exam(?:ination)?|recommendations?|addendum)"
)
_HEADING: Final = re.compile(rf"\s*(?:(?i:{_SECTIONS})\s*:|[A-Z][\w/(),&-]*(?: [\w/(),&-]+){{0,3}}:)")
_BARE_HEADING: Final = re.compile(rf"\s*(?=[A-Z])(?i:{_SECTIONS})\s*$")
_BULLET: Final = re.compile(r"\s*(?:[-*+>\u2022\u2023\u25aa\u25cf\u25e6\u00b7]+|\(?\d{1,2}[.)]|\(?[a-h]\))\s+\S")
_CAPITALISED: Final = re.compile(r"\s*[A-Z][a-z]")
_GOES_ON: Final = re.compile(
    r"(?:[,;:(/-]|\b(?:no|not|nor|neither|without|and|or|versus|vs|with|of|in|on|at|to|for|from|by|as|than|per|over|the"
    r"|a|an|any|is|are|was|were|be|been|has|have|may|might|could|can|which|that|if|new|acute|focal|definite|evidence)"
    r"|\s(?-i:[A-Z])[\w-]*)\s*$",
    re.IGNORECASE,
)
"""A line that ends inside a sentence: with such a word, a comma, or (titles have capitals throughout) a capital."""
_WRITTEN: Final = re.compile(r"(?<=[.!?])(?<!\b\d[.])\s+")  # the full stop of "1." ends no sentence
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+|(?<=[a-z])\.(?=[a-z])|\n+")


def plain_characters(text: str) -> str:
    """The text with typographic quotes and dashes as ASCII, ligatures as letters, and no soft hyphens.

    A soft hyphen at the end of a line joins the two parts of its word. All else is Unicode's compatibility form (NFKC).
    """
    return unicodedata.normalize("NFKC", _SOFT_HYPHEN.sub("", text).translate(_CHARACTERS))


def unwrapped(text: str) -> str:
    """The text with one line for each paragraph, bullet or heading: line breaks inside a sentence become blanks.

    A break stays at an empty line, before a bullet, before or after a heading, and before a capitalised line unless the
    line above ends inside a sentence (with "no", "of", a comma, ...). A hyphen at the end of a line keeps its word
    together. A break after a full stop may become a blank: the full stop ends the sentence.
    """
    joined = ""
    above = ""
    for line in text.splitlines():
        if not joined or not line.strip():
            joined += "\n" if joined else ""
        elif _is_break(above, line):
            joined += "\n"
        elif not re.search(r"[^\W\d_]-$", joined):
            joined += " "
        joined += line.strip()
        above = line.strip()
    return joined


def _is_break(above: str, line: str) -> bool:
    if not above or _BULLET.match(line) or _HEADING.match(line) or _BARE_HEADING.match(line):
        return True
    return bool(_BARE_HEADING.match(above) or (_CAPITALISED.match(line) and not _GOES_ON.search(above)))


def written_sentences(text: str) -> list[str]:
    """The sentences of a cleaned report as they are written; joined by blanks they are the report again."""
    return [part for part in _WRITTEN.split(text.strip()) if part]


def sentences(text: str) -> list[str]:
    """The sentences of a report in lower case, without de-identification marks, contractions ("isn't") written out."""
    text = unwrapped(plain_characters(text)).lower()
    text = _CONTRACTION.sub(lambda match: f"{_IRREGULAR.get(match[1], match[1])} not", text)
    text = re.sub(r"x{3,}", " ", text)
    text = re.sub(r"\b(\d+)\.(\d)", r"\1 \2", text)  # the point in 1.5 cm does not end a sentence
    text = re.sub(r"\b(dr|mr|mrs|vs|approx|no)\.(?=\s\S)", lambda m: m[1] if m[1] != "no" else m[0], text)
    text = text.replace("/", " / ")
    parts = (re.sub(r"\s+", " ", part).strip(" .!") for part in _SENTENCE.split(text))
    return [part for part in parts if re.search(r"[a-z]{2}", part)]
