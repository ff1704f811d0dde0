"""The folder that a cohort is made in: what lies there whole, and how it gets there.

::

    images/ reports/ masks/             the items' files, named by number
    .cohort/begun.json                  plan, checkpoint, device, versions: what every process must agree with
    .cohort/batches/<batch>.json        files of a finished batch with their hashes; written last, so it is what counts
    .cohort/parts/<batch>/              files of a batch that is being made; nothing in it counts

A batch's files are written in ``parts`` and renamed into place, then its record is. Whatever moment a process is killed
at, a batch whose record does not list these very files is made again, from the same seeds in the same company.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgem.cohort.items import Batch
from xgem.types import OutputError
from xgem.utils.files import check_output_folder, file_sha256, locked, write_json

STATE = ".cohort"
FINAL = ("cohort.json", "manifest.parquet", "metadata.csv", "dataset.json")
"""The files of a finished cohort; the first is written last."""
OLD_IMAGES = "pictures"
"""Folder of images in cohorts that 0.1.0 started; they go on in it."""
KINDS = ("images", OLD_IMAGES, "reports", "masks")
_ITEM_FILE = re.compile(r"\d{8}[-.]")


@dataclass(frozen=True)
class Made:
    """What was made of one item: files by output (paths within the folder), and annotations that they follow."""

    index: int
    files: Mapping[str, str]
    masks: Mapping[str, str]
    boxes: Sequence[Mapping[str, Any]]


class Folder:
    """A cohort's folder. Every method raises ``OutputError`` where it cannot be written or read."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.state = self.root / STATE
        self._lock: int | None = None

    @property
    def images(self) -> str:
        """Name of the folder that images are written in."""
        return OLD_IMAGES if (self.root / OLD_IMAGES).is_dir() else "images"

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """What the system refuses (no space, no permission) as an ``OutputError`` of one line."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.root}: cannot be written ({error.strerror or error})") from error

    def begun(self) -> dict[str, Any] | None:
        """What the cohort here was begun with, None where there is none."""
        try:
            return json.loads((self.state / "begun.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.root}: its {STATE}/begun.json cannot be read ({error})") from error

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Start a cohort here, or go on with the one that was begun with the same ``settings`` and no higher count.

        Raises:
            OutputError: the folder holds something else, or a cohort of other settings; says which.
        """
        with self.guarded():
            # Processes may start together: what one of them has made so far is no stranger to the others.
            strangers = not self.root.is_dir() or {path.name for path in self.root.iterdir()} - {STATE}
            if self.root.exists() and strangers and self.begun() is None:
                check_output_folder(self.root)
            for name in ("batches", "parts"):
                (self.state / name).mkdir(parents=True, exist_ok=True)
            with locked(self.root):
                old = self.begun()
                if old is not None:
                    self._compare(old, settings)
                if old is None or old["count"] < settings["count"]:
                    for name in FINAL:
                        (self.root / name).unlink(missing_ok=True)
                    self.write_json(f"{STATE}/begun.json", settings)

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        for name, value in new.items():
            if name == "count":
                if old["count"] > value:
                    raise OutputError(
                        f"{self.root}: was begun with count {old['count']}, the plan has {value}; a count may only "
                        "grow, so choose another folder"
                    )
            elif old.get(name) != value:
                shown = "with another plan" if name == "plan" else f"with {name} {old.get(name)}, this is {value}"
                raise OutputError(
                    f"{self.root}: was begun {shown}; items would not be of one kind, so choose another folder"
                )

    def record(self, batch: Batch, *, verify: bool = True) -> list[Made] | None:
        """What a batch made, None unless these items are all here; ``verify`` compares every file with its hash."""
        try:
            record = json.loads((self.state / "batches" / f"{batch.name}.json").read_text(encoding="utf-8"))
            if record["items"] != list(batch.indices):
                return None
            if verify and any(file_sha256(self.root / name) != digest for name, digest in record["files"].items()):
                return None
            return [Made(**made) for made in record["made"]]
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
            return None
        except OSError as error:
            raise OutputError(f"{self.root}: cannot be read ({error.strerror or error})") from error

    @contextlib.contextmanager
    def taking(self, batch: Batch) -> Iterator[bool]:
        """Whether the batch is this process's to make. The lock goes with the process, however that ends."""
        try:
            import fcntl
        except ImportError:  # no such locks on Windows: no two processes may then be given the same shard
            yield True
            return
        with self.guarded():
            if self._lock is None:
                self._lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        offset = (batch.kind << 40) + batch.number
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError:  # some network file systems have no locks
            yield True
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, offset)

    @contextlib.contextmanager
    def part(self, batch: Batch) -> Iterator[Path]:
        """An empty place to make a batch's files in, with folders as in the cohort's own."""
        place = self.state / "parts" / batch.name
        with self.guarded():
            shutil.rmtree(place, ignore_errors=True)
            for name in KINDS:
                (place / name).mkdir(parents=True)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def keep(self, batch: Batch, place: Path, made: Sequence[Made]) -> None:
        """Move a batch's finished files from ``place`` to where they belong, then record them."""
        with self.guarded():
            names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
            files = {name: file_sha256(place / name) for name in names}
            for name in names:
                (self.root / name).parent.mkdir(exist_ok=True)
                (place / name).replace(self.root / name)
            record = {"items": list(batch.indices), "files": files, "made": [vars(one) for one in made]}
            self.write_json(f"{STATE}/batches/{batch.name}.json", record)

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file of the cohort in one piece."""
        with self.writing(name) as partial:
            write_json(partial, values)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A place to write the file ``name`` at; it gets its name at the end."""
        partial = self.state / "parts" / f"{Path(name).name}.{os.getpid()}"
        with self.guarded():
            try:
                yield partial
                partial.replace(self.root / name)
            finally:
                partial.unlink(missing_ok=True)

    def tidy(self, batches: Sequence[Batch]) -> None:
        """Remove what killed processes left: unfinished parts, and files of items that no record lists."""
        with self.guarded():
            for left in (self.state / "parts").iterdir():
                # Another process, whose batch is recorded already, may remove its own at this moment
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
            for left in self.root.glob(".*.part"):
                left.unlink(missing_ok=True)
            known: set[str] = set()
            for batch in batches:
                record = json.loads((self.state / "batches" / f"{batch.name}.json").read_text(encoding="utf-8"))
                known |= record["files"].keys()
            for kind in KINDS:
                for path in (self.root / kind).glob("*"):
                    if _ITEM_FILE.match(path.name) and f"{kind}/{path.name}" not in known:
                        path.unlink()
