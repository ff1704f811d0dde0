"""Plans of experiments: which there are, their two sizes, and what is checked before anything is trained.

::

    name: anonymisation
    kind: downstream                    # what runs it: xgem.experiments.papers.run
    title: Classifiers of synthetic images against classifiers of real ones
    source: XGeM, Tables 8 and A4
    debug: {...}                        # minutes on a CPU; the numbers mean nothing
    paper: {data: mimic.parquet, models: {XGeM: runs/xgem}, ...}    # the paper's n, networks, epochs, runs

A plan of one's own may name another by ``extends: anonymisation``; it takes what it does not have itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar, cast

from pydantic import Field, field_validator, model_validator

from xgem.cohort.plan import Input
from xgem.configs.base import Config, Section
from xgem.configs.yaml_text import parse_yaml, read_yaml
from xgem.data.rows import Split
from xgem.eval.cohorts import Sampling
from xgem.eval.instruments import Weights
from xgem.judges.settings import Stage, TaskName, UtilitySettings
from xgem.judges.settings import preset as utility_preset
from xgem.types import ConfigError, InputError

Size = Literal["debug", "paper"]
SIZES: Final[tuple[Size, ...]] = ("debug", "paper")
EXPERIMENTS: Final = (
    "multi-prompt",
    "alignment",
    "anonymisation",
    "imbalance",
    "scarcity",
    "report-utility",
    "augmentation",
    "pretraining",
    "few-shot",
    "fairness",
)
_T = TypeVar("_T")


class Training(Config):
    """One model to train: stages of a preset, as ``xgem train`` trains them.

    ``init``: an earlier training of the plan, or a checkpoint, whose components it starts from. ``set``: as ``--set``
    of ``xgem train``; ``components``: fields of the preset's components that differ, by component.
    """

    preset: str
    stages: tuple[str, ...] = Field(min_length=1)
    init: str | None = None
    steps: int | None = Field(default=None, ge=1)
    set: tuple[str, ...] = ()
    components: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    seed: int = Field(default=0, ge=0)


class Generating(Config):
    """How everything is generated; None leaves an option to the model's preset."""

    seed: int = Field(default=0, ge=0)
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | dict[str, float] | None = None
    sampler: str | None = None
    batch_size: int = Field(default=32, ge=1)
    num_candidates: int = Field(default=1, ge=1)

    def sampling(self, limit: int | None = None) -> Sampling:
        return Sampling(**self.model_dump(), limit=limit)


class Judged(Config):
    """Weights of networks and packages that judge, as :class:`xgem.eval.instruments.Weights` takes them."""

    extractors: tuple[str, ...] | None = None
    xrv: str | None = None
    chexbert: str | None = None
    chexbert_vocabulary: str | None = None
    radgraph_python: str | None = None
    ratescore_python: str | None = None
    judge: str | None = None
    labeller: str | None = None

    def weights(self) -> Weights:
        given = self.model_dump()
        names = ("extractors", "judge", "labeller")
        files: dict[str, Any] = {name: one and Path(one) for name, one in given.items() if name not in names}
        return Weights(**{name: given[name] for name in names}, **files)


class Settings(Config):
    """What all experiments have. ``data``: the manifest, ``made-up`` for drawn studies; ``training``: models to train,
    in this order; ``models``: those that are compared, by the name that tables give them: of a training, or whatever
    ``xgem.load`` takes. ``bootstrap``: resamplings behind an interval.
    """

    data: str | None = None
    training: dict[str, Training] = Field(default_factory=dict[str, Training])
    models: dict[str, str] = Field(default_factory=dict[str, str])
    generating: Generating = Generating()
    judged: Judged = Judged()
    test_split: Split = "test"
    seed: int = Field(default=0, ge=0)
    bootstrap: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def _trained_in_order(self) -> Settings:
        seen: list[str] = []
        for name, one in self.training.items():
            if one.init in self.training and one.init not in seen:
                raise ValueError(f"training {name!r} starts from {one.init!r}, which comes after it: change the order")
            seen.append(name)
        return self


class Routes(Settings):
    """Routes of several models: fidelity and findings of images, words and findings of reports."""

    routes: tuple[str, ...] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=8)
    report_samples: int = Field(default=1, ge=1)


class Joint(Settings):
    """Joint against independent sampling, for several alignments."""

    limit: int | None = Field(default=None, ge=8)


