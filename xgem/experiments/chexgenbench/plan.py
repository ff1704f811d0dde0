"""The plan of a benchmark: the fields of ``plan.yaml``, checked before anything is generated.

::

    name: mine
    data: {manifest: openi.parquet, train: train, test: val}
    # or the benchmark's own files: {annotations: {train: TRAIN.csv, test: TEST.csv, images: files}}
    models:
      - {name: openi-256, model: openi-256, sampling: {num_inference_steps: 20}}
      - {name: theirs, sets: {test: theirs/test, privacy: theirs/privacy, train: theirs/train}}
    parts: [fidelity, privacy, classification, reports]
    fidelity: {n: 5034}
    privacy: {prompts: 2000, seeds: 10, reid: reid.safetensors}
    classification: {n: 20000}
    reports: {n: 20000}
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from xgem.configs.base import first_wrong
from xgem.configs.yaml_text import read_yaml
from xgem.data.rows import Split
from xgem.judges.extractors import NAMES
from xgem.judges.settings import PRESETS
from xgem.metrics.privacy import DELTA
from xgem.pipeline.limits import MAX_SEED
from xgem.pipeline.options import SamplingOptions
from xgem.types import ConfigError, InputError

Part = Literal["fidelity", "privacy", "classification", "reports"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
SPACES: Final = ("inception-v3", "rad-dino", "biovil-t", "radiomics", "mobilenet-v2")
"""The benchmark's feature spaces, and ImageNet's MobileNetV2, whose weights ship with xgem."""
LEADING: Final = "rad-dino"
"""The space of the paper's tables."""
PLANS: Final = {"debug": "chexgenbench-debug.yaml", "paper": "chexgenbench.yaml"}
_FOLDER: Final = Path(__file__).parents[2] / "configs" / "experiments"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Annotations(_Part):
    """The benchmark's annotations: CSVs with ``path``, ``annotated_prompt`` and ``chexpert_labels``.

    ``images`` is the folder that the paths start from; by default a CSV's own.
    """

    train: Path
    test: Path
    images: Path | None = None


class Data(_Part):
    """The real studies: a manifest and two of its splits, or the benchmark's annotations.

    ``unique_prompts`` keeps one study of those with the same text, as the published code does. ``train_n`` and
    ``test_n`` keep so many studies of a split, drawn by a hash of their ids.
    """

    manifest: Path | None = None
    annotations: Annotations | None = None
    train: Split = "train"
    test: Split = "test"
    sections: tuple[Literal["findings", "impression"], ...] = Field(default=("impression",), min_length=1)
    unique_prompts: bool = True
    train_n: int | None = Field(default=None, ge=6)
    test_n: int | None = Field(default=None, ge=6)

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if (self.manifest is None) == (self.annotations is None):
            raise ValueError("expected one of manifest and annotations")
        if self.train == self.test:
            raise ValueError(f"train and test are both {self.test!r}: expected two splits")
        if self.annotations is not None and (self.train, self.test) != ("train", "test"):
            raise ValueError("the annotations' splits are train and test: leave the names out")
        return self


class Sets(_Part):
    """Images that a model made already: folders or tables as `xgem eval` reads them, by what they are for.

    ``test`` answers to the test prompts, ``privacy`` to training prompts with several samples each, ``train`` to
    training prompts; ``reports`` are reports of the real test images by a report model that learned from ``train``.
    """

    test: Path | None = None
    privacy: Path | None = None
    train: Path | None = None
    reports: Path | None = None

    @model_validator(mode="after")
    def _something(self) -> Sets:
        if not any(vars(self).values()):
            raise ValueError("expected at least one of test, privacy, train and reports")
        return self


