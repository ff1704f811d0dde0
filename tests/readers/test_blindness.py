"""Nothing but what is shown tells real from synthetic.

A classifier learns from everything around the pictures: lengths, headers of files and answers, chunks, times,
addresses, the text of pages. It cannot tell the arms apart, and finds leaks that are planted. Real textures hardly
compress, synthetic ones do.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session

from tests.readers.conftest import a_plan, write_set
from xgem.readers import study as studies
from xgem.readers.server import reader_app
from xgem.readers.study import Study, build, new_links, open_study
from xgem.readers.tables import ItemRow, ReaderRow, ShowingRow
from xgem.types import DataError

# Of a feature that parts the arms wholly, and of one that a fold does not vary in
pytestmark = [
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Features .* are constant:UserWarning"),
]

CASES = 40
FILE_HEADER = 48
"""Bytes of a stored PNG before the first row of pixels."""
FAR = 4.5
"""Standard deviations of the permuted AUC: a blind study lies farther from it in one of 100,000 runs."""
FOUND = 0.85
"""The AUC from which on arms count as told apart."""
TASK = {"name": "t", "title": "T", "question": "?", "shows": ["frontal"], "items": CASES, "paired": True}


class Seen(NamedTuple):
    """What a reader's browser gets of every item (n, features), which arm it is of, and its case."""

    features: NDArray[np.float64]
    real: NDArray[np.bool_]
    cases: NDArray[np.int64]


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("textures")
    return {name: write_set(root / name, real=name == "real", cases=CASES) for name in ("real", "mine")}


@pytest.fixture
def blind(tmp_path: Path, textures: dict[str, Path], plan_file: Callable[..., Path]) -> Study:
    """As many real as synthetic frontals of the same cases."""
    sets = {"real": str(textures["real"]), "generated": {"mine": str(textures["mine"])}}
    build(a_plan(plan_file, protocol=None, items=None, tasks=[TASK], **sets), tmp_path / "study")
    return open_study(tmp_path / "study")


def chunks(png: bytes) -> list[tuple[bytes, int]]:
    """Type and length of each chunk."""
    found, place = [], 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        found.append((png[place + 4 : place + 8], length))
        place += 12 + length
    return found


def look(study: Study) -> Seen:
    """Everything that one reader's browser gets, item by item."""
    from sklearn.feature_extraction.text import HashingVectorizer

    client = TestClient(reader_app(study))
    client.get(f"/r/{new_links(study)['anna']}")
    with Session(study.engine) as session:
        query = select(ShowingRow.id, ItemRow.arm, ItemRow.case).join(ItemRow).join(ReaderRow)
        rows = session.execute(query.where(ReaderRow.name == "anna").order_by(ShowingRow.place)).all()
    numbers: list[list[float]] = []
    texts: list[str] = []
    for showing, _, _ in rows:
        times = [time.perf_counter()]
        page = client.get(f"/items/{showing}")
        times.append(time.perf_counter())
        picture = client.get(f"/items/{showing}/frontal")
        times.append(time.perf_counter())
        assert (page.status_code, picture.status_code) == (200, 200)
        parts = chunks(picture.content)
        layout = zlib.crc32(repr([name for name, _ in parts]).encode())
        headers = [zlib.crc32(repr(sorted(one.headers.items())).encode()) for one in (page, picture)]
        numbers.append(
            [
                *np.diff(times).tolist(),
                len(page.content),
                len(picture.content),
                len(parts),
                layout,
                *(sum(length for name, length in parts if name == kind) for kind in (b"IDAT", b"tEXt", b"pHYs")),
                *headers,
                *picture.content[:FILE_HEADER],
                *showing.encode(),
            ]
        )
        texts.append(page.text)
    grams: Any = HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=128).transform(texts)
    place = np.arange(len(rows))[:, None]  # the order of items, as their numbers tell it
    features = np.hstack([np.array(numbers, dtype=np.float64), grams.toarray(), place])
    cases = np.unique([case for *_, case in rows], return_inverse=True)[1].astype(np.int64)
    return Seen(features.astype(np.float64), np.array([arm == "real" for _, arm, _ in rows]), cases)


