"""Reports as a fixed number of sentences in each section, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xgem.configs.base import Section
from xgem.data.sections import join_sections, joined_sections
from xgem.labels.sentences import written_sentences


def to_sentences(report: str, places: Mapping[Section, int]) -> list[str]:
    """The report's sentences at their places, "" at those that are left over.

    Args:
        report: as :func:`xgem.data.sections.join_sections` writes it; without headings it is an impression.
        places: how many sentences of each section there are. The last place of a section takes all that are left. A
            report goes as a whole into the only section, if there is but one.
    """
    texts = dict(zip(("findings", "impression"), joined_sections(report), strict=True)) if len(places) > 1 else {}
    result: list[str] = []
    for section, count in places.items():
        parts = written_sentences(texts.get(section, report))
        parts = [*parts[: count - 1], " ".join(parts[count - 1 :])]
        result += parts + [""] * (count - len(parts))
    return result


def from_sentences(sentences: Sequence[str], places: Mapping[Section, int]) -> str:
    """The report of the sentences at those places. Places without text are left out, and a sentence that its section
    has already: radiologists do not write one twice."""
    texts: dict[str, str] = {}
    for section, count in places.items():
        texts[section] = " ".join(dict.fromkeys(text for text in sentences[:count] if text))
        sentences = sentences[count:]
    return texts.popitem()[1] if len(texts) == 1 else join_sections(texts["findings"], texts["impression"])