class Model(_Part):
    """A model that ``xgem.load`` opens, with its sampling options, or the ``sets`` of one that cannot be run here."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    model: str | None = None
    revision: str | None = None
    sampling: SamplingOptions = SamplingOptions()
    sets: Sets | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.model is None) == (self.sets is None):
            raise ValueError(f"model {self.name!r}: expected one of model and sets")
        return self


class Fidelity(_Part):
    """``n`` test prompts, None for all; features of each of ``spaces``; ``per_finding``: the conditional analysis."""

    n: int | None = Field(default=None, ge=1)
    spaces: tuple[str, ...] = Field(default=SPACES, min_length=1)
    per_finding: bool = True

    @field_validator("spaces")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for space in value:
            name = space.partition("=")[0]
            if name not in NAMES and not name.startswith("xgem:"):
                raise ValueError(f"unknown feature space {name!r}: expected one of {', '.join(NAMES)}")
        return value


class Privacy(_Part):
    """``prompts`` training prompts with ``seeds`` samples each; ``reid``: a re-identification network's file,
    or ``xgem`` for the one that ships."""

    prompts: int = Field(default=2000, ge=1)
    seeds: int = Field(default=10, ge=1)
    spaces: tuple[str, ...] = (LEADING,)
    reid: Path | None = None
    delta: float = Field(default=DELTA, gt=0, lt=1)
    size: int | None = Field(default=None, ge=16)


class Classification(_Part):
    """A classifier trained on ``n`` synthetic images alone, and one on the real images of the same prompts."""

    n: int = Field(default=20_000, ge=2)
    settings: str = "chexgenbench"
    epochs: int | None = Field(default=None, ge=1)
    runs: int = Field(default=1, ge=1)

    @field_validator("settings")
    @classmethod
    def _known(cls, value: str) -> str:
        known = [name for task, name in PRESETS if task == "classification"]
        if value not in known:
            raise ValueError(f"unknown settings {value!r}: expected one of {', '.join(known)}")
        return value


class Reports(_Part):
    """A report model trained on ``n`` synthetic pairs, and one on the real pairs of the same prompts.

    ``preset`` and ``init`` are those of `xgem train`, of which encoders and report codec are taken; ``stages`` are
    trained, for ``steps`` each; ``test_n`` real images are described.
    """

    n: int = Field(default=20_000, ge=2)
    test_n: int | None = Field(default=None, ge=2)
    preset: str = "openi-256"
    init: str | None = "openi-256"
    stages: tuple[str, ...] = Field(default=("report",), min_length=1)
    steps: int | None = Field(default=None, ge=1)
    chexbert: Path | None = None
    chexbert_vocabulary: Path | None = None
    radgraph_python: Path | None = None


def _once(value: Any) -> Any:
    if isinstance(value, list | tuple):
        twice = [str(name) for name, count in Counter(map(str, value)).items() if count > 1]
        if twice:
            raise ValueError(f"duplicate {twice[0]!r}")
    return value


class Plan(_Part):
    """A whole benchmark. Paths start from the working folder; ``$XGEM_DATA`` in them is replaced.

    ``compat`` measures as the published code does where that differs from the paper: KID subsets as large as the
    sets, and distances to the training image of the own prompt alone. ``debug``: all pages say that the numbers mean
    nothing, and there is no overall rank.
    """

    name: str = "chexgenbench"
    data: Data
    models: tuple[Model, ...] = Field(min_length=1)
    parts: Annotated[tuple[Part, ...], BeforeValidator(_once)] = Field(default=PARTS, min_length=1)
    fidelity: Fidelity = Fidelity()
    privacy: Privacy = Privacy()
    classification: Classification = Classification()
    reports: Reports = Reports()
    judge: str | None = None
    compat: bool = False
    debug: bool = False
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    bootstrap: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def _named_once(self) -> Plan:
        _once([model.name for model in self.models])
        return self


def read_bench(path: str | Path | None, *, size: str = "debug") -> Plan:
    """A plan from a YAML file, or the shipped one of a size (:data:`PLANS`).

    Raises:
        ConfigError: unreadable, not YAML, or a field that is unknown, missing or not valid; names it.
        InputError: an unknown size.
    """
    if path is None:
        if size not in PLANS:
            raise InputError(f"unknown size {size!r}: expected {' or '.join(PLANS)}")
        path = _FOLDER / PLANS[size]
    try:
        return Plan.model_validate(_with_data_folder(read_yaml(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_wrong(error, Plan)}") from None


def _with_data_folder(value: Any) -> Any:
    """The values with ``$XGEM_DATA`` replaced by that variable, where it is set."""
    import os

    if isinstance(value, dict):
        return {key: _with_data_folder(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_data_folder(part) for part in value]
    return value.replace("$XGEM_DATA", os.environ.get("XGEM_DATA", "$XGEM_DATA")) if isinstance(value, str) else value
