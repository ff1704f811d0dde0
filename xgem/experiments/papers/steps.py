"""What all experiments do: begin a folder, train models, generate cohorts, keep the results of each step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from xgem.configs.preset import Preset, load_preset
from xgem.data.manifest import Manifest
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet
from xgem.eval.cohorts import Cohorts
from xgem.eval.record import FamilyResult
from xgem.eval.report import write_results
from xgem.eval.schema import FamilyEntry, read_record
from xgem.experiments.papers import made_up
from xgem.experiments.papers.plans import ExperimentPlan, Settings, Size, Training
from xgem.types import DataError, InputError, OutputError
from xgem.utils.cache import evaluation_cache
from xgem.utils.files import check_output_folder, file_sha256, locked, replacing, write_json
from xgem.utils.progress import announce
from xgem.utils.signals import interruptible

BEGUN: Final = "experiment.json"
SKEWED: Final = "made-up-skewed"
MADE_UP: Final = ("made-up", "made-up-external", SKEWED)
"""Names that stand for drawn studies in place of a manifest."""


@dataclass(frozen=True)
class Bench:
    """One experiment in its folder ``out``.

    ::

        experiment.json                     what was begun: the settings, and hashes of manifests and models
        data/ trained/ cohorts/             drawn studies, models trained here, generated sets
        steps/STEP/results.json             the record of a step that is finished
        table.md table.csv                  the paper's tables
    """

    plan: ExperimentPlan
    size: Size
    settings: Settings
    out: Path
    device: str | None = None
    progress: bool = True
    _opened: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def cache(self) -> Path:
        return evaluation_cache()

    @cached_property
    def place(self) -> str:
        """The device of networks that judge."""
        from xgem.utils.devices import resolve_device

        return str(resolve_device(self.device))

    def manifest(self, name: str | None) -> Path:
        """The manifest of a name: a path, or drawn studies; None is the experiment's ``data``.

        Raises:
            InputError: none is given, or there is no such file.
        """
        wanted = name or self.settings.data
        if wanted is None:
            raise InputError(
                f"{self.plan.name}, {self.size}: no data; give a manifest (--data, or data: in the plan), or made-up"
            )
        if wanted in MADE_UP:
            return made_up.draw(
                self.out / "data" / wanted, name=wanted, seed=MADE_UP.index(wanted), skewed=wanted == SKEWED
            )
        if not Path(wanted).is_file():
            raise InputError(f"{wanted}: no such manifest; {self.plan.name} needs one")
        return Path(wanted)

    def read(self, data: Path, split: str, **options: Any) -> EvalSet:
        """Images or reports of a split of a manifest, whose images may have any size."""
        return read_set(data, split=split, pad=True, name=f"{data.stem}, {split}", **options)

    def enter(self) -> None:
        """Make the folder, or find an experiment in it, or drawn studies of one that did not get further.

        Raises:
            OutputError: it holds something else, or cannot be written.
        """
        drawn = {self.out / "data" / name for name in MADE_UP}
        if not (self.out / BEGUN).exists() and self.out.is_dir():
            inside = {path for path in self.out.iterdir() if path.name != "data"}
            if inside or {path for path in (self.out / "data").glob("*") if not path.name.startswith(".")} - drawn:
                check_output_folder(self.out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.out}: cannot be written ({error.strerror or error})") from error

    def begin(self, manifests: Sequence[Path]) -> None:
        """Begin the experiment, or go on with it.

        Raises:
            OutputError: the folder holds an experiment with other settings.
        """
        named = {name: Path(one) / "model_index.json" for name, one in self.settings.models.items()}
        begun = {
            "experiment": self.plan.name,
            "size": self.size,
            "settings": self.settings.model_dump(mode="json"),
            "manifests": [file_sha256(path) for path in manifests],
            "models": {name: file_sha256(index) for name, index in named.items() if index.is_file()},
        }
        with locked(self.out):
            if not (self.out / BEGUN).exists():
                with replacing(self.out / BEGUN) as partial:
                    write_json(partial, begun)
                return
            try:
                old: dict[str, Any] = json.loads((self.out / BEGUN).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise OutputError(f"{self.out}: its {BEGUN} cannot be read ({error}); choose another folder") from None
        difference = _difference(old, json.loads(json.dumps(begun)))
        if difference:
            raise OutputError(f"{self.out}: was begun with another {difference}; choose another folder")

    def step(self, name: str, make: Callable[[], Sequence[FamilyResult]]) -> list[FamilyEntry]:
        """The results of a step: those that were kept, or those that ``make`` gives, which are then kept."""
        folder = self.out / "steps" / name
        if not (folder / "results.json").is_file():
            announce(f"{self.plan.name}: step {name}", shown=self.progress)
            write_results(make(), folder, "results", settings={"experiment": self.plan.name, "step": name})
        return read_record(folder / "results.json").families

    def model(self, name: str) -> str:
        """Where the model of a name is: trained here, or whatever ``xgem.load`` takes."""
        source = self.settings.models[name]
        return str(self.trained(source)) if source in self.settings.training else source

    def trained(self, name: str) -> Path:
        """The checkpoint of a training of the plan; what is missing of it is trained."""
        training = self.settings.training[name]
        source = training.init
        init = self.trained(source) if source in self.settings.training else source
        return self.train(name, training, self.manifest(None), init)

    def train(
        self, name: str, training: Training, data: Path, init: Path | str | None, *, preset: Preset | None = None
    ) -> Path:
        """Train the stages of ``training`` into ``trained/NAME``, resumed where it stopped; ``preset`` in place of its
        own."""
        from xgem.checkpoints.locate import locate
        from xgem.train.loop import FINISHED, LoopOptions
        from xgem.train.processes import together
        from xgem.train.stages import run

        root = self.out / "trained" / name
        if all((root / "training" / stage / FINISHED).is_file() for stage in training.stages):
            return root
        announce(f"{self.plan.name}: training {name}", shown=self.progress)
        start = None if init is None else locate(str(init)).root
        options = LoopOptions(resume=True, progress=self.progress, tensorboard=False)
        with together(self.device), interruptible("the same command goes on"):
            run(training.stages, preset or preset_of(training), data, root, options, seed=training.seed, init=start)
        return root

    def cohorts(self, model: str, name: str, data: Path, split: str, **options: Any) -> Cohorts:
        """Cohorts of an opened model, matched to a split, in ``cohorts/NAME``."""
        from xgem.api import load

        if model not in self._opened:
            self._opened.clear()  # one model in memory at a time
            self._opened[model] = load(model, device=self.device)
        pipe, folder = self._opened[model], self.out / "cohorts" / name
        sampling = self.settings.generating.sampling(options.pop("limit", None))
        how: dict[str, Any] = {"device": self.device, "progress": self.progress, **options}
        return Cohorts(model, pipe, data, split, folder, sampling, **how)


def preset_of(training: Training) -> Preset:
    """The preset of a training with what differs: settings of stages, and fields of components.

    Raises:
        ConfigError, InputError: an unknown preset, stage, component or field, or a value that is not valid.
    """
    from xgem.configs.changes import with_stage_settings

    preset = load_preset(training.preset)
    known = {name: preset.train[name] for name in training.stages if name in preset.train}
    stages = with_stage_settings(known, training.set, steps=training.steps)
    values = preset.model_dump(mode="json")
    for name, fields in training.components.items():
        if name not in values["components"]:
            raise InputError(f"preset {preset.name!r} has no component {name!r}, only {', '.join(preset.components)}")
        other = fields.get("kind", values["components"][name]["kind"]) != values["components"][name]["kind"]
        values["components"][name] = fields if other else {**values["components"][name], **fields}
    changed = Preset.parse(values, f"training {training.preset}") if training.components else preset
    return changed.model_copy(update={"train": {**changed.train, **stages}})


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> str:
    """The first field in which two records differ; empty where they do not."""
    for name in dict.fromkeys((*old, *new)):
        where = f"{path}.{name}" if path else str(name)
        one, other = old.get(name), new.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            inner = _difference(one, other, where)
            if inner:
                return inner
        elif one != other:
            return f"{where} ({_short(one)}, now {_short(other)})"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{hashlib.sha256(text.encode()).hexdigest()[:12]}..."


def need(have: bool, what: str) -> None:
    """Refuse data that lack something an experiment needs.

    Raises:
        DataError: says what is lacking, and what was expected.
    """
    if not have:
        raise DataError(what)


def manifest_splits(data: Path, *splits: str) -> None:
    """Refuse a manifest without studies in one of the splits.

    Raises:
        DataError: names the split.
    """
    found = {row.split for row in Manifest.read(data).rows}
    for split in splits:
        need(split in found, f"{data}: no study of split {split!r}; this experiment needs {' and '.join(splits)}")
