"""The database behind a page: SQLite in a file, or PostgreSQL by its URL, brought up to date when it is opened."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from xgem.types import DataError, InputError
from xgem.utils.files import locked, one_line

BUSY_S = 30
"""How long a writer waits for another one."""


def sqlite_url(file: Path) -> str:
    """The URL of a database in a file."""
    return f"sqlite:///{file.absolute()}"


def open_database(url: str, migrations: Path) -> Engine:
    """An engine on the database at ``url``, after the ``migrations`` (a folder of alembic) that it lacks.

    Raises:
        InputError: a URL that cannot be used. DataError: the database cannot be opened or is of a later version.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, pool_pre_ping=True, **_options(parsed.get_backend_name()))
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        raise InputError(
            f"database {url[:60]!r}: {one_line(error)}; expected sqlite:///FILE or postgresql://USER@HOST/NAME (with "
            "the extra postgres)"
        ) from error
    shown = parsed.render_as_string(hide_password=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        _migrate(engine, migrations)
    except SQLAlchemyError as error:
        raise DataError(f"database {shown}: cannot be opened: {one_line(error)}") from error
    return engine


def _options(backend: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": BUSY_S}} if backend == "sqlite" else {}


def _prepare_sqlite(connection: Any, record: object) -> None:
    """Readers beside one writer, each answer on the disk before it is confirmed, and transactions that begin at once.

    The driver's own transactions begin at the first change, after which another writer may have changed what was read.
    """
    del record
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _migrate(engine: Engine, migrations: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    logging.getLogger("alembic").setLevel(logging.WARNING)
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    try:
        if file is None:
            _upgrade(engine, config, command)
            return
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(file).parent):
            _upgrade(engine, config, command)
    except CommandError as error:
        raise DataError(f"database {engine.url}: {one_line(error)}; a later xgem has written it, use that") from error


def _upgrade(engine: Engine, config: Any, command: Any) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(20251128)")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
