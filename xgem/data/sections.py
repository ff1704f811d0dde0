"""Sections of a radiology report, found by their headings.

A heading is a known name (:data:`HEADINGS`, in any case) at the start of a line, with a colon behind it or alone on the
line; with a colon it may also follow a sentence, or in capitals stand anywhere. Other words in capitals with a colon at
the start of a line ("NOTIFICATION:") end a section too; where they name the examination ("PA AND LATERAL VIEWS OF THE
CHEST:"), findings follow.

Indication, comparison, technique and the like are one paragraph: what stands below it, after an empty line, has no
heading. Text without a heading is findings where the report has an impression alone, and the impression where it has
neither; so is a report without any heading. A paragraph in capitals without a full stop, or one that ends in a colon,
is a title.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from xgem.configs.base import Section
from xgem.data.cleaning import clean_report

HEADINGS: Final[dict[str, tuple[str, ...]]] = {
    "findings": ("findings", "finding", "report", "description", "hallazgos"),
    "impression": (
        *(
            "impression",
            "impressions",
            "conclusion",
            "conclusions",
            "opinion",
            "summary",
            "interpretation",
            "diagnosis",
        ),
        *("findings and impression", "findings/impression", "findings / impression", "impression/findings"),
        *("impresión", "impresion", "conclusión", "conclusiones", "impresión diagnóstica", "impresion diagnostica"),
    ),
    "indication": (
        *("indication", "indications", "reason", "reason for exam", "reason for examination", "reason for study"),
        *("reason for this examination", "clinical indication", "indicación", "motivo", "motivo de consulta"),
    ),
    "history": ("history", "clinical history", "clinical information", "patient history", "historia clínica"),
    "comparison": ("comparison", "comparisons", "compared to", "prior", "priors", "comparación"),
    "technique": ("technique", "procedure", "views", "técnica"),
    "examination": ("examination", "exam", "exam type", "study", "type of examination", "exploración"),
    "other": (
        *("notification", "notifications", "recommendation", "recommendations", "recommendation(s)", "addendum"),
        *("wet read", "preliminary report", "signed", "electronically signed by", "dictated by", "attestation"),
    ),
}
"""The names that a section may have."""
_PARAGRAPH: Final = frozenset({"indication", "history", "comparison", "technique", "examination"})
_BARE: Final = ""
_SECTION = {name: section for section, names in HEADINGS.items() for name in names}
_NAMES = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in sorted(_SECTION, key=len, reverse=True))
# "Impression: x" or "IMPRESSION" on a line, "FINDINGS:" anywhere, "CHEST, PA AND LATERAL:" at the start of a line
_HEADING = re.compile(
    rf"^[ \t]*(?P<line>(?i:{_NAMES}))[ \t]*(?::|[ \t]*$)"
    rf"|(?<![\w/])(?P<within>(?-i:{_NAMES.upper()}))[ \t]*:"
    rf"|(?<=[.!?])\s+(?P<after>(?i:{_NAMES}))[ \t]*:"
    r"|^[ \t]*(?P<unknown>[A-ZÁÉÍÓÚÑ][A-ZÁÉÍÓÚÑ0-9 ,/&()'.-]{2,70}):",
    re.MULTILINE,
)
_EXAMINED = re.compile(r"\b(?:CHEST|VIEWS?|RADIOGRAPHS?|PORTABLE|LATERAL|TORAX|TÓRAX)\b")
_JOINED = re.compile(r"Findings: (.*?)(?: Impression: (.*))?", re.DOTALL)
_TITLE = re.compile(r"[^a-zà-ÿ.]*|[^.]*:")


@dataclass(frozen=True)
class Sections:
    """A report's cleaned ``findings`` and ``impression``, empty if it has none; ``others`` by name, as they stand."""

    findings: str
    impression: str
    others: dict[str, str]


def split_sections(report: str) -> Sections:
    """Sections of a report by its headings; several of one name are joined in their order."""
    parts: dict[str, list[str]] = {}
    name, start = _BARE, 0
    text = report.replace("\r\n", "\n").replace("\r", "\n")
    for match in _HEADING.finditer(text):
        _put(parts, name, text[start : match.start()])
        name, start = _section(match), match.end()
    _put(parts, name, text[start:])
    bare = parts.pop(_BARE, [])
    if bare:
        neither = "findings" not in parts and "impression" not in parts
        parts.setdefault("impression" if neither else "other" if "findings" in parts else "findings", []).extend(bare)
    joined = {section: "\n\n".join(texts) for section, texts in parts.items()}
    return Sections(
        clean_report(joined.pop("findings", "")),
        clean_report(joined.pop("impression", "")),
        {section: " ".join(words.split()) for section, words in joined.items()},
    )


def join_sections(findings: str, impression: str) -> str:
    """A report of its sections: "Findings: ... Impression: ...", or an impression alone without a heading."""
    if not findings:
        return impression
    return f"Findings: {findings} Impression: {impression}" if impression else f"Findings: {findings}"


def joined_sections(report: str) -> tuple[str, str]:
    """Findings and impression of a report that :func:`join_sections` wrote, as they are; else all is the impression."""
    match = _JOINED.fullmatch(report)
    return (match[1], match[2] or "") if match else ("", report)


def section_of(report: str, section: Section) -> str:
    """One section of a report that :func:`join_sections` wrote, without its heading; empty if it has none."""
    return joined_sections(report)[("findings", "impression").index(section)]


def _section(match: re.Match[str]) -> str:
    known = match["line"] or match["within"] or match["after"]
    if known:
        return _SECTION[" ".join(known.lower().split())]
    return "findings" if _EXAMINED.search(match["unknown"]) else "other"


def _put(parts: dict[str, list[str]], name: str, text: str) -> None:
    """Keep a section's text; what stands below the paragraph of an administrative one has no heading."""
    paragraphs = [paragraph for paragraph in re.split(r"\n[ \t]*\n", text) if paragraph.strip()]
    if name in _PARAGRAPH and len(paragraphs) > 1:
        paragraphs, below = paragraphs[:1], paragraphs[1:]
        _put(parts, _BARE, "\n\n".join(below))
    for paragraph in paragraphs:
        title = name == _BARE and _TITLE.fullmatch(paragraph.strip())
        parts.setdefault("title" if title else name, []).append(paragraph.strip())
