"""What ``xgem eval prompts`` asks for: sentences of radiologists, each with what it says.

The built-in list is fixed, so that numbers of several models are of the same sentences; a table of one's own can take
its place (:func:`read_sentences`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from xgem.data.tables import read_table
from xgem.labels.sides import SIDES, Side
from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING
from xgem.types import DataError

COLUMNS: Final = ("sentence", "findings", "side", "partner")
FEWEST: Final = 4


@dataclass(frozen=True)
class Sentence:
    """A sentence with the CheXpert classes that it affirms.

    ``side`` is that of the patient, None where it names none or both. ``partner`` is the sentence that asks for the
    same on the other side; empty where there is none.
    """

    text: str
    findings: tuple[str, ...]
    side: Side | None = None
    partner: str = ""


_SIDED: Final[tuple[tuple[str, str], ...]] = (
    ("Large {side} pleural effusion.", "Pleural Effusion"),
    ("Small {side} pleural effusion.", "Pleural Effusion"),
    ("Large {side} pneumothorax.", "Pneumothorax"),
    ("Small {side} apical pneumothorax.", "Pneumothorax"),
    ("{Side} lower lobe airspace disease.", "Lung Opacity"),
    ("{Side} upper lobe opacity.", "Lung Opacity"),
    ("{Side} upper lobe consolidation.", "Consolidation"),
    ("{Side} lower lobe pneumonia.", "Pneumonia"),
    ("{Side} basilar atelectasis.", "Atelectasis"),
    ("{Side} upper lobe mass.", "Lung Lesion"),
    ("Small {side} lower lobe nodule.", "Lung Lesion"),
    ("{Side}-sided pacemaker with leads in the right atrium and right ventricle.", "Support Devices"),
    ("{Side} internal jugular central venous catheter with its tip in the SVC.", "Support Devices"),
    ("Multiple {side} rib fractures.", "Fracture"),
)
_UNSIDED: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("Cardiomegaly.", ("Cardiomegaly",)),
    ("Mild cardiomegaly.", ("Cardiomegaly",)),
    ("Severe cardiomegaly.", ("Cardiomegaly",)),
    ("Pulmonary edema.", ("Edema",)),
    ("Cardiomegaly with pulmonary edema.", ("Cardiomegaly", "Edema")),
    ("Bilateral pleural effusions.", ("Pleural Effusion",)),
    ("Bibasilar atelectasis.", ("Atelectasis",)),
    ("Bilateral airspace disease.", ("Lung Opacity",)),
    ("Endotracheal tube with its tip above the carina.", ("Support Devices",)),
    ("Widened mediastinum.", ("Enlarged Cardiomediastinum",)),
    ("No acute cardiopulmonary abnormality.", (NO_FINDING,)),
    ("No acute disease.", (NO_FINDING,)),
    ("Normal chest.", (NO_FINDING,)),
    ("The heart is normal in size. The lungs are clear.", (NO_FINDING,)),
)


def _written(template: str, side: Side) -> str:
    return template.format(side=side, Side=side.capitalize())


def _built_in() -> tuple[Sentence, ...]:
    sided = [
        Sentence(_written(template, side), (finding,), side, _written(template, other))
        for template, finding in _SIDED
        for side, other in (SIDES, SIDES[::-1])
    ]
    return (*sided, *(Sentence(text, findings) for text, findings in _UNSIDED))


SENTENCES: Final = _built_in()
"""42 sentences: 14 for each side, ten findings without a side, and four of a normal chest."""


def read_sentences(file: Path) -> tuple[Sentence, ...]:
    """A table with the columns ``sentence``, ``findings`` (CheXpert's classes, ``;`` between), ``side``, ``partner``.

    ``side`` and ``partner`` may be empty or missing.

    Raises:
        DataError: the table cannot be used; names the line.
    """
    table = read_table(file, *COLUMNS[:2])
    found = [_of_row(row, f"{file}: line {line}") for row, line in zip(table.rows, table.lines, strict=True)]
    check_sentences(found, str(file))
    return tuple(found)


def _of_row(row: Mapping[str, str], where: str) -> Sentence:
    text, side = row["sentence"].strip(), row.get("side", "").strip().lower()
    findings = tuple(name.strip() for name in row["findings"].split(";") if name.strip())
    unknown = [name for name in findings if name not in CHEXPERT_CLASSES]
    if not text or not findings or unknown:
        expected = f"a sentence and classes of {', '.join(CHEXPERT_CLASSES)}"
        raise DataError(f"{where}: sentence {text!r}, findings {row['findings']!r}: expected {expected}")
    if side not in ("", *SIDES):
        raise DataError(f"{where}: side {side!r}; expected left or right (of the patient), or empty")
    return Sentence(text, findings, cast(Side, side) if side else None, row.get("partner", "").strip())


def check_sentences(sentences: Sequence[Sentence], where: str = "sentences") -> None:
    """Refuse a list that is too short, or has a sentence twice or a partner that is not its mirror image.

    Raises:
        DataError: says which.
    """
    by_text = {sentence.text: sentence for sentence in sentences}
    if len(sentences) < FEWEST or len(by_text) != len(sentences):
        raise DataError(
            f"{where}: {len(by_text)} different sentences of {len(sentences)}: expected at least {FEWEST}, each once"
        )
    for sentence in sentences:
        if not sentence.partner:
            continue
        other = by_text.get(sentence.partner)
        if other is None or other.findings != sentence.findings or {sentence.side, other.side} != set(SIDES):
            raise DataError(
                f"{where}: {sentence.text!r}: partner {sentence.partner!r} does not ask the same on the other side"
            )
