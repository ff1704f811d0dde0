"""Hashes of files' contents, kept by path, size and time of the last change: what did not change is not read again."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from xgem.types import DataError
from xgem.utils.files import locked
from xgem.utils.hashing import file_digest, in_threads
from xgem.utils.progress import showing, track

logger = logging.getLogger(__name__)

_FILES = 4096  # looked up, and written down, together
_SETTLED = 2 * 10**9  # ns: a file may change again within the clock tick of its last change
_TABLE = (
    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 BLOB) "
    "WITHOUT ROWID"
)


class FileHashes:
    """SHA-256 of files in the SQLite file ``place``, which is made where it is missing and serves several processes.

    As git's index does, it takes a file of the same path, size and time to have the same contents; one that had changed
    less than two seconds before it was read is read again the next time.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def content_hash(self, paths: Iterable[str]) -> str:
        """As :func:`xgem.utils.hashing.content_hash`, of names that are not held in memory.

        Raises:
            DataError: a file is missing or cannot be read.
        """
        total = hashlib.sha256()
        for digest in track(self._digests(iter(paths)), "hashing files"):
            total.update(digest)
        return total.hexdigest()

    def _digests(self, paths: Iterator[str]) -> Iterator[bytes]:
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            kept = sqlite3.connect(self.place, timeout=60)
        except (OSError, sqlite3.Error) as error:
            kept = self._without(error)
        try:
            while some := list(islice(paths, _FILES)):
                try:
                    found = self._of_files(kept, some)
                except sqlite3.Error as error:
                    kept.close()
                    kept = self._without(error)
                    found = self._of_files(kept, some)
                yield from found
        finally:
            kept.close()

    def _without(self, error: Exception) -> sqlite3.Connection:
        logger.warning("cache: %s cannot be used (%s); reading all files: delete it if damaged", self.place, error)
        return sqlite3.connect(":memory:")

    def _of_files(self, kept: sqlite3.Connection, paths: Sequence[str]) -> list[bytes]:
        """SHA-256 of each file; those that ``kept`` does not have are read by one process, and written into it."""
        stated = [_stated(path) for path in paths]
        with kept:
            kept.execute(_TABLE)
        found = _looked_up(kept, stated)
        if len(found) < len(set(stated)):
            with locked(self.place.with_name(f".{self.place.name}.lock"), create=True):
                found |= _looked_up(kept, [one for one in stated if one not in found])
                unknown = [one for one in dict.fromkeys(stated) if one not in found]
                before = time.time_ns() - _SETTLED
                with showing(False):
                    digests = in_threads(file_digest, [os.fsdecode(path) for path, *_ in unknown], "")
                found |= zip(unknown, digests, strict=True)
                with kept:
                    settled = [(*one, found[one]) for one in unknown if one[2] < before]
                    kept.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", settled)
        return [found[one] for one in stated]


_Stated = tuple[bytes, int, int]
"""Path, size and time of the last change (ns) of a file."""


def _looked_up(kept: sqlite3.Connection, files: Iterable[_Stated]) -> dict[_Stated, bytes]:
    query = "SELECT sha256 FROM files WHERE path = ? AND size = ? AND mtime_ns = ?"
    rows = ((one, kept.execute(query, one).fetchone()) for one in files)
    return {one: row[0] for one, row in rows if row is not None}


def _stated(path: str) -> _Stated:
    try:
        found = os.stat(path)  # noqa: PTH116 -- making millions of paths takes minutes
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run `xgem data check`") from error
    return os.fsencode(path), found.st_size, found.st_mtime_ns
