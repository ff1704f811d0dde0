"""Which rows show the same picture, which of them is kept, and which subjects are one patient.

Files that are equal come first. Of the rest, each picture's fingerprint is searched for among those of the others, in
all orientations, and what is near is laid over it (:mod:`xgem.curation.align`). Of the copies of a picture the one
is kept that needs no correction, has more annotations, is larger, and comes first in the plan, in this order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.curation.align import correlations
from xgem.curation.fingerprint import ORIENTATIONS, Projection, oriented, said
from xgem.curation.folder import Folder, in_order, read_table, write_table
from xgem.curation.listing import rows_of, splits_of, subjects_in_two_splits
from xgem.curation.neighbours import Index
from xgem.curation.plan import DuplicatesPlan
from xgem.types import DataError
from xgem.utils.files import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPLITS: Final = ("test", "val", "train")
"""In order of precedence: of a patient in two, all goes into the first, so that nothing measured was trained on."""
_AT_ONCE: Final = 128  # pairs that are laid over each other together


def build_index(folder: Folder) -> None:
    """Exact copies, and the fingerprints of one file of each, by cell."""
    index = folder.state / "index.npz"
    if index.exists():
        return
    first_of: dict[bytes, int] = {}
    same: list[dict[str, Any]] = []
    numbers: list[int] = []
    for seen in in_order(folder, "seen", ["number", "sha256", "drop"]):
        if seen["drop"]:
            continue
        first = first_of.setdefault(seen["sha256"], seen["number"])
        if first == seen["number"]:
            numbers.append(first)
        else:
            same.append({"first": first, "second": seen["number"], "distance": 0.0, "correlation": 1.0, "turn": 0})
    write_table(folder.state / "same.parquet", same, _pairs_schema())
    vectors = np.concatenate([_array(folder, part, "vectors") for part in range(folder.parts)])
    chosen = np.array(numbers, np.int64)
    Index.build(vectors[chosen], chosen).save(index)


def _pairs_schema() -> Any:
    import pyarrow as pa

    columns = [("first", pa.int64()), ("second", pa.int64()), ("distance", pa.float32()), ("correlation", pa.float32())]
    return pa.schema([*columns, ("turn", pa.int8())])


def _array(folder: Folder, part: int, name: str) -> NDArray[Any]:
    file = folder.file("seen", part, f"{name}.npy")
    try:
        return np.load(file, mmap_mode="r" if name == "thumbnails" else None)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({one_line(error)}); curate into a new folder") from error


@lru_cache(1)
def _index(file: Path) -> Index:
    return Index.load(file)


def pair_part(folder: Folder, plan: DuplicatesPlan, part: int) -> None:
    """Find copies of the pictures of a part among all, and write the pairs."""
    starts, index = folder.starts, _index(folder.state / "index.npz")
    own = np.intersect1d(np.arange(starts[part], starts[part + 1]), index.numbers)
    pairs: list[dict[str, Any]] = []
    if len(own):
        thumbnails = np.array(_array(folder, part, "thumbnails")[own - starts[part]])
        best: dict[tuple[int, int], tuple[float, int]] = {}
        project = Projection.load()
        for number in range(ORIENTATIONS if plan.turned else 1):
            if number % 4 == 3 and not number & 4:
                continue  # the other of the two finds it, turned by one quarter
            queries = project(oriented(thumbnails, number))
            for place, other, apart in zip(*index.near(queries, plan.distance), strict=True):
                pair = (int(place), int(other))
                if own[place] != other and apart < best.get(pair, (np.inf, 0))[0]:
                    best[pair] = (float(apart), number)
        pairs = _confirmed(folder, plan, own, thumbnails, best)
    write_table(folder.file("pairs", part), pairs, _pairs_schema())


def _confirmed(
    folder: Folder,
    plan: DuplicatesPlan,
    own: NDArray[np.int64],
    thumbnails: NDArray[np.int8],
    candidates: dict[tuple[int, int], tuple[float, int]],
) -> list[dict[str, Any]]:
    """The pairs of candidates that are one picture."""
    found: list[dict[str, Any]] = []
    listed = sorted(candidates.items(), key=lambda one: (one[0][1], one[0][0]))
    for start in range(0, len(listed), _AT_ONCE):
        some = listed[start : start + _AT_ONCE]
        theirs = _thumbnails(folder, [other for (_, other), _ in some])
        ours = np.stack([oriented(thumbnails[place][None], turn)[0] for (place, _), (_, turn) in some])
        for ((place, other), (apart, turn)), value in zip(some, correlations(theirs, ours).tolist(), strict=True):
            if value >= plan.correlation:
                one = {"first": other, "second": int(own[place]), "distance": apart, "correlation": value, "turn": turn}
                found.append(one)
    return found


def _thumbnails(folder: Folder, numbers: list[int]) -> NDArray[np.int8]:
    starts = np.array(folder.starts)
    parts = np.searchsorted(starts, numbers, side="right") - 1
    opened: dict[int, Any] = {}
    found: list[Any] = []
    for number, part in zip(numbers, parts.tolist(), strict=True):
        if part not in opened:
            opened = {part: _array(folder, part, "thumbnails")}
        found.append(np.array(opened[part][number - starts[part]]))
    return np.stack(found)


class _Groups:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def _first(self, one: str) -> str:
        path = [one]
        while (parent := self._parents.setdefault(path[-1], path[-1])) != path[-1]:
            path.append(parent)
        self._parents |= dict.fromkeys(path, path[-1])
        return path[-1]

    def join(self, one: str, other: str) -> None:
        """Put two names into one set."""
        first, second = sorted((self._first(one), self._first(other)))
        self._parents[second] = first

    def sets(self) -> list[list[str]]:
        """All sets, in order."""
        found: dict[str, list[str]] = defaultdict(list)
        for one in sorted(self._parents):
            found[self._first(one)].append(one)
        return [found[first] for first in sorted(found)]


def choose(folder: Folder) -> None:
    """Write which rows are copies of which, and which subjects change their split.

    In the order of preference a picture is kept unless it is a copy of one that is kept already: copies of copies are
    compared themselves.
    """
    if (folder.state / "splits.json").exists():
        return
    # Equal files are one picture
    groups: dict[int, list[int]] = defaultdict(list)
    for pair in read_table(folder.state / "same.parquet"):
        groups[pair["first"]].append(pair["second"])
    near: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
    for pair in _near_pairs(folder):
        ends = pair["first"], pair["second"]
        for one, other in (ends, ends[::-1]):
            if pair["correlation"] > near[one].get(other, {"correlation": -1})["correlation"]:
                near[one][other] = pair
    files = sorted({*groups, *near})
    ranks, rows = _looked_up(folder, {*files, *(number for group in groups.values() for number in group)})
    best = {one: min((one, *groups.get(one, ())), key=lambda number: ranks[number]) for one in files}
    copies: dict[int, dict[str, Any]] = {}
    kept = set[int]()
    for one in sorted(files, key=lambda one: ranks[best[one]]):
        found = [(-pair["correlation"], other) for other, pair in near.get(one, {}).items() if other in kept]
        of, pair = best[one], _SAME
        if found:
            of, pair = best[min(found)[1]], near[one][min(found)[1]]
        else:
            kept.add(one)
        for number in (one, *groups.get(one, ())):
            if number != of:
                values = {"distance": pair["distance"], "correlation": pair["correlation"]}
                copies[number] = {"number": number, "of": of, **values, "orientation": said(pair["turn"])}
    patients: _Groups = _Groups()
    for copy in copies.values():
        copy["study"] = rows[copy["of"]][0]
        patients.join(rows[copy["number"]][1], rows[copy["of"]][1])
    write_table(folder.state / "copies.parquet", [copies[number] for number in sorted(copies)], copies_schema())
    folder.write(folder.state / "splits.json", _moved(folder, patients))


_SAME: Final[dict[str, Any]] = {"distance": 0.0, "correlation": 1.0, "turn": 0}


def copies_schema() -> Any:
    """Columns of the table of copies."""
    import pyarrow as pa

    columns = [("number", pa.int64()), ("of", pa.int64()), ("study", pa.string()), ("distance", pa.float32())]
    return pa.schema([*columns, ("correlation", pa.float32()), ("orientation", pa.string())])


def _near_pairs(folder: Folder) -> Iterator[dict[str, Any]]:
    for part in range(folder.parts):
        yield from read_table(folder.file("pairs", part))


def _looked_up(folder: Folder, wanted: set[int]) -> tuple[dict[int, Any], dict[int, tuple[str, str]]]:
    """Of some rows the order of preference, and study and subject."""
    ranks: dict[int, Any] = {}
    rows: dict[int, tuple[str, str]] = {}
    starts = folder.starts
    for part in range(folder.parts):
        inside = [number for number in range(starts[part], starts[part + 1]) if number in wanted]
        if not inside:
            continue
        listed, table = rows_of(folder, part), read_table(folder.file("seen", part))
        for number in inside:
            seen, row = table[number - starts[part]], listed[number - starts[part]].row
            wrong = bool(seen["turn"] or seen["invert"])
            ranks[number] = (wrong, -seen["annotations"], -seen["height"] * seen["width"], number)
            rows[number] = (row.study, row.subject)
    return ranks, rows


def _moved(folder: Folder, patients: _Groups) -> dict[str, str]:
    """The new split of every subject whose own, or whose copies', are several."""
    several = subjects_in_two_splits(folder)
    for subject in several:
        patients.join(subject, subject)
    first = splits_of(folder, [subject for subjects in patients.sets() for subject in subjects])
    moved: dict[str, str] = {}
    for subjects in patients.sets():
        found = {split for subject in subjects for split in several.get(subject, [first[subject]])}
        split = next(split for split in _SPLITS if split in found)
        moved |= {one: split for one in subjects if several.get(one, [first[one]]) != [split]}
    return moved
