"""Published reader studies as tasks, with the scores that their papers report.

``xgem``: the Visual Turing Test of XGeM (Molino et al. 2026, sections 3.5.3 and 4.4, Table A3). The paper states 20
items a task, real and synthetic mixed; here half of them are real. Of tasks about coherence it says which part may be
synthetic; the others are of the real study.

``chexgen``: ChexGen's assessment by radiologists (Ji et al. 2025, Results and Methods): 150 cases, each model's image
beside the real report, a model at a time, in random order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from xgem.readers.task import REAL, Task

XGEM_SCALE: Final = {1: "poorest", 5: "best"}
CHEXGEN_SCALE: Final = {
    -2: "image and report do not match",
    -1: "key findings are missing",
    0: "major findings are there, details are missing",
    1: "most aspects of the report are there",
    2: "all reported findings are there",
}


@dataclass(frozen=True)
class Published:
    """A mean and standard deviation that a paper reports; ``of`` says of whose scores."""

    of: str
    mean: float
    sd: float

    def __str__(self) -> str:
        places = max(len(repr(number).partition(".")[2]) for number in (self.mean, self.sd))
        return f"{self.of} {self.mean:.{places}f} +- {self.sd:.{places}f}"


@dataclass(frozen=True)
class Protocol:
    """Tasks, and what the paper reports of each by kind of arm: ``real`` or ``synthetic``.

    ``real``: whether real studies are an arm; without them models are compared with each other.
    """

    source: str
    real: bool
    tasks: tuple[Task, ...]
    published: Mapping[str, Mapping[str, tuple[Published, ...]]]

    def reported(self, task: str, arm: str) -> tuple[Published, ...]:
        """The paper's scores of an arm's kind; none for other tasks."""
        return self.published.get(task, {}).get("real" if arm == REAL else "synthetic", ())


def _xgem(real: tuple[float, float], synthetic: tuple[float, float]) -> dict[str, tuple[Published, ...]]:
    return {"real": (Published("real", *real),), "synthetic": (Published("XGeM", *synthetic),)}


PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "xgem": Protocol(
        "XGeM, Table A3: three radiologists, 1 to 5, mean and standard deviation",
        True,
        (
            Task(
                name="xray-realism",
                title="Realism of radiographs",
                question="How realistic is this radiograph?",
                shows=("frontal",),
                labels=XGEM_SCALE,
            ),
            Task(
                name="report-realism",
                title="Realism of reports",
                question="How plausible and realistic is this report?",
                shows=("report",),
                labels=XGEM_SCALE,
            ),
            Task(
                name="report-of-pair",
                title="Report and pair of radiographs",
                question="How consistent is the report with the two radiographs?",
                shows=("frontal", "lateral", "report"),
                generated=("report",),
                labels=XGEM_SCALE,
            ),
            Task(
                name="xray-of-report",
                title="Radiograph and report",
                question="How plausible is the radiograph, given the report?",
                shows=("report", "frontal"),
                generated=("frontal",),
                labels=XGEM_SCALE,
            ),
            Task(
                name="pair",
                title="Pair of radiographs",
                question="How consistent are the frontal and the lateral radiograph with each other?",
                shows=("frontal", "lateral"),
                generated=("lateral",),
                labels=XGEM_SCALE,
            ),
        ),
        {
            "xray-realism": _xgem((4.1, 0.9), (3.7, 0.8)),
            "report-realism": _xgem((3.5, 0.9), (4.0, 0.9)),
            "report-of-pair": _xgem((3.4, 1.3), (3.3, 1.1)),
            "xray-of-report": _xgem((3.7, 0.9), (3.9, 0.8)),
            "pair": _xgem((3.8, 0.7), (3.6, 0.8)),
        },
    ),
    "chexgen": Protocol(
        "ChexGen, Results: two radiologists, -2 to 2, mean and standard deviation of each",
        False,
        (
            Task(
                name="match",
                title="Radiograph and report",
                question="How well does the radiograph match the report?",
                shows=("report", "frontal"),
                generated=("frontal",),
                low=-2,
                high=2,
                labels=CHEXGEN_SCALE,
                items=150,
                paired=True,
            ),
        ),
        {
            "match": {
                "synthetic": (
                    Published("ChexGen, first reader", 1.41, 1.01),
                    Published("ChexGen, second reader", 0.49, 0.70),
                    Published("RoentGen, first reader", 0.73, 1.31),
                    Published("RoentGen, second reader", -0.14, 1.01),
                )
            }
        },
    ),
}
