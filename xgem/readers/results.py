"""What the readers answered, with what they could not see, as rows and arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from xgem.metrics.bootstrap import Array
from xgem.readers.study import Study
from xgem.readers.tables import AnswerRow, ItemRow, ReaderRow, ShowingRow
from xgem.readers.task import REAL
from xgem.utils.tables import csv_text

COLUMNS: Final = (
    "task", "item", "arm", "case", "reader", "place", "score", "guess", "correct", "shown_at", "answered_at",
    "seconds", "times_shown", "revisions",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One item of one reader with the answer, or None where there is none yet.

    ``task`` is the task's name, ``place`` the number in this reader's order. ``first_at`` and ``answered_at``: the
    first and the last time that it was answered, in UTC.
    """

    task: str
    item: int
    arm: str
    case: str
    reader: str
    place: int
    score: int | None
    guess: str | None
    shown_at: datetime | None
    first_at: datetime | None
    answered_at: datetime | None
    times_shown: int
    revisions: int

    @property
    def truth(self) -> str:
        return REAL if self.arm == REAL else "synthetic"

    @property
    def correct(self) -> bool | None:
        """Whether the guess was right; None without one."""
        return None if self.guess is None else self.guess == self.truth

    @property
    def seconds(self) -> float | None:
        """From when the page was last sent to the first answer."""
        if self.shown_at is None or self.first_at is None:
            return None
        return (self.first_at - self.shown_at).total_seconds()


def readings_of(study: Study) -> list[Reading]:
    """All items of all readers, by task, item and reader."""
    query = (
        select(
            ItemRow.task,
            ItemRow.id.label("item"),
            ItemRow.arm,
            ItemRow.case,
            ReaderRow.name.label("reader"),
            ShowingRow.place,
            AnswerRow.score,
            AnswerRow.guess,
            ShowingRow.shown_at,
            AnswerRow.first_at,
            AnswerRow.answered_at,
            ShowingRow.times_shown,
            AnswerRow.revisions,
        )
        .join(ShowingRow, ShowingRow.item_id == ItemRow.id)
        .join(ReaderRow, ReaderRow.id == ShowingRow.reader_id)
        .outerjoin(AnswerRow, AnswerRow.showing_id == ShowingRow.id)
        .where(ItemRow.study_id == study.id)
        .order_by(ItemRow.task, ItemRow.id, ReaderRow.id)
    )
    names = [task.name for task in study.plan.all_tasks]
    with Session(study.engine) as session:
        return [_reading(dict(row), names) for row in session.execute(query).mappings()]


def _reading(row: dict[str, Any], names: Sequence[str]) -> Reading:
    times = {name: _utc(row[name]) for name in ("shown_at", "first_at", "answered_at")}
    return Reading(**{**row, **times, "task": names[row["task"]], "revisions": row["revisions"] or 0})


def _utc(time: datetime | None) -> datetime | None:
    """SQLite keeps no time zone: all times are written in UTC."""
    if time is None:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def as_csv(readings: Sequence[Reading]) -> str:
    """A row for every item of every reader; the answer's columns are empty where there is none."""
    rows = []
    for one in readings:
        row = {name: getattr(one, name) for name in COLUMNS}
        row |= {name: time.isoformat() for name in ("shown_at", "answered_at") if (time := row[name]) is not None}
        rows.append(row | {"seconds": None if one.seconds is None else f"{one.seconds:.2f}"})
    return csv_text(COLUMNS, rows)


def matrix(readings: Sequence[Reading], readers: Sequence[str]) -> tuple[list[int], Array]:
    """The items in these readings, and their scores (items, readers); NaN without an answer."""
    items = sorted({one.item for one in readings})
    rows, columns = ({value: k for k, value in enumerate(values)} for values in (items, readers))
    scores = np.full((len(items), len(readers)), math.nan)
    for one in readings:
        if one.score is not None:
            scores[rows[one.item], columns[one.reader]] = one.score
    return items, scores
