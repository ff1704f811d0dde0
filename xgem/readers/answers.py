"""What readers do: log in, see the items of their current task, answer, revise, and end the task.

Every function works in the caller's transaction. What it refuses is :class:`Refused`, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from xgem.readers.study import Study
from xgem.readers.tables import AnswerRow, EndRow, ItemRow, ReaderRow, ShowingRow, now
from xgem.readers.task import Task
from xgem.types import InputError
from xgem.web.tokens import token_hash

Guess = Literal["real", "synthetic"]
GUESSES: Final[tuple[Guess, ...]] = ("real", "synthetic")


class Refused(InputError):
    """A request of a reader that is not allowed, with the HTTP status that says so."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Entry:
    """One item of a reader: the id of its showing, the number of its task, and the answer so far."""

    id: str
    task: int
    score: int | None
    guess: str | None


@dataclass(frozen=True)
class Progress:
    """Where a reader is: all entries in this reader's order, and the tasks that have been ended."""

    entries: Sequence[Entry]
    ended: frozenset[int]

    @property
    def tasks(self) -> list[int]:
        """Numbers of the tasks in this reader's order."""
        return list(dict.fromkeys(entry.task for entry in self.entries))

    @property
    def current(self) -> int | None:
        """The first task that has not been ended; None when all have."""
        return next((task for task in self.tasks if task not in self.ended), None)

    @property
    def items(self) -> list[Entry]:
        """The entries of the current task."""
        return [entry for entry in self.entries if entry.task == self.current]

    @property
    def answered(self) -> int:
        """How many of them have an answer."""
        return sum(entry.score is not None for entry in self.items)

    @property
    def next(self) -> Entry | None:
        """The first of them without an answer."""
        return next((entry for entry in self.items if entry.score is None), None)


def reader_of(session: Session, study: Study, token: str | None, *, lock: bool = False) -> ReaderRow:
    """The reader whose token this is; ``lock`` lets no other request of the reader change anything meanwhile.

    Raises:
        Refused: 401, no token, or not one of this study that still counts.
    """
    query = select(ReaderRow).where(ReaderRow.study_id == study.id, ReaderRow.token_sha256 == token_hash(token or ""))
    reader = session.scalar(query.with_for_update() if lock else query)
    if reader is None:
        raise Refused(401, "this link is not valid, or was replaced by a later one; open the link that you were sent")
    return reader


def progress_of(session: Session, reader: ReaderRow) -> Progress:
    """Everything that the reader has done."""
    rows = session.execute(
        select(ShowingRow.id, ItemRow.task, AnswerRow.score, AnswerRow.guess)
        .join(ItemRow, ItemRow.id == ShowingRow.item_id)
        .outerjoin(AnswerRow, AnswerRow.showing_id == ShowingRow.id)
        .where(ShowingRow.reader_id == reader.id)
        .order_by(ShowingRow.place)
    )
    ended = session.scalars(select(EndRow.task).where(EndRow.reader_id == reader.id))
    return Progress([Entry(*row) for row in rows], frozenset(ended))


def entry_of(progress: Progress, showing: str) -> Entry:
    """The reader's own item of this id, if it is of the current task.

    Raises:
        Refused: 404, no item of this reader; 409, of a task that has been ended or has not begun.
    """
    entry = next((entry for entry in progress.entries if entry.id == showing), None)
    if entry is None:
        raise Refused(404, "no such item; go on from the first page")
    if entry.task in progress.ended:
        raise Refused(409, "the task of this item has been ended; its answers are final")
    if entry.task != progress.current:
        raise Refused(409, "the task of this item has not begun; end the current one first")
    return entry


def shown_of(session: Session, entry: Entry) -> dict[str, str]:
    """What an item shows: a picture's file or a report's text by part."""
    return session.get_one(ItemRow, session.get_one(ShowingRow, entry.id).item_id).shown


def note_showing(session: Session, entry: Entry) -> None:
    """Note the time at which an item without an answer is shown."""
    showing = session.get_one(ShowingRow, entry.id)
    if entry.score is None:
        showing.shown_at, showing.times_shown = now(), showing.times_shown + 1


def answer(session: Session, task: Task, entry: Entry, score: int, guess: str | None) -> None:
    """Store an answer, or the revision of one; the same answer again changes nothing.

    Raises:
        Refused: 422, a score out of range, or a guess that is missing, unknown or not asked for; 409, the item has not
            been shown.
    """
    if score not in task.scores:
        raise Refused(422, f"score {score}: expected {task.low} to {task.high}")
    if task.turing and guess not in GUESSES:
        raise Refused(422, f"guess {guess!r:.20}: expected real or synthetic")
    if not task.turing and guess is not None:
        raise Refused(422, "a guess was not asked for in this task")
    if session.get_one(ShowingRow, entry.id).shown_at is None:
        raise Refused(409, "this item has not been shown; open its page first")
    row, time = session.get(AnswerRow, entry.id), now()
    if row is None:
        session.add(AnswerRow(showing_id=entry.id, score=score, guess=guess, first_at=time, answered_at=time))
    elif (row.score, row.guess) != (score, guess):
        row.score, row.guess, row.answered_at, row.revisions = score, guess, time, row.revisions + 1


def end(session: Session, reader: ReaderRow, progress: Progress, task: int) -> None:
    """End the current task: from now on its answers are final. To end one again changes nothing.

    Raises:
        Refused: 409, another task than the current one, or items have no answer.
    """
    if task in progress.ended:
        return
    if task != progress.current:
        raise Refused(409, "this task is not the current one")
    missing = len(progress.items) - progress.answered
    if missing:
        raise Refused(409, f"{missing} items of this task have no answer")
    session.add(EndRow(reader_id=reader.id, task=task, at=now()))
