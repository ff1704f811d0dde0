"""The real studies that a model is measured against: the same ones, in the same order, for every modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet, Images, Item, pairs
from xgem.data.study import ANNOTATED_VIEW
from xgem.data.transforms import Notes, grey_levels, read_square
from xgem.pipeline.embedding import Evaluated
from xgem.types import DataError

FEWEST: Final = 8
"""Studies that the measures need at the least."""


@dataclass(frozen=True)
class Studies:
    """Real studies as a set a modality; row i of every set is of the same study.

    ``labels`` come from the annotators where the manifest has any, else from the reports.
    """

    sets: Mapping[str, EvalSet]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, modality: str) -> EvalSet:
        return self.sets[modality]

    @property
    def ids(self) -> list[str]:
        return [item.id for item in next(iter(self.sets.values())).items]

    def of(self, ids: Sequence[str]) -> Studies:
        """The studies of these ids, in that order."""
        places = {name: row for row, name in enumerate(self.ids)}
        rows = [places[name] for name in ids]
        return Studies({name: one.subset(rows) for name, one in self.sets.items()})

    @classmethod
    def read(cls, data: Path, model: Evaluated, split: str, *, name: str = "real") -> Studies:
        """The studies of ``split`` that have all of the model's modalities, but for those that no study has.

        Raises:
            DataError: fewer than 8.
        """
        sets = {modality: _read(data, model, split, modality, name) for modality in (*model.images, *model.reports)}
        sets = {modality: one for modality, one in sets.items() if len(one)}
        known = [{item.id for item in one.items} for one in sets.values()]
        ids = (
            [item.id for item in next(iter(sets.values())).items if all(item.id in one for one in known)]
            if sets
            else []
        )
        if len(ids) < FEWEST:
            raise DataError(
                f"{data}: split {split!r} has {len(ids)} studies with all of {', '.join(sets) or 'nothing'}: expected "
                f"at least {FEWEST}"
            )
        rows = {modality: {item.id: row for row, item in enumerate(one.items)} for modality, one in sets.items()}
        return cls({name: one.subset([rows[name][key] for key in ids]) for name, one in sets.items()})


def read_training(data: Path, model: Evaluated, *, split: str = "train") -> dict[str, EvalSet]:
    """Everything that the training split has of each modality, by modality."""
    sets = {name: _read(data, model, split, name, "training") for name in (*model.images, *model.reports)}
    return {name: one for name, one in sets.items() if len(one)}


def _read(data: Path, model: Evaluated, split: str, modality: str, name: str) -> EvalSet:
    image = modality in model.images
    labels: Literal["auto", "reports"] = "auto" if image else "reports"
    view = modality if image else next(iter(model.images), ANNOTATED_VIEW)
    found = read_set(
        data, split=split, view=view, labels=labels, sections=model.sections, pad=True, name=f"{name}, {modality}"
    )
    rows = [k for k, item in enumerate(found.items) if (item.file is not None if image else item.report.strip())]
    return found.subset(rows)


def samples(real: EvalSet, generated: EvalSet) -> tuple[EvalSet, list[EvalSet]]:
    """The real studies that have generations, in the real set's order, and their k-th generations row by row.

    As many samples as the study with the fewest has: studies are what is resampled, and all must count alike.

    Raises:
        DataError: no generation names a real study.
    """
    matched, answers = pairs(real, generated)
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(matched.items):
        rows.setdefault(item.id, []).append(row)
    order = [rows[item.id] for item in real.items if item.id in rows]
    count = min(map(len, order))
    firsts = matched.subset([own[0] for own in order])
    return firsts, [answers.subset([own[k] for own in order]) for k in range(count)]


def answered(studies: Sequence[str], sets: Sequence[EvalSet]) -> list[str]:
    """Those of the ``studies`` that every set has a generation of, in order.

    Raises:
        DataError: fewer than 8.
    """
    known = [{item.pair or item.id for item in one.items} for one in sets]
    kept = [name for name in studies if all(name in one for one in known)]
    if len(kept) < FEWEST:
        raise DataError(f"{len(kept)} studies have all outputs: expected at least {FEWEST}; take more with --limit")
    return kept


def pixels_of(items: EvalSet, model: Evaluated) -> Images:
    """The images of a set as the model reads them, (n, size, size) uint8."""
    noted = Notes()

    def read(item: Item) -> Images:
        assert item.file is not None
        return grey_levels(read_square(item.file, model.transform, item.reading, noted=noted))

    with ThreadPoolExecutor(4) as pool:
        pixels = np.stack(list(pool.map(read, [item for item in items.items if item.file])))
    noted.log(items.name)
    return pixels
