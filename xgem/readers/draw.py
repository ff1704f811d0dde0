"""Which items a study shows: cases drawn by the seed from the sets of its arms."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xgem.data.set_files import read_set
from xgem.data.sets import Item
from xgem.readers.blinding import has_marks, plain_report
from xgem.readers.plan import Source, StudyPlan
from xgem.readers.task import PICTURES, REAL, Part, Task
from xgem.types import DataError, InputError

Cases = Mapping[str, Item]


@dataclass(frozen=True)
class Drawn:
    """One item of a task: its arm, the case (the real study, or a generated one that is of none), and its parts."""

    task: int
    arm: str
    case: str
    parts: Mapping[Part, Item]


def draw(plan: StudyPlan) -> list[Drawn]:
    """The items of all tasks, in the order of tasks and arms.

    Cases of an unpaired task are all different. A case is used in a second task only when all that the task can have
    were used equally often, so that a reader who meets an image again learns as little as possible.

    Raises:
        InputError: an arm has too few cases for a task. DataError: a set cannot be read.
    """
    library = _Library(plan)
    used: Counter[str] = Counter()
    drawn: list[Drawn] = []
    for number, task in enumerate(plan.all_tasks):
        rng = random.Random(f"{plan.seed}/{task.name}")
        chosen = (_paired if task.paired else _unpaired)(task, library, used, rng)
        for arm, cases in chosen.items():
            used.update(cases if not task.paired or arm == task.arms[0] else ())
            drawn += [Drawn(number, arm, case, library.parts(task, arm, case)) for case in cases]
    return drawn


class _Library:
    """The cases of every arm and part, each set read once."""

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._read: dict[tuple[str, Part], Cases] = {}

    def cases(self, owner: str, part: Part) -> Cases:
        if (owner, part) not in self._read:
            source = self._plan.real if owner == REAL else self._plan.generated[owner]
            assert source is not None
            cases = read_cases(source, part, owner)
            if owner == REAL and part == "report" and self._plan.drop_marked:
                cases = {case: item for case, item in cases.items() if not has_marks(item.report)}
            self._read[owner, part] = cases
        return self._read[owner, part]

    def complete(self, task: Task, arm: str) -> list[str]:
        """The cases that have all parts of a task's items of this arm, in a fixed order."""
        found = [set(self.cases(self._plan.owner(task, arm, part), part)) for part in task.shows]
        return sorted(set.intersection(*found))

    def parts(self, task: Task, arm: str, case: str) -> dict[Part, Item]:
        return {part: self.cases(self._plan.owner(task, arm, part), part)[case] for part in task.shows}


def read_cases(source: Source, part: Part, name: str) -> Cases:
    """The items of one part by case: a real study's id, which a generated item names; the first of several.

    Raises:
        DataError: the set cannot be read, or has none of this part.
    """
    place = source.place(part)
    assert place is not None
    picture = part in PICTURES
    split = source.split if place.suffix in {".parquet", ".jsonl"} else None
    found = read_set(
        place,
        split=split,
        view=part if picture else None,
        labels="file",
        sections=source.sections,
        pad=True,
        name=name,
        reading=source.reading,
    )
    cases: dict[str, Item] = {}
    for item in found.items:
        if item.file is not None if picture else plain_report(item.report):
            cases.setdefault(_case(item), item)
    if not cases:
        raise DataError(f"{place}: no {part}s in it{f' for split {split!r}' if split else ''}; name another set")
    return cases


def _case(item: Item) -> str:
    """The real study that it belongs to; of a generated one without, its id without the view that tells rows apart."""
    if item.pair:
        return item.pair
    ending = next((f"-{view}" for view in PICTURES if item.id.endswith(f"-{view}")), "")
    return item.id.removesuffix(ending)


def _paired(task: Task, library: _Library, used: Counter[str], rng: random.Random) -> dict[str, list[str]]:
    """The same cases for every arm."""
    common = sorted(set.intersection(*(set(library.complete(task, arm)) for arm in task.arms)))
    cases = _fewest(task, " and ".join(task.arms), common, used, rng)
    return dict.fromkeys(task.arms, cases)


def _unpaired(task: Task, library: _Library, used: Counter[str], rng: random.Random) -> dict[str, list[str]]:
    """Different cases for every arm; the arm with the fewest chooses first."""
    candidates = {arm: library.complete(task, arm) for arm in task.arms}
    chosen: dict[str, list[str]] = {}
    for arm in sorted(task.arms, key=lambda arm: len(candidates[arm])):
        taken = {case for cases in chosen.values() for case in cases}
        free = [case for case in candidates[arm] if case not in taken]
        chosen[arm] = _fewest(task, arm, free, used, rng)
    return {arm: chosen[arm] for arm in task.arms}


def _fewest(task: Task, arm: str, cases: Sequence[str], used: Counter[str], rng: random.Random) -> list[str]:
    """Cases at random, those first that fewest tasks have used."""
    if len(cases) < task.items:
        shown = ", ".join(task.shows)
        raise InputError(
            f"task {task.name}: {task.items} items of {arm} need as many cases with {shown}, and "
            f"{len(cases)} are left; ask for fewer items, or give larger sets whose items name the same real studies"
        )
    shuffled = rng.sample(cases, len(cases))
    return sorted(shuffled, key=lambda case: used[case])[: task.items]
