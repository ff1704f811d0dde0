"""Opening a database: migrated once, whoever opens it first; and what cannot be opened is one line."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from xgem.serve.tables import MIGRATIONS, Base
from xgem.types import DataError, InputError
from xgem.web.database import open_database, sqlite_url


def test_several_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "new" / "x.sqlite")
    failed: list[BaseException] = []

    def opens() -> None:
        try:
            open_database(url, MIGRATIONS)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=opens) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    engine = open_database(url, MIGRATIONS)
    assert set(Base.metadata.tables) < set(inspect(engine).get_table_names())
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "x.sqlite")
    engine = open_database(url, MIGRATIONS)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DataError, match="a later xgem has written it"):
        open_database(url, MIGRATIONS)


@pytest.mark.parametrize(
    "url", ["", "nonsense", "oracle://x/y", "sqlite:///{folder}", "postgresql://a:secret@127.0.0.1:1/b"]
)
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises((InputError, DataError), match=r"^database ") as raised:
        open_database(url.format(folder=tmp_path), MIGRATIONS)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)
