"""A reader study on the disk: its folder of pictures, its database, and the readers' links.

What tells real from synthetic stands in the database alone. Pictures have random names, and each showing of an item has
an id of its own, so that nothing can be compared between readers.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from xgem._version import __version__
from xgem.readers.blinding import as_png, blind_picture, common_size, has_margin, plain_report, tells
from xgem.readers.draw import Drawn, draw
from xgem.readers.plan import StudyPlan
from xgem.readers.tables import MIGRATIONS, ItemRow, ReaderRow, ShowingRow, StudyRow, now
from xgem.readers.task import PICTURES
from xgem.types import DataError, InputError
from xgem.utils.files import new_folder, one_line, write_json
from xgem.utils.progress import track
from xgem.web.database import open_database, sqlite_url
from xgem.web.tokens import token_hash

logger = logging.getLogger(__name__)
RECORD: Final = "study.json"
DATABASE: Final = "study.db"
FOLDER_OF_PICTURES: Final = "pictures"


@dataclass(frozen=True)
class Study:
    """An opened study; ``size`` is the side of its pictures, None without any."""

    id: str
    folder: Path
    engine: Engine
    plan: StudyPlan
    size: int | None

    @property
    def pictures(self) -> Path:
        return self.folder / FOLDER_OF_PICTURES


@dataclass(frozen=True)
class Built:
    """What a new study holds: items by task and arm, and the side of its pictures."""

    items: dict[tuple[str, str], int]
    size: int | None


def build(plan: StudyPlan, out: Path, database: str | None = None) -> Built:
    """Draw the items, write their pictures into ``out``, and fill the database (in ``out``, or at a URL).

    Raises:
        InputError: too few cases, or a picture smaller than the stated size. DataError: a set or the database cannot
            be used. ImageError: an image cannot be read. OutputError: the folder is not empty or cannot be written.
    """
    with new_folder(out) as folder:
        drawn = draw(plan)
        random.SystemRandom().shuffle(drawn)  # neither times of files nor numbers of rows follow the arms
        size, shown = _write(plan, drawn, folder / FOLDER_OF_PICTURES)
        study = secrets.token_hex(16)
        write_json(folder / RECORD, {"study": study, "name": plan.name, "xgem": __version__})
        engine = open_database(database or sqlite_url(folder / DATABASE), MIGRATIONS)
        try:
            with Session(engine) as session, session.begin():
                _fill(session, study, plan, size, drawn, shown)
        finally:
            engine.dispose()
    tasks = plan.all_tasks
    counts = Counter((tasks[one.task].name, one.arm) for one in drawn)
    return Built({(task.name, arm): counts[task.name, arm] for task in tasks for arm in task.arms}, size)


def _write(plan: StudyPlan, drawn: Sequence[Drawn], folder: Path) -> tuple[int | None, list[dict[str, str]]]:
    """The pictures' side, and what each item shows: names of the written pictures, and texts."""
    folder.mkdir()
    pictures = [one.parts[part] for one in drawn for part in one.parts if part in PICTURES]
    size = common_size(pictures, plan.fit, plan.size) if pictures else None
    shown: list[dict[str, str]] = []
    lengths: set[int] = set()
    margins: dict[tuple[str, str], list[bool]] = defaultdict(list)
    words: dict[str, list[int]] = defaultdict(list)
    tasks = plan.all_tasks
    for one in track(drawn, "pictures"):
        parts: dict[str, str] = {}
        for part, item in one.parts.items():
            if part not in PICTURES:
                parts[part] = plain_report(item.report)
                if part in tasks[one.task].judged:
                    words[one.arm].append(len(parts[part].split()))
                continue
            assert size is not None
            picture = blind_picture(item, plan.fit, size)
            if part in tasks[one.task].judged:
                margins[part, one.arm].append(has_margin(picture))
            data = as_png(picture)
            lengths.add(len(data))
            parts[part] = f"{secrets.token_hex(16)}.png"
            (folder / parts[part]).write_bytes(data)
        shown.append(parts)
    if len(lengths) > 1:
        raise DataError(f"pictures of {min(lengths)} to {max(lengths)} bytes: this Pillow compresses; use another one")
    for line in tells(margins, words):
        logger.warning("%s", line)
    return size, shown


def _fill(
    session: Session,
    study: str,
    plan: StudyPlan,
    size: int | None,
    drawn: Sequence[Drawn],
    shown: Sequence[dict[str, str]],
) -> None:
    kept = plan.resolved.model_dump(mode="json")
    session.add(StudyRow(id=study, name=plan.name, plan=kept, size=size, created_at=now()))
    session.flush()
    items = [
        ItemRow(study_id=study, task=one.task, arm=one.arm, case=one.case, shown=parts)
        for one, parts in zip(drawn, shown, strict=True)
    ]
    readers = [ReaderRow(study_id=study, name=name) for name in plan.readers]
    session.add_all([*items, *readers])
    session.flush()
    # The order is a function of the seed, the reader and the item, not of the rows, which were shuffled
    keys = [f"{one.task}/{one.arm}/{one.case}" for one in drawn]
    for reader in readers:
        tasks = list(range(len(plan.all_tasks)))
        random.Random(f"{plan.seed}/{reader.name}").shuffle(tasks)
        ranks = {task: rank for rank, task in enumerate(tasks)}
        order = sorted(range(len(items)), key=lambda k: keys[k])
        random.Random(f"{plan.seed}/{reader.name}/items").shuffle(order)
        order.sort(key=lambda k: ranks[drawn[k].task])
        session.add_all(
            ShowingRow(id=secrets.token_hex(16), reader_id=reader.id, item_id=items[k].id, place=place)
            for place, k in enumerate(order)
        )


def open_study(folder: Path, database: str | None = None) -> Study:
    """A study that ``xgem readers new`` made, with the database it was made with.

    Raises:
        InputError: no study there, or its database is not this one. DataError: the database cannot be opened.
    """
    try:
        record: Any = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        identity = str(record["study"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no reader study ({one_line(error)}); expected a folder of xgem readers new"
        ) from None
    if database is None and not (folder / DATABASE).is_file():
        raise InputError(f"{folder}: holds no database; name the one it was made with (--database)")
    engine = open_database(database or sqlite_url(folder / DATABASE), MIGRATIONS)
    with Session(engine) as session:
        row = session.get(StudyRow, identity)
        if row is None:
            engine.dispose()
            raise InputError(f"{folder}: its study is not in this database; name the one it was made with (--database)")
        return Study(identity, folder, engine, StudyPlan.parse(row.plan, f"{folder}: plan"), row.size)


def new_links(study: Study, readers: Sequence[str] = ()) -> dict[str, str]:
    """A new token for every reader, or for those named; earlier ones no longer work. Only hashes are stored.

    Raises:
        InputError: no reader of this name.
    """
    unknown = [name for name in readers if name not in study.plan.readers]
    if unknown:
        raise InputError(f"no reader {unknown[0]!r}: expected one of {', '.join(study.plan.readers)}")
    tokens = {name: secrets.token_urlsafe(32) for name in readers or study.plan.readers}
    with Session(study.engine) as session, session.begin():
        for row in session.scalars(select(ReaderRow).where(ReaderRow.study_id == study.id)):
            if row.name in tokens:
                row.token_sha256 = token_hash(tokens[row.name])
    return tokens
