"""The tables of reader studies; :mod:`xgem.readers.migrations` makes them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import JSON, DateTime, ForeignKey, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MIGRATIONS: Final = Path(__file__).parent / "migrations"
VERSION_TABLE: Final = "readers_version"


class Base(DeclarativeBase):
    """What all tables have in common: names of constraints, which migrations need."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class StudyRow(Base):
    """A study: its plan as JSON (:class:`xgem.readers.plan.StudyPlan`), and the side of its pictures in pixels."""

    __tablename__ = "readers_study"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(60))
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)
    size: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class ReaderRow(Base):
    """A reader, with the SHA-256 of the token of the link; None before the first link."""

    __tablename__ = "readers_reader"
    __table_args__ = (UniqueConstraint("study_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("readers_study.id"))
    name: Mapped[str] = mapped_column(String(60))
    token_sha256: Mapped[str | None] = mapped_column(String(64), unique=True)


class ItemRow(Base):
    """An item: the number of its task, its arm and case, and what is shown.

    ``shown`` maps a part to the name of a picture's file, or to the text of a report. ``arm`` and ``case`` are what
    readers must not learn: they are loaded only where they are asked for by name.
    """

    __tablename__ = "readers_item"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("readers_study.id"), index=True)
    task: Mapped[int]
    shown: Mapped[dict[str, str]] = mapped_column(JSON)
    arm: Mapped[str] = mapped_column(String(60), deferred=True, deferred_raiseload=True)
    case: Mapped[str] = mapped_column(Text, deferred=True, deferred_raiseload=True)


class ShowingRow(Base):
    """An item as one reader gets it: its random id in addresses, and its place in this reader's order.

    ``shown_at`` is when its page was last sent before the first answer, ``times_shown`` how often until then.
    """

    __tablename__ = "readers_showing"
    __table_args__ = (UniqueConstraint("reader_id", "item_id"), UniqueConstraint("reader_id", "place"))
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    reader_id: Mapped[int] = mapped_column(ForeignKey("readers_reader.id"))
    item_id: Mapped[int] = mapped_column(ForeignKey("readers_item.id"))
    place: Mapped[int]
    shown_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    times_shown: Mapped[int] = mapped_column(default=0)


class AnswerRow(Base):
    """The answer to a showing; ``revisions`` counts how often it was changed after the first time."""

    __tablename__ = "readers_answer"
    showing_id: Mapped[str] = mapped_column(ForeignKey("readers_showing.id"), primary_key=True)
    score: Mapped[int]
    guess: Mapped[str | None] = mapped_column(String(9))
    first_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    answered_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    revisions: Mapped[int] = mapped_column(default=0)


class EndRow(Base):
    """A task that a reader has ended; its answers are final."""

    __tablename__ = "readers_end"
    reader_id: Mapped[int] = mapped_column(ForeignKey("readers_reader.id"), primary_key=True)
    task: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


def now() -> datetime:
    """The server's clock, in UTC."""
    return datetime.now(UTC)