class Network(Config):
    """A network of a downstream task: named settings (:data:`xgem.judges.settings.PRESETS`), and what differs."""

    settings: str = "small"
    training: dict[str, Any] | None = None
    pretraining: dict[str, Any] | None = None
    finetuning: dict[str, Any] | None = None
    network: str | None = None
    size: int | None = None
    width: int | None = None
    weights: str | None = None
    sampling: Literal["uniform", "balanced"] | None = None
    augment: bool | None = None
    unmentioned: Literal["unknown", "negative"] | None = None
    absent: Literal["unknown", "empty"] | None = None
    threshold: float | None = None
    runs: int | None = Field(default=None, ge=1)

    def utility(self, task: str, **over: Any) -> UtilitySettings:
        """The settings for a task; InputError names what is not valid."""
        found = utility_preset(task, self.settings)
        stages: dict[str, Any] = {}
        for name in ("training", "pretraining", "finetuning"):
            changes = getattr(self, name)
            if changes is not None:
                own = getattr(found, name) or found.training
                before = {k: v for k, v in asdict(own).items() if not (k in ("epochs", "steps") and _long(changes))}
                try:
                    stages[name] = Stage(**before | changes)
                except TypeError:
                    fields = ", ".join(asdict(own))
                    raise ConfigError(f"network: {name} {changes}: expected some of {fields}") from None
        plain = {k: v for k, v in self.model_dump().items() if v is not None and k not in ("settings", *stages)}
        return utility_preset(task, self.settings, **plain, **stages, **over)


def _long(changes: Mapping[str, Any]) -> bool:
    return "epochs" in changes or "steps" in changes


class Task(Config):
    """One downstream task of an experiment.

    Attributes:
        suite: protocols, as of ``xgem eval utility``; ``multiples``, ``fractions``, ``shots`` are its amounts.
        data: its own manifest, in place of the experiment's; splits train and test.
        external: further manifests to test on, by name; their split test.
        prompts: the manifest whose training studies synthetic images answer to; by default the data's.
        classes: findings (CheXpert's or the source's own), structures or box classes; None is as ``xgem eval utility``.
        prompt_classes: of synthetic images, where they answer to another manifest; unmentioned ones count as absent.
        inputs: what synthetic images are made from; ``samples``: images of each training study. ``without``: what those
            of studies without a mask or box are made from, so that the share of such images stays; by default none.
        models: those of the experiment that make images for it; all by default.
        synthetic: existing sets in place of generated ones, by the name that tables give them.
    """

    task: TaskName = "classification"
    suite: Literal["augmentation", "anonymisation", "imbalance", "scarcity", "pretraining", "few-shot"]
    data: str | None = None
    external: dict[str, str] = Field(default_factory=dict[str, str])
    prompts: str | None = None
    view: str = "frontal"
    classes: tuple[str, ...] | None = None
    prompt_classes: tuple[str, ...] = ()
    network: Network = Network()
    inputs: tuple[Input, ...] = ("report",)
    without: tuple[Input, ...] = ()
    sections: tuple[Section, ...] = ("impression",)
    samples: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=8)
    multiples: tuple[float, ...] | None = None
    fractions: tuple[float, ...] | None = None
    shots: tuple[int, ...] | None = None
    models: tuple[str, ...] | None = None
    synthetic: dict[str, str] = Field(default_factory=dict[str, str])

    @model_validator(mode="after")
    def _of_classes(self) -> Task:
        if self.suite in ("imbalance", "few-shot") and self.task != "classification":
            raise ValueError(f"suite {self.suite!r} is defined by findings: expected the task classification")
        return self

    @property
    def amounts(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("multiples", "fractions", "shots")}
        return {name: values for name, values in given.items() if values is not None}


class Downstream(Settings):
    """Networks that learn from real and synthetic images, task by task."""

    tasks: dict[str, Task] = Field(min_length=1)

    @model_validator(mode="after")
    def _models_known(self) -> Downstream:
        for name, task in self.tasks.items():
            unknown = sorted(set(task.models or ()) - set(self.models))
            if unknown:
                raise ValueError(f"tasks.{name}.models: no model {unknown[0]!r}, only {', '.join(self.models)}")
            if not (self.models or task.synthetic):
                raise ValueError(f"tasks.{name}: nothing makes synthetic images; name models, or sets (synthetic)")
        return self


