"""The sets that an evaluation measures: one cohort (``xgem.cohort``) per route, resumed where it stopped.

What is measured is a folder of generated studies, whoever made it. ``eval routes``, ``joint``, ``control`` and ``all``
differ in which cohorts they need, and share those that they have in common.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from xgem.cohort.check import check
from xgem.cohort.folder import Folder
from xgem.cohort.items import expand
from xgem.cohort.plan import Plan
from xgem.cohort.run import run
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet
from xgem.eval.route import Route
from xgem.eval.studies import FEWEST
from xgem.modalities import get_modality
from xgem.types import InputError

_PAUSE: Final = 2.0  # seconds
_NUMBER: Final = re.compile(r"-([0-9]{8})(?=-|$)")  # of an item in its id


@dataclass(frozen=True)
class Sampling:
    """How cohorts are generated; None leaves an option to the model's preset. ``limit``: at most so many studies;
    ``compile``: with compiled denoisers."""

    seed: int = 0
    limit: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | dict[str, float] | None = None
    guidance_start: float | None = None
    guidance_end: float | None = None
    guidance_rescale: float | None = None
    sampler: str | None = None
    num_candidates: int = 1
    batch_size: int = 32
    compile: bool = False

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        at_least("batch_size", self.batch_size, 1)
        at_least("num_candidates", self.num_candidates, 1)
        at_least("num_inference_steps", self.num_inference_steps, 1)
        at_least("limit", self.limit, FEWEST)


def at_least(name: str, value: int | None, least: int) -> None:
    """Refuse a number below ``least``; None is allowed."""
    if value is not None and value < least:
        raise InputError(f"{name} {value}: expected at least {least}")


@dataclass(frozen=True)
class Cohorts:
    """The cohorts of one checkpoint in ``folder``, matched to the studies of ``split`` of the manifest ``data``.

    ``pipe`` is the opened model, which plans are checked against. ``sections`` of a report are its text.
    """

    model: str
    pipe: Any
    data: Path
    split: str
    folder: Path
    sampling: Sampling
    sections: tuple[str, ...] = ("impression",)
    device: str | None = None
    dtype: str | None = None
    progress: bool = True

    def plan(self, name: str, inputs: Sequence[str], outputs: Sequence[str], *, joint: bool = False, **of: Any) -> Plan:
        """A plan matched to the split, checked against the model; nothing is generated.

        Args:
            of: fields of :class:`xgem.cohort.plan.Matched` that differ, such as ``split``, ``limit`` and ``count``.

        Raises:
            InputError: the model cannot follow it, or too few studies of the manifest have the inputs.
        """
        matched = {"manifest": str(self.data), "split": self.split, "inputs": inputs, "sections": self.sections}
        plan = self._plan(name, outputs, joint, matched=matched | {"limit": self.sampling.limit} | of)
        cohort = expand(plan)
        check(cohort, self.pipe)
        if (n := len(cohort) // plan.count) < FEWEST:
            raise InputError(f"{self.data}: {n} studies for {name!r}; the measures need at least {FEWEST}")
        return plan

    def plan_of(self, route: Route, *, count: int = 1, n: int = 0) -> Plan:
        """``count`` samples for each study that has the route's inputs; from nothing, for ``n`` studies.

        Raises:
            InputError: as :meth:`plan`.
        """
        if route.inputs:
            return self.plan(route.stem, route.inputs, route.outputs, joint=route.joint, count=count)
        plan = self._plan(route.stem, route.outputs, route.joint, balanced={"count": n * count})
        check(expand(plan), self.pipe)
        return plan

    def _plan(self, name: str, outputs: Sequence[str], joint: bool, **studies: Any) -> Plan:
        sampling, scale = self.sampling, self.sampling.guidance_scale
        if isinstance(scale, dict):
            scale = {output: value for output, value in scale.items() if output in outputs} or None
        values = {"name": name, "model": self.model, "outputs": outputs, "joint": joint, "guidance_scale": scale}
        values |= {
            key: value for key, value in vars(sampling).items() if key not in ("limit", "guidance_scale", "compile")
        }
        if not joint and "matched" not in studies:
            values["num_candidates"] = 1  # a single output from nothing has nothing to agree with
        return Plan.model_validate(values | studies)

    def made(self, plan: Plan) -> Path:
        """The folder of the finished cohort; what is missing of it is generated, by several processes if they run.

        A cohort that was begun with more samples of each study is finished with as many.

        Raises:
            OutputError: it holds a cohort of another plan or checkpoint, or cannot be written.
        """
        folder = self.folder / plan.name
        count = max(plan.count, int((Folder(folder).begun() or {}).get("count", 0)))
        how: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "compile": self.sampling.compile}
        while run(_with_count(plan, count), folder, progress=self.progress, **how).missing:
            time.sleep(_PAUSE)  # another process is making them
        return folder

    def sets(self, plan: Plan, studies: Sequence[str] = ()) -> dict[str, EvalSet]:
        """The generated outputs by modality. ``studies``: the ids that generations from nothing answer to, in turn."""
        return outputs_of(self.made(plan), plan.outputs, studies)


def _with_count(plan: Plan, count: int) -> Plan:
    studies = {
        name: part.model_copy(update={"count": count})
        for name in ("balanced", "matched")
        if (part := getattr(plan, name)) is not None
    }
    return plan.model_copy(update=studies)


def outputs_of(folder: Path, outputs: Sequence[str], studies: Sequence[str] = ()) -> dict[str, EvalSet]:
    """A cohort's outputs by modality: images of one view, or reports; several items may answer to one study.

    Args:
        studies: ids that items which answer to no study are given to in turn, as those from nothing.
    """
    items = read_set(folder, view=None, name=folder.name)
    if studies:
        numbers = [int(_NUMBER.findall(item.id)[-1]) for item in items.items]
        answers = (replace(item, pair=studies[k % len(studies)]) for item, k in zip(items.items, numbers, strict=True))
        items = replace(items, items=tuple(answers))
    found: dict[str, EvalSet] = {}
    for view in (name for name in outputs if get_modality(name).is_image):
        # A cohort names an image NUMBER-VIEW.png
        rows = [k for k, item in enumerate(items.items) if item.file and item.file.stem.endswith(f"-{view}")]
        found[view] = items.subset(rows, f"{folder.name}, {view}")
    for text in (name for name in outputs if name not in found):
        found[text] = replace(next(iter(found.values()), items), name=f"{folder.name}, {text}")
    return {name: found[name] for name in outputs}
