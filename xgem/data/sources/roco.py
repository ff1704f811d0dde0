"""Captions of chest radiographs in open articles: texts without an image.

Pelka et al., "Radiology Objects in COntext (ROCO): A Multimodal Image Dataset", LABELS 2018. A folder with
``chest_captions.csv`` (id, article, caption, licence).

Decisions: a caption is the impression of a study of its own without an image: what reads texts alone, the report codec
and the tokenizer, trains on it. What points into the figure ("(arrow)", "(arrowheads)") is removed. The subject is the
article, whose captions are in one split; a fixed hash gives 20 % of articles to val. Every row has its article's
licence. Findings, age and sex are unknown.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

from xgem.data.cleaning import clean_report
from xgem.data.manifest import Manifest, Row, split_of
from xgem.data.sources.rows import make_row, write_manifest
from xgem.data.tables import read_table
from xgem.types import DataError

logger = logging.getLogger(__name__)

SOURCE: Final = "roco"
_POINTER: Final = re.compile(
    r"\s*[(\[][^()\[\]]*\b(?:arrows?|arrow ?heads?|asterisks?|stars?|circles?|fig(?:ure)?s?)\b[^()\[\]]*[)\]]",
    re.IGNORECASE,
)


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a folder of captions to ``out``.

    Raises:
        DataError: the folder or its table is not as above, a caption has no licence, or none has any words.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    table = source / "chest_captions.csv"
    if not table.is_file():
        raise DataError(f"{source}: not a folder of captions; expected chest_captions.csv in it")
    records = read_table(table, "id", "article", "caption", "licence").rows
    rows = []
    for record in records:
        where = f"{table}: caption {record['id']}"
        if not record["licence"]:
            raise DataError(f"{where} has no licence; add it, or remove the caption")
        caption = clean_caption(record["caption"])
        if not caption:
            continue
        subject = f"{SOURCE}-{record['article'] or record['id']}"
        rows.append(
            make_row(
                where,
                study=f"{SOURCE}-{record['id']}",
                subject=subject,
                split=split_of(subject, val=0.2, test=0),
                impression=caption,
                source=SOURCE,
                licence=record["licence"],
            )
        )
    if not rows:
        raise DataError(f"{table}: none of its {len(records)} captions has words; expected one per row")
    if len(rows) < len(records):
        logger.warning("roco: %d of %d captions have no words and are left out", len(records) - len(rows), len(records))
    return rows


def clean_caption(text: str) -> str:
    """A caption without what points into its figure, cleaned as reports are; empty where nothing is left."""
    return clean_report(_POINTER.sub("", text))
