"""Cleaning of report text.

``clean_report`` applies these rules, in this order, until nothing changes (so it is idempotent):

1. White space becomes single blanks; a sentence that runs into the next ("apex.There") gets its blank back.
2. De-identification marks ("XXXX" in Open-i, "___" in MIMIC-CXR) go:

   - "x-XXXX" is restored to "x-ray", and "no XXXX of" to "no evidence of": the only marks that
     leave no choice of meaning;
   - a mark takes its attached parts along ("XXXX-year-old", "non-XXXX", "XXXX's", "XXXX/XXXX");
   - a sentence that tells who was informed ("discussed with Dr. XXXX") goes as a whole;
   - a sentence goes as a whole when its subject is a mark ("The XXXX are intact."), when marks are half of its words or
     more, or when fewer than two other words remain;
   - elsewhere only the mark goes, with the function words left hanging beside it ("changes of the XXXX." -> "changes.",
     "vasculature and XXXX are" -> "vasculature are", "XXXX and soft tissues" -> "Soft tissues").

3. Numbering goes: "1. ", "2) ", "(3) " at the start of the text or of a sentence. Numbers inside a sentence stay.
4. Doubled full stops ("..", ". .") become one; blanks before punctuation, empty brackets and hanging commas go.
5. The text starts with a capital and ends with a full stop. What has no letter left is empty.

Nothing is added, reworded or lower-cased otherwise.
"""

from __future__ import annotations

import re

_HIDDEN = "\x00"  # stands for one or more marks while a text is being cleaned
_MARK = r"(?:X{3,}|_{2,})"
_XRAY = re.compile(rf"\b([Xx])-{_MARK}")
_EVIDENCE = re.compile(rf"\b([Nn]o) {_MARK} of\b")
_MARKS = re.compile(rf"[<\[(]*(?:\b\w+[-/])*{_MARK}(?:['\u2019]s\b)?(?:[-/<>\[\]()]*(?:{_MARK}|(?<=[-/])\w+))*[>\])]*")
_RUN = re.compile(rf"{_HIDDEN}(?:[\s,;]*(?:and\s+)?{_HIDDEN})+")
_SENTENCE = re.compile(
    r"(?<=[.!?])(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\b[ap]\.m\.)(?<!\bapprox\.)\s+"
)
_INFORMED = re.compile(
    r"\b(?:Dr|Mr|Ms|discussed|notif\w+|telephone\w*|phoned|informed|communicated|acknowledg\w+|veriphy|dictated|paged)\b",
    re.IGNORECASE,
)
_VERB = r"(?:is|are|was|were|has|have|had|appears?|remains?|demonstrates?|shows?|within)"
_SUBJECT = re.compile(
    rf"^(?:(?:the|a|an|visualized|both|all|there is|there are)\s+)*{_HIDDEN}\s+{_VERB}\b", re.IGNORECASE
)
_HANGING = re.compile(
    rf"(?:\s*\b(?:of|in|at|on|to|from|by|for|with|within|without|near|over|the|a|an|and|or|as|than|this|is|are|was|were))*"
    rf"\s*{_HIDDEN}\s*(?=[.,;:!?)\]]|$)",
    re.IGNORECASE,
)
_DANGLING = re.compile(
    rf"(?:\s*\b(?:of|in|at|on|to|from|by|for|with|near|over|the|a|an|and|or))+\s*{_HIDDEN}"
    rf"(?=\s+(?:and|or|of|in|at|on|to|from|with|bilaterally|the|is|are|was|were|has|have|which|that|as|seen|appears?)\b)",
    re.IGNORECASE,
)
_LEADING = re.compile(rf"^{_HIDDEN}\s*(?:(?:and|or|of|with)\b\s*)+", re.IGNORECASE)
_NUMBER = re.compile(r"(?:^|(?<=[.!?:;]\s))\(?\d{1,2}[.)]\s*(?=[A-Za-z(])")
_BARE_NUMBER = re.compile(r"(?:^|(?<=[.!?]\s))\(?\d{1,2}[.)](?=\s*$|\s+\(?\d{1,2}[.)]\s)")
_TIDY = (
    (re.compile(r"\(\s*\)|\[\s*\]|<\s*>"), " "),
    (re.compile(r"\s+([.,;:!?)\]])"), r"\1"),
    (re.compile(r"([(\[])\s+"), r"\1"),
    (re.compile(r"[,;:]+(?=[.,;:!?])"), ""),
    (re.compile(r"([.!?])(?:\s*[.,;:])+"), r"\1"),
    (re.compile(r"(?<=[a-z])\.(?=[A-Z][a-z])"), ". "),
    (re.compile(r"^[\s.,;:!?/)\]>-]+"), ""),
    (re.compile(r"[\s,;:/(\[<-]+$"), ""),
    (re.compile(r"\s+"), " "),
)


def clean_report(text: str) -> str:
    """Clean a report or a part of it by the rules at the head of this module; empty in, empty out.

    Idempotent: ``clean_report(clean_report(text)) == clean_report(text)``.
    """
    text = text.replace(_HIDDEN, " ")
    # Each pass only shortens, adds a blank between run-on sentences, or ends the text: it settles in few passes.
    for _ in range(len(text) + 8):
        cleaned = _pass(text)
        if cleaned == text:
            return cleaned
        text = cleaned
    return text


def _pass(text: str) -> str:
    text = _tidy(text)
    text = _XRAY.sub(r"\1-ray", text)
    text = _EVIDENCE.sub(r"\1 evidence of", text)
    text = _MARKS.sub(_HIDDEN, text)
    if _HIDDEN in text:
        text = " ".join(_without_marks(sentence) for sentence in _SENTENCE.split(text))
        text = _tidy(text)
    text = _tidy(_BARE_NUMBER.sub("", _NUMBER.sub("", text)))
    if not any(character.isalpha() for character in text):
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def _tidy(text: str) -> str:
    text = " ".join(text.split())
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text


def _without_marks(sentence: str) -> str:
    if _HIDDEN not in sentence:
        return sentence
    body = re.sub(r"^\(?\d{1,2}[.)]\s*", "", sentence)
    marks = body.count(_HIDDEN)
    words = len(re.findall(r"[^\W\d_][\w'\u2019-]*", body))
    if _INFORMED.search(body) or _SUBJECT.match(body) or words < 2 or marks >= words:
        return ""
    body = body.lstrip(" ,;:")
    start = body.startswith(_HIDDEN)
    body = _RUN.sub(_HIDDEN, body)
    body = _LEADING.sub("", _HANGING.sub("", body))
    body = _DANGLING.sub("", body)
    body = body.replace(_HIDDEN, " ").strip()
    return body[:1].upper() + body[1:] if start else body
