"""Answers by what was asked, in one SQLite file: several threads and processes may use it, and be killed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from xgem.types import OutputError
from xgem.utils.files import one_line

T = TypeVar("T")
FILE: Final = "answers.sqlite"
_WAIT: Final = 60.0  # seconds for another process's write
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, input_tokens INTEGER NOT NULL,"
    " output_tokens INTEGER NOT NULL) WITHOUT ROWID"
)


class Kept(NamedTuple):
    """An answer as it came, and the tokens that it took."""

    text: str
    input_tokens: int
    output_tokens: int


class AnswerCache:
    """The file ``answers.sqlite`` in a folder, which is made where it is missing.

    Raises:
        OutputError: on opening, reading and writing: the file is no such cache, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another cache") from error
        self._file = self._checked(lambda: sqlite3.connect(self.file, timeout=_WAIT, check_same_thread=False))
        self._checked(lambda: self._write(_TABLE))

    def get(self, key: str) -> Kept | None:
        """What was kept under a key."""
        query = "SELECT text, input_tokens, output_tokens FROM answers WHERE key = ?"
        row = self._checked(lambda: self._file.execute(query, (key,)).fetchone())
        return None if row is None else Kept(*row)

    def put(self, key: str, answer: Kept) -> None:
        """Keep an answer."""
        self._checked(lambda: self._write("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", key, *answer))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, statement: str, *values: str | int) -> None:
        with self._file:
            self._file.execute(statement, values)

    def _checked(self, work: Callable[[], T]) -> T:
        try:
            with self._lock:
                return work()
        except sqlite3.Error as error:
            raise OutputError(f"{self.file}: {one_line(error)}; choose another cache or remove the file") from error
