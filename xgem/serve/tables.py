"""What the server keeps: requests with their state, workers, and tokens of users."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MIGRATIONS: Final = Path(__file__).parent / "migrations"

QUEUED: Final = "queued"
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
STATES: Final = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
ENDED: Final = (DONE, FAILED, CANCELLED)


class Base(DeclarativeBase):
    """Of all tables of the server."""

    metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})


class Token(Base):
    """A user, who shows a token of which the hash is kept; names are unique among tokens that are not revoked."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[float] = mapped_column(Float)
    revoked: Mapped[bool] = mapped_column(Boolean, default=False)


class Worker(Base):
    """A process that generates; it counts as gone when its ``heartbeat`` is old."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    device: Mapped[str] = mapped_column(String(30))
    host: Mapped[str] = mapped_column(String(200))
    pid: Mapped[int] = mapped_column(Integer)
    heartbeat: Mapped[float] = mapped_column(Float)
    models: Mapped[list[str]] = mapped_column(JSON)


class Job(Base):
    """One request, from its acceptance on. Times are seconds since the epoch.

    ``number`` is its place in the order of acceptance. Requests of one ``shape`` can be generated in one batch.
    ``request`` is what the API shows: inputs (origin, and text of those that are text), outputs, options, model.
    ``stored``: inputs and images to start from, as values or as names of files in the request's folder.
    ``watched``: when somebody last looked at its progress, so that previews are worth making.
    """

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "state", "number"), Index(None, "owner", "number"))

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    owner: Mapped[int | None] = mapped_column(ForeignKey("tokens.id"))
    state: Mapped[str] = mapped_column(String(10))
    shape: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(200))
    seed: Mapped[int] = mapped_column(BigInteger)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    stored: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Float)
    started: Mapped[float | None] = mapped_column(Float)
    ended: Mapped[float | None] = mapped_column(Float)
    worker: Mapped[str | None] = mapped_column(String(32))
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    output: Mapped[str] = mapped_column(String(60), default="")
    step: Mapped[int] = mapped_column(Integer, default=0)
    steps: Mapped[int] = mapped_column(Integer, default=0)
    watched: Mapped[float] = mapped_column(Float, default=0.0)
    error: Mapped[str | None] = mapped_column(Text)
