"""Reports and captions of a manifest's images by a model at a chat endpoint, as a set that ``xgem eval text`` takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from xgem.chat.messages import ChatFailure
from xgem.data.study import Study
from xgem.data.transforms import read_grey
from xgem.judges.chat_roles import Captioner, ReportWriter, WrittenReport
from xgem.types import InputError, OutputError
from xgem.utils.files import replacing
from xgem.utils.progress import track
from xgem.utils.tables import csv_text

_COLUMNS: Final = ("id", "pair", "findings", "impression")
_LEFT_OUT: Final = ("id", "reason")


def write_texts(
    studies: Sequence[Study],
    writer: ReportWriter | Captioner,
    out: Path,
    *,
    view: str = "frontal",
    overwrite: bool = False,
) -> dict[str, int]:
    """A CSV with a row a study: ``id``, ``pair`` (the study), ``findings`` and ``impression``.

    A report writer sees the first image of every view. A captioner sees that of ``view``; a caption is the impression.
    Studies that got no text are listed in ``OUT.left-out.csv``; a second run asks for these alone, as other answers
    are kept.

    Returns:
        counts: ``studies``, ``written``, ``left out``.

    Raises:
        InputError: no study has such an image. ImageError: an image cannot be read. EndpointError: the endpoint fails
            as a whole. OutputError: ``out`` exists, without ``overwrite``, or cannot be written.
    """
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; choose another name or pass --overwrite")
    captions = isinstance(writer, Captioner)
    chosen = [study for study in studies if (study.images.get(view) if captions else study.images)]
    if not chosen:
        raise InputError(f"none of {len(studies)} studies has an image{f' of view {view}' if captions else ''}")
    rows: list[tuple[str, ...]] = []
    failed: list[tuple[str, str]] = []
    texts = _captions(writer, chosen, view) if isinstance(writer, Captioner) else _reports(writer, chosen)
    for study, text in track(zip(chosen, texts, strict=True), "asking", len(chosen)):
        if isinstance(text, ChatFailure):
            failed.append((study.id, text.reason))
        else:
            rows.append((study.id, study.id, *text))
    with replacing(out) as partial:
        partial.write_text(csv_text(_COLUMNS, rows), encoding="utf-8")
    listed = out.with_name(f"{out.stem}.left-out.csv")
    listed.unlink(missing_ok=True)
    if failed:
        with replacing(listed) as partial:
            partial.write_text(csv_text(_LEFT_OUT, failed), encoding="utf-8")
    return {"studies": len(chosen), "written": len(rows), "left out": len(failed)}


def _reports(writer: ReportWriter, studies: Sequence[Study]) -> Iterator[tuple[str, str] | ChatFailure]:
    images = (
        {view: read_grey(files[0], study.reading_of(files[0])) for view, files in study.images.items()}
        for study in studies
    )
    for report in writer.write(images):
        yield (report.findings, report.impression) if isinstance(report, WrittenReport) else report


def _captions(writer: Captioner, studies: Sequence[Study], view: str) -> Iterator[tuple[str, str] | ChatFailure]:
    files = ((study, study.images[view][0]) for study in studies)
    for text in writer.describe(read_grey(file, study.reading_of(file)) for study, file in files):
        yield ("", text) if isinstance(text, str) else text