def distance(seen: Seen) -> tuple[float, float]:
    """The cross-validated AUC, and how many standard deviations it lies above that of permuted arms."""
    from sklearn.feature_selection import SelectKBest, VarianceThreshold, f_classif
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GroupKFold, permutation_test_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chosen = SelectKBest(f_classif, k=8)
    classifier = make_pipeline(VarianceThreshold(), chosen, StandardScaler(), RidgeClassifier())
    score, permuted, _ = permutation_test_score(
        classifier, seen.features, seen.real, groups=seen.cases, cv=GroupKFold(4), scoring="roc_auc",
        n_permutations=40, random_state=0,
    )  # fmt: skip
    assert permuted.std() > 0
    return float(score), float((score - permuted.mean()) / permuted.std(ddof=1))


def test_arms_cannot_be_told_apart(blind: Study) -> None:
    seen = look(blind)
    assert seen.real.sum() == CASES == (~seen.real).sum()
    auc, far = distance(seen)
    assert abs(far) < FAR, f"AUC {auc:.2f}"
    assert auc < FOUND


def compress(study: Study) -> None:
    """Each picture in a file as long as it needs."""
    for file in study.pictures.iterdir():
        with Image.open(file) as image:
            image.save(file, format="PNG", compress_level=6)


def rename(study: Study) -> None:
    """Ids of real items' showings begin with another character."""
    with Session(study.engine) as session, session.begin():
        for row, arm in session.execute(select(ShowingRow, ItemRow.arm).join(ItemRow)):
            row.id = ("7" if arm == "real" else "x") + row.id[1:]


def reorder(study: Study) -> None:
    """All real items come first."""
    with Session(study.engine) as session, session.begin():
        query = select(ShowingRow, ItemRow.arm).join(ItemRow).join(ReaderRow).where(ReaderRow.name == "anna")
        rows = session.execute(query).all()
        for row, _ in rows:
            row.place += 1000
        session.flush()
        for place, (row, _) in enumerate(sorted(rows, key=lambda pair: pair[1], reverse=True)):
            row.place = place


@pytest.mark.parametrize("leak", [compress, rename, reorder])
def test_planted_leak_is_found(blind: Study, leak: Callable[[Study], None]) -> None:
    leak(blind)
    auc, _ = distance(look(blind))
    assert auc > FOUND


def test_answers_name_no_file_and_no_time_of_one(blind: Study) -> None:
    client = TestClient(reader_app(blind))
    client.get(f"/r/{new_links(blind)['anna']}")
    with Session(blind.engine) as session:
        query = select(ShowingRow.id).join(ReaderRow).where(ReaderRow.name == "anna")
        showing = session.scalars(query).first()
    pages = [client.get("/").text, client.get(f"/items/{showing}").text]
    for text in pages:
        assert not any(word in text for word in (".png", "mine", "metadata", "real"))
    headers = client.get(f"/items/{showing}/frontal").headers
    assert {"etag", "last-modified", "content-disposition", "content-encoding"}.isdisjoint(headers)


def test_arm_is_loaded_only_where_it_is_asked_for(blind: Study) -> None:
    from sqlalchemy.exc import InvalidRequestError

    with Session(blind.engine) as session:
        item = session.scalars(select(ItemRow)).first()
        assert item is not None
        with pytest.raises(InvalidRequestError):
            _ = item.arm


def test_pictures_of_several_lengths_are_never_written(
    plan_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = iter(range(100, 1000))

    monkeypatch.setattr(studies, "as_png", lambda picture: bytes(next(lengths)))
    with pytest.raises(DataError, match="pictures of 100 to"):
        build(a_plan(plan_file), tmp_path / "study")
    assert not (tmp_path / "study").exists()
