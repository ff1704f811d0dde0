"""How a server is set up, and where it keeps what."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xgem.types import InputError
from xgem.web.database import sqlite_url

MIB: Final = 2**20
CUT_OFF_S: Final = 3600
"""Files without a request are what a crash left, if they are so old."""
_IDENTIFIER: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Settings:
    """Of a server and its workers.

    Attributes:
        folder: all files are in it: the database (without a ``database`` of its own), inputs, results, previews.
        database: URL of the database; None: SQLite in the folder.
        models: the checkpoints that can be asked for: embedded names, folders or hub ids; the first is the default
            where the inputs do not decide.
        batch_size: requests of one shape that are generated together.
        most_samples: the highest ``num_samples`` times ``num_candidates`` of a request.
        upload_mib: the longest request, in MiB.
        read_mib, read_seconds: what reading the inputs of one request may take; more is refused.
        dtype: number format of the workers.
        privacy_gate: manifest, folder or index of training images, for a gate on every request.
    """

    folder: Path
    database: str | None = None
    models: tuple[str, ...] = ("openi-256", "chexgen-small")
    batch_size: int = 8
    most_samples: int = 16
    upload_mib: int = 64
    read_mib: int = 1024
    read_seconds: float = 30
    dtype: str | None = None
    privacy_gate: Path | None = None

    @property
    def database_url(self) -> str:
        """URL of the database."""
        return self.database or sqlite_url(self.folder / "xgem.sqlite")

    def inputs(self, identifier: str) -> Path:
        """The folder of a request's inputs."""
        return self._place("inputs", identifier)

    def results(self, identifier: str) -> Path:
        """The folder of a finished request's results, a folder per format."""
        return self._place("results", identifier)

    def previews(self, identifier: str) -> Path:
        """The folder of a running request's previews."""
        return self._place("previews", identifier)

    def partial(self, worker: str) -> Path:
        """The folder in which a worker writes results before they are complete."""
        return self._place("partial", worker)

    def remove(self, identifier: str) -> None:
        """Delete all files of a request."""
        for folder in (self.inputs(identifier), self.results(identifier), self.previews(identifier)):
            shutil.rmtree(folder, ignore_errors=True)

    def tidy(self, known: Iterable[str]) -> None:
        """Delete old files of requests that are not known: what a crash cut off. New ones may be just arriving."""
        kept, old = set(known), time.time() - CUT_OFF_S
        for kind in ("inputs", "results", "previews", "partial"):
            for folder in (self.folder / kind).glob("*"):
                if folder.name not in kept and folder.stat().st_mtime < old:
                    shutil.rmtree(folder, ignore_errors=True)

    def _place(self, kind: str, identifier: str) -> Path:
        # Whatever comes from a URL ends here: nothing but our own ids becomes a path.
        if not _IDENTIFIER.fullmatch(identifier):
            raise InputError(f"id {identifier[:40]!r}: expected 32 hexadecimal digits")
        return self.folder / kind / identifier
