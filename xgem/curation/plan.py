"""The plan of a curation: the fields of ``plan.yaml``, checked before anything is read.

::

    name: openchest
    sources:                                    # in order of preference: of copies, the first source's is kept
      - {name: nih, folder: data/nih}           # as `xgem data prepare nih` reads it
      - {name: openi, folder: data/openi, options: {extra: data/openi_extra}}
      - {name: ours, manifest: ours.parquet}    # or any manifest
    content:
      rotated: fix                              # by kind: drop, fix or note
      endpoint: {base_url: "http://localhost:8002/v1", model: medgemma}      # judges in place of the network
    describe:
      rewriter: {base_url: "http://localhost:8000/v1", model: gpt}
      checker: {base_url: "http://localhost:8001/v1", model: qwen}
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xgem.chat.settings import ChatSettings
from xgem.configs.base import first_wrong
from xgem.configs.yaml_text import read_yaml
from xgem.data.sources import FOLDERS
from xgem.types import ConfigError

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
_PLACE: Final = {"base_url", "api_key_env", "timeout", "retries", "concurrency"}
"""Of an endpoint what does not change its answers."""

Policy = Literal["drop", "fix", "note"]
Unfixable = Literal["drop", "note"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourcePlan(_Part):
    """A data set: a ``folder`` of one that xgem reads by ``name``, or a ``manifest`` with any name.

    ``options`` are those of the source's ``prepare`` (``{"extra": folder}`` of openi, for one). Paths start from the
    working folder.
    """

    name: str = Field(pattern=_NAME)
    folder: str | None = None
    manifest: str | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_one(self) -> SourcePlan:
        if (self.folder is None) == (self.manifest is None):
            raise ValueError(f"source {self.name!r}: expected one of folder and manifest")
        if self.options and self.folder is None:
            raise ValueError(f"source {self.name!r}: options are those of a folder; a manifest has none")
        if self.folder is not None and self.name not in FOLDERS:
            near = difflib.get_close_matches(self.name, FOLDERS, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"unknown source {self.name!r}; {hint}expected one of {', '.join(sorted(FOLDERS))}")
        return self


class DuplicatesPlan(_Part):
    """How copies are found. ``distance``: fingerprints further apart are not compared
    (:mod:`xgem.curation.fingerprint`); ``correlation`` of the fine structure from which two are one picture
    (:mod:`xgem.curation.align`). ``turned``: also copies that are rotated, mirrored or negative.
    """

    search: bool = True
    turned: bool = True
    distance: float = Field(default=34.0, gt=0, allow_inf_nan=False)
    correlation: float = Field(default=0.75, gt=0, le=1)


class ContentPlan(_Part):
    """What happens to a picture by kind: ``drop``, ``fix`` (turned, inverted, its view corrected) or ``note``.

    ``judge``: whether the network that ships with xgem looks at all images, and ``endpoint`` a vision model that does;
    by default the network does where no endpoint is given. Of both, either finds. Without them the rules alone do
    (unreadable, colour, blank, small). ``least_quality``: of the endpoint's grades 1 to 5 the least that is no
    ``non_diagnostic`` image. ``certainty`` is the probability from which the network is believed, of a chest radiograph
    as of all that may be wrong with one; ``override`` that from which its view counts for more than the stated one,
    and below which a note is kept. ``min_side`` in pixels; ``most_of_one``: share of one grey level from which an image
    counts as blank, ``clipped`` that of white.
    """

    judge: bool | None = None
    endpoint: ChatSettings | None = None
    certainty: float = Field(default=0.7, ge=0.5, lt=1)
    override: float = Field(default=0.9, ge=0.5, lt=1)
    not_chest: Unfixable = "drop"
    collage: Unfixable = "drop"
    view: Policy = "fix"
    rotated: Policy = "fix"
    inverted: Policy = "fix"
    mirrored: Unfixable = "note"
    text: Unfixable = "note"
    non_diagnostic: Unfixable = "drop"
    least_quality: int = Field(default=2, ge=1, le=5)
    blank: Unfixable = "drop"
    small: Unfixable = "drop"
    min_side: int = Field(default=128, ge=32)
    most_of_one: float = Field(default=0.7, gt=0, le=1)
    clipped: float = Field(default=0.4, gt=0, le=1)

    @model_validator(mode="after")
    def _is_graded(self) -> ContentPlan:
        if self.endpoint is None and (given := {"non_diagnostic", "least_quality"} & self.model_fields_set):
            raise ValueError(f"{min(given)} without an endpoint: nothing grades images")
        return self

    @property
    def network(self) -> bool:
        """Whether the network that ships with xgem looks at images."""
        return self.endpoint is None if self.judge is None else self.judge


class DescribePlan(_Part):
    """How studies are described, and how the descriptions are checked.

    ``reports``: ``keep`` leaves studies with a report theirs, ``replace`` describes them too. ``contradicted``: what
    becomes of a study whose own report contradicts its labels. Without a ``rewriter`` the structured description
    stands. ``attempts`` at each text; if all fail, ``failing`` says whether the structured description stands in.
    ``max_tokens`` counts those of ``tokenizer`` (a folder of transformers' format, T5's in ChexGen).
    """

    reports: Literal["keep", "replace"] = "keep"
    contradicted: Unfixable = "drop"
    rewriter: ChatSettings | None = None
    checker: ChatSettings | None = None
    attempts: int = Field(default=3, ge=1, le=10)
    failing: Literal["structured", "drop"] = "structured"
    max_words: int = Field(default=100, ge=5)
    tokenizer: str | None = None
    max_tokens: int = Field(default=120, ge=8)

    @model_validator(mode="after")
    def _has_a_writer(self) -> DescribePlan:
        if self.checker is not None and self.rewriter is None:
            raise ValueError("checker without a rewriter: nothing is written that it could check")
        return self


class CurationPlan(_Part):
    """A whole plan. ``part``: rows that are worked on, and kept, together; it does not change the result."""

    name: str = Field(pattern=_NAME)
    sources: tuple[SourcePlan, ...] = Field(min_length=1)
    part: int = Field(default=256, ge=1)
    duplicates: DuplicatesPlan = DuplicatesPlan()
    content: ContentPlan = ContentPlan()
    describe: DescribePlan = DescribePlan()

    @model_validator(mode="after")
    def _names_once(self) -> CurationPlan:
        names = [source.name for source in self.sources]
        twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
        if twice is not None:
            raise ValueError(f"sources: {twice!r} is there twice; give a manifest another name")
        return self

    def sha256(self, manifests: dict[str, str]) -> str:
        """Hash of what decides the result; ``manifests`` are the hashes of the sources' rows by name."""
        places = {"describe": {"rewriter": _PLACE, "checker": _PLACE}, "content": {"endpoint": _PLACE}}
        values = self.model_dump(mode="json", exclude=places)
        text = json.dumps({**values, "manifests": manifests}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_plan(path: str | Path) -> CurationPlan:
    """A plan from a YAML file.

    Raises:
        ConfigError: unreadable, not YAML, or a field that is unknown, missing or not valid; names it.
    """
    try:
        return CurationPlan.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_wrong(error, CurationPlan)}") from None