class ReportUtility(Settings):
    """Report models trained on synthetic pairs against one trained on real pairs (CheXGenBench 2.4).

    ``report_model``: how each is trained; ``preset`` needs image and text encoders, a report codec and generator.
    ``init``: a training or a checkpoint that all of them start from. ``samples`` images of each training report;
    ``limit`` of the training reports, ``test_limit`` of those to test on.
    """

    report_model: Training
    samples: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=8)
    test_limit: int | None = Field(default=None, ge=8)
    synthetic: dict[str, str] = Field(default_factory=dict[str, str])


class Fairness(Settings):
    """Bias of a classifier on real and on matched synthetic test images, and its mitigation (ChexGen).

    ``top_up``: all subgroups to ``share`` of the largest, or only the ``worst`` on split val. Age bands, sexes and
    races are those of :mod:`xgem.eval.subgroups`.
    """

    axes: tuple[Literal["sex", "race", "age"], ...] = Field(default=("sex", "race", "age"), min_length=1)
    classes: tuple[str, ...] | None = None
    network: Network = Network()
    inputs: tuple[Input, ...] = ("report", "demographics")
    samples: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=8)
    top_up: Literal["parity", "worst"] = "parity"
    share: float = Field(default=1.0, gt=0, le=1)
    min_n: int = Field(default=20, ge=2)


KINDS: Final[dict[str, type[Settings]]] = {
    "routes": Routes,
    "joint": Joint,
    "downstream": Downstream,
    "reports": ReportUtility,
    "fairness": Fairness,
}


class ExperimentPlan(Config):
    """One experiment; ``debug`` and ``paper`` are fields of its kind's settings, read by :meth:`sized`."""

    kinds: ClassVar[Mapping[str, type[Settings]]] = KINDS
    name: str
    kind: str
    title: str
    source: str
    debug: dict[str, Any] = Field(default_factory=dict[str, Any])
    paper: dict[str, Any] = Field(default_factory=dict[str, Any])

    @field_validator("kind")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in KINDS:
            raise ValueError(f"unknown kind {value!r}: expected one of {', '.join(KINDS)}")
        return value

    def sized(self, size: Size, changes: Sequence[str] = (), *, data: Path | None = None) -> Settings:
        """The settings of a size, with ``changes`` as ``KEY=VALUE`` (``tasks.main.network.runs=3``), on ``data``.

        Raises:
            ConfigError: a field that is unknown or not valid. InputError: a change that is not of this form.
        """
        values: dict[str, Any] = getattr(self, size)
        for change in changes:
            path, equals, text = change.partition("=")
            if not equals or not path.strip():
                raise InputError(f"--set {change}: expected KEY=VALUE, like bootstrap=100")
            values = _with(values, path.strip().split("."), parse_yaml(text, f"--set {change}"))
        if data is not None:
            values = {**values, "data": str(data)}
        return KINDS[self.kind].parse(values, f"{self.name}, {size}")


def _with(values: Any, path: Sequence[str], value: Any) -> dict[str, Any]:
    own: dict[str, Any] = dict(values) if isinstance(values, Mapping) else {}
    own[path[0]] = value if len(path) == 1 else _with(own.get(path[0]), path[1:], value)
    return own


def read_experiment(name: str, path: Path | None = None) -> ExperimentPlan:
    """The plan of an experiment: the one that ships with xgem, or one's own in the file ``path``.

    Raises:
        InputError: no such experiment; lists all. ConfigError: the file cannot be read, is of another experiment, or
            has a field that is not valid.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment {name!r}: expected one of {', '.join(EXPERIMENTS)}")
    shipped = _shipped(f"{name}.yaml")
    if path is None:
        return ExperimentPlan.parse(shipped, name)
    own = read_yaml(path)
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: expected the fields of an experiment, got {type(own).__name__}")
    values = cast(dict[str, Any], own)
    extended = values.pop("extends", name)
    if extended != name or values.get("name", name) != name:
        raise ConfigError(f"{path}: is of experiment {values.get('name', extended)!r}, expected {name!r}")
    for size in SIZES:
        if isinstance(values.get(size), dict):
            values[size] = {**shipped[size], **values[size]}
    return ExperimentPlan.parse({**shipped, **values}, str(path))


def published(name: str) -> dict[str, Any]:
    """The paper's figures for an experiment, by table (:mod:`xgem.experiments.papers.tables`); empty without any."""
    if not (resources.files("xgem.configs") / "experiments" / "published" / f"{name}.yaml").is_file():
        return {}
    return _shipped(f"published/{name}.yaml")


def _shipped(file: str) -> dict[str, Any]:
    text = (resources.files("xgem.configs") / "experiments" / file).read_text("utf-8")
    return cast(dict[str, Any], parse_yaml(text, file))
