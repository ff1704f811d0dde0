"""The plan of a reader study: the fields of ``study.yaml``, checked before anything is drawn.

::

    name: turing                        # shown to the readers
    seed: 7
    readers: [anna, ben, carla]
    protocol: xgem                      # or chexgen; without one, tasks of one's own
    turing: true                        # ask too whether an item is real or synthetic
    real: {set: real.parquet, split: test}
    generated:
      mine: cohort                      # a set, or one per part: {frontal: a, lateral: b, report: c}
    tasks:                              # besides those of the protocol
      - name: devices
        title: Devices
        question: How plausible are lines and tubes?
        shows: [frontal]
        low: 1
        high: 5
        items: 15                       # of each arm
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from xgem.configs.base import Config, Section
from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.configs.yaml_text import read_yaml
from xgem.readers.protocols import PROTOCOLS, Protocol
from xgem.readers.task import REAL, Part, Task, named
from xgem.types import ConfigError


class Source(Config):
    """Where an arm's images and reports come from; a path alone is ``set``.

    ``set`` gives every part that has no set of its own (:func:`xgem.data.set_files.read_set` says what a set is).
    ``split`` and ``sections`` apply to manifests alone.
    """

    set: str | None = None
    frontal: str | None = None
    lateral: str | None = None
    report: str | None = None
    split: str | None = None
    sections: tuple[Section, ...] = ("impression",)
    reading: ReadOptions = AS_STATED

    @model_validator(mode="before")
    @classmethod
    def _of_path(cls, value: Any) -> Any:
        return {"set": value} if isinstance(value, str) else value

    def place(self, part: Part) -> Path | None:
        """The set that a part is taken from; None where none is named."""
        named: str | None = getattr(self, part) or self.set
        return None if named is None else Path(named)


class StudyPlan(Config):
    """A reader study. ``items`` and ``turing`` are over those of the protocol's tasks.

    ``size``: side in pixels of all pictures; the smallest of the drawn ones, if left out. ``fit``: how a picture that
    is no square becomes one: ``crop``, by its centre; ``pad``, with black margins, which few generators make.
    ``drop_marked``: leave out real reports with de-identification marks, instead of taking the marks out.
    """

    name: str
    seed: int = Field(ge=0)
    readers: tuple[str, ...] = Field(min_length=1)
    protocol: Literal["xgem", "chexgen"] | None = None
    turing: bool = False
    items: int | None = Field(default=None, ge=1)
    real: Source | None = None
    generated: dict[str, Source] = Field(default_factory=dict[str, Source])
    size: int | None = Field(default=None, ge=32, le=2048)
    fit: Literal["crop", "pad"] = "crop"
    drop_marked: bool = False
    tasks: tuple[Task, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all arms, the real one first."""
        return (*((REAL,) if self.real else ()), *self.generated)

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """The protocol's tasks and the plan's own, in this order, with their arms; one of one's own replaces the
        protocol's of the same name."""
        known: list[Task] = []
        replaced = {task.name for task in self.tasks}
        if self.published is not None:
            over: dict[str, Any] = {"arms": self.arms if self.published.real else tuple(self.generated)}
            over |= {"turing": True} if self.turing else {}
            over |= {} if self.items is None else {"items": self.items}
            known = [task.model_copy(update=over) for task in self.published.tasks if task.name not in replaced]
        own = [task if task.arms else task.model_copy(update={"arms": self.arms}) for task in self.tasks]
        return (*known, *own)

    @property
    def resolved(self) -> StudyPlan:
        """The same with all tasks as its own: what a study keeps, whatever becomes of a protocol's wording."""
        return self.model_copy(update={"tasks": self.all_tasks})

    @property
    def published(self) -> Protocol | None:
        """The published protocol that it follows, if any."""
        return None if self.protocol is None else PROTOCOLS[self.protocol]

    @field_validator("readers")
    @classmethod
    def _readers(cls, readers: tuple[str, ...]) -> tuple[str, ...]:
        return named(readers, "reader")

    @field_validator("generated")
    @classmethod
    def _generated(cls, generated: dict[str, Source]) -> dict[str, Source]:
        named(generated, "generated set")
        if REAL in generated:
            raise ValueError(f"a generated set cannot be named {REAL!r}: that is the arm of real studies")
        return generated

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named([self.name], "name")
        if self.protocol is None and not self.tasks:
            raise ValueError("no tasks: expected a protocol (xgem or chexgen), or tasks")
        if self.protocol is None and (self.items is not None or self.turing):
            raise ValueError("items and turing are of a protocol's tasks; state them with each task instead")
        tasks = self.all_tasks
        named([task.name for task in tasks], "task")
        for task in tasks:
            unknown = [arm for arm in task.arms if arm not in self.arms]
            if unknown:
                raise ValueError(f"task {task.name}: no arm {unknown[0]!r}, only {', '.join(self.arms) or 'none'}")
            if not task.arms:
                raise ValueError(f"task {task.name}: no arms; name real or generated sets")
            if task.turing and not (REAL in task.arms and len(task.arms) > 1):
                raise ValueError(f"task {task.name}: turing asks for real and synthetic items; it has {task.arms}")
            self._sources(task)
        return self

    def _sources(self, task: Task) -> None:
        """Every part of every arm has a set."""
        for arm in task.arms:
            for part in task.shows:
                owner = self.owner(task, arm, part)
                source = self.real if owner == REAL else self.generated[owner]
                if source is None or source.place(part) is None:
                    raise ValueError(
                        f"task {task.name}: arm {arm} needs a {part} of {owner}, which names no set of them"
                    )

    @staticmethod
    def owner(task: Task, arm: str, part: Part) -> str:
        """The arm whose set gives a part of an item: the real one, or that of the generated set."""
        return arm if part in task.judged else REAL


def read_plan(path: str | Path) -> StudyPlan:
    """A plan from a YAML file; paths in it are as from where the command is called.

    Raises:
        ConfigError: unreadable, not YAML, or a field that is unknown, missing or not valid; names it.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected the fields of a reader study, got {type(values).__name__}")
    return StudyPlan.parse(values, str(path))
