"""The items of a plan: one synthetic study each, numbered so that a number alone decides all of it.

Cells take turns: item ``i`` is of cell ``i % cells``. A larger count therefore only adds items behind the others.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from xgem.cohort.plan import Balanced, Finding, Matched, Plan
from xgem.configs.reading import ReadOptions
from xgem.data.manifest import Manifest
from xgem.data.study import Study
from xgem.data.transforms import SquashedFile
from xgem.labels.vocabulary import annotated_labels
from xgem.modalities import get_modality
from xgem.types import InputError
from xgem.utils.files import file_sha256
from xgem.utils.random import derived_seed


@dataclass(frozen=True)
class Cell:
    """What the studies of one cell have in common.

    ``texts`` take turns as prompts. ``ages`` are drawn from, both ends included. ``tells``: sex, age and race are an
    input. ``images`` and ``annotations`` are the other inputs, the latter those of ``study``.
    """

    outputs: tuple[str, ...]
    finding: str = ""
    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    sex: str | None = None
    ages: tuple[float, float] | None = None
    race: str | None = None
    severity: float | None = None
    tells: bool = False
    images: Mapping[str, Path | SquashedFile] = field(default_factory=dict[str, Path | SquashedFile])
    annotations: tuple[str, ...] = ()
    study: Study | None = None


@dataclass(frozen=True)
class Item:
    """One study to make. ``index`` is its number, ``id`` its name, ``pair`` the real study it answers to, if any.

    ``inputs`` are as a pipeline takes them, but for masks and boxes, which are read when their turn comes.
    """

    index: int
    id: str
    cell: Cell
    seed: int
    inputs: Mapping[str, Any]
    prompt: str
    age: float | None

    @property
    def pair(self) -> str:
        return "" if self.cell.study is None else self.cell.study.id


@dataclass(frozen=True)
class Batch:
    """Items that are computed together: the ``number``-th ``batch_size`` items of those with the same outputs."""

    kind: int
    number: int
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind:02d}-{self.number:07d}"


@dataclass(frozen=True)
class Cohort:
    """A plan's cells, and what of a manifest was left out and why."""

    plan: Plan
    cells: tuple[Cell, ...]
    left_out: Mapping[str, int]
    manifest_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.cells) * self.plan.count

    @cached_property
    def sha256(self) -> str:
        """Of all that decides its items but the checkpoint; not of how many there are."""
        return self.plan.sha256(self.manifest_sha256)

    def item(self, index: int) -> Item:
        """The item of that number, from 0; its seed is a function of the plan's seed and the number alone."""
        cell, turn = self.cells[index % len(self.cells)], index // len(self.cells)
        age = None
        if cell.ages is not None:
            low, high = cell.ages
            draw = random.Random(derived_seed(self.plan.seed, "cohort", index, "age"))
            age = low if low == high else float(draw.randint(int(low), int(high)))
        prompt = cell.texts[turn % len(cell.texts)] if cell.texts else ""
        inputs: dict[str, Any] = dict(cell.images)
        if prompt:
            inputs["report"] = prompt
        known = {"sex": cell.sex, "age": age, "race": cell.race}
        if cell.tells and any(value is not None for value in known.values()):
            inputs["demographics"] = {name: value for name, value in known.items() if value is not None}
        if cell.severity is not None:
            inputs["severity"] = cell.severity
        if cell.study is not None:
            inputs |= {name: get_modality(name).of_study(cell.study, ()) for name in cell.annotations}
        seed = derived_seed(self.plan.seed, "cohort", index, "item")
        return Item(index, f"{self.plan.name}-{index:08d}", cell, seed, inputs, prompt, age)

    def __iter__(self) -> Iterator[Item]:
        return map(self.item, range(len(self)))

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """All items, by kind of outputs, then by number. A larger count changes the last batch of each kind only."""
        kinds = {outputs: kind for kind, outputs in enumerate(dict.fromkeys(cell.outputs for cell in self.cells))}
        members: list[list[int]] = [[] for _ in kinds]
        of_cell = [kinds[cell.outputs] for cell in self.cells]
        for index in range(len(self)):
            members[of_cell[index % len(of_cell)]].append(index)
        size = self.plan.batch_size
        return tuple(
            Batch(kind, start // size, tuple(own[start : start + size]))
            for kind, own in enumerate(members)
            for start in range(0, len(own), size)
        )


def expand(plan: Plan) -> Cohort:
    """The cohort that a plan describes; a matched plan's manifest is read, its files are not.

    Raises:
        InputError: no study of the split has what the plan takes as inputs, or the manifest is not valid.
    """
    if plan.balanced is not None:
        return Cohort(plan, tuple(_balanced(plan, plan.balanced)), {})
    assert plan.matched is not None
    return _matched(plan, plan.matched)


def _balanced(plan: Plan, part: Balanced) -> Iterator[Cell]:
    every = tuple(name for name in plan.outputs if get_modality(name).is_image)
    findings: Sequence[Finding | None] = part.findings or (None,)
    axes = (findings, part.sexes or (None,), part.ages or (None,), part.races or (None,), part.severities or (None,))
    for finding, sex, ages, race, severity, views in product(*axes, part.views or (every,)):
        yield Cell(
            outputs=tuple(name for name in plan.outputs if name in views or name not in every),
            finding="" if finding is None else finding.name,
            texts=() if finding is None else finding.prompts,
            labels=() if finding is None else finding.labels,
            sex=sex,
            ages=ages,
            race=race,
            severity=severity,
            tells=True,
        )


def _matched(plan: Plan, part: Matched) -> Cohort:
    studies = Manifest.read(part.manifest).studies(part.split)
    left_out: Counter[str] = Counter()
    usable: list[Study] = []
    # Demographics are given as far as they are known, and are only missed where nothing else is given
    needed = [name for name in part.inputs if name != "demographics"] or part.inputs
    for study in studies:
        missing = next((name for name in needed if get_modality(name).of_study(study, part.sections) is None), None)
        reason = _unwanted(part, study) if missing is None else f"without {missing}"
        if reason is None:
            usable.append(study)
        else:
            left_out[reason] += 1
    if part.limit is not None and len(usable) > part.limit:
        left_out[f"beyond the limit of {part.limit}"] = len(usable) - part.limit
        chosen = sorted(usable, key=lambda study: hashlib.sha256(f"{plan.seed}:{study.id}".encode()).digest())
        usable = sorted(chosen[: part.limit], key=lambda study: study.id)
    if not usable:
        raise InputError(
            f"{part.manifest}: none of the {len(studies)} studies of split {part.split!r} has what the plan takes as "
            f"inputs ({', '.join(part.inputs)})"
            + (", and the findings, sexes and ages that it chooses" if part.findings or part.sexes or part.ages else "")
            + "".join(f"; {count} {why}" for why, count in sorted(left_out.items()))
        )
    images = any(get_modality(name).is_image for name in part.inputs)
    if images and ReadOptions.common(study.reading for study in usable) is None:
        raise InputError(
            f"{part.manifest}: studies whose images are read in different ways (their field reading); make a manifest "
            "of each kind, and a cohort of each"
        )
    cells = tuple(_match(plan, part, study) for study in usable)
    return Cohort(plan, cells, dict(sorted(left_out.items())), file_sha256(part.manifest))


def _unwanted(part: Matched, study: Study) -> str | None:
    """Why a plan's choice of findings, sexes and ages leaves a study out; None if it does not."""
    if part.findings:
        stated = annotated_labels(study.labels, study.source)
        if not any(all(stated.get(name) == 1 for name in finding.labels) for finding in part.findings):
            return "without the findings"
    if part.sexes and study.sex not in part.sexes:
        return "of another or unknown sex"
    if part.ages and (study.age is None or not any(low <= math.floor(study.age) <= high for low, high in part.ages)):
        return "of another or unknown age"
    return None


def _match(plan: Plan, part: Matched, study: Study) -> Cell:
    given = {name: get_modality(name).of_study(study, part.sections) for name in part.inputs}
    images = {name: given[name] for name in part.inputs if get_modality(name).is_image}
    tells = "demographics" in part.inputs
    known = tells or bool(images)
    return Cell(
        outputs=plan.outputs,
        texts=(given["report"],) if "report" in given else (),
        labels=study.labels,
        sex=study.sex if known else None,
        ages=(study.age, study.age) if known and study.age is not None else None,
        race=study.race if known else None,
        severity=given.get("severity"),
        tells=tells,
        images=images,
        annotations=tuple(name for name in part.inputs if name in ("mask", "boxes")),
        study=study,
    )
