"""What models at a chat endpoint are used as: captioner, report writer, judge of quality and of content, report
labeller, judge of findings. Structured facts are rewritten by ``xgem data curate``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, create_model

from xgem.chat.endpoint import ChatEndpoint
from xgem.chat.messages import ChatAnswer, ChatFailure, ChatRequest
from xgem.chat.settings import PREFIX, ChatSettings
from xgem.judges import chat_prompts as prompts
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Array
from xgem.types import EndpointError
from xgem.utils.cache import evaluation_cache

S = TypeVar("S", bound=BaseModel)
Image = NDArray[np.uint8]
JUDGE_SIZE: Final = 512
"""Side in pixels of the images that a judge of findings is shown: vision models resize to their own."""
_LABELS: Final[dict[str, float]] = {"present": 1.0, "absent": 0.0, "uncertain": -1.0, "not mentioned": math.nan}
_GRADES: Final[dict[str, int]] = {"high": 3, "medium": 2, "low": 1, "not relevant": 0}


def open_endpoint(name: str) -> ChatEndpoint:
    """The endpoint of ``chat:FILE`` or ``chat:URL#MODEL``; its answers are kept in the cache of evaluations.

    Raises:
        ConfigError: as :meth:`xgem.chat.settings.ChatSettings.named`, or a key that is not set.
    """
    return ChatEndpoint(ChatSettings.named(name), cache=evaluation_cache() / "chat")


class Quality(BaseModel):
    """A grade of one image, CheXGenBench's of SynthCheX-75K (appendix F), and its reason."""

    model_config = ConfigDict(frozen=True)
    grade: Literal["high", "medium", "low", "not relevant"]
    reason: str = Field(max_length=300)

    @property
    def score(self) -> int:
        """3 high, 2 medium, 1 low, 0 not relevant."""
        return _GRADES[self.grade]


class PictureContent(BaseModel):
    """What a picture is. ``turn_clockwise``: the degrees that make it upright; ``quality``: 5 excellent, 3 limited but
    diagnostic, 1 not diagnostic."""

    model_config = ConfigDict(frozen=True)
    chest_radiograph: bool
    collage: bool
    view: Literal["frontal", "lateral", "other"]
    turn_clockwise: Literal[0, 90, 180, 270]
    negative: bool
    mirrored: bool
    text: bool
    quality: int = Field(ge=1, le=5)
    reason: str = Field(max_length=300)


class WrittenReport(BaseModel):
    """A report by its sections."""

    model_config = ConfigDict(frozen=True)
    findings: str = Field(min_length=1, max_length=4000)
    impression: str = Field(min_length=1, max_length=1500)


@dataclass(frozen=True)
class _Role:
    endpoint: ChatEndpoint

    @property
    def name(self) -> str:
        """``chat:MODEL``."""
        return f"{PREFIX}{self.endpoint.settings.model}"

    @property
    def version(self) -> str:
        """Hash of the model's name, the sampling and the version of the prompts: no more is known of a served model."""
        settings = self.endpoint.settings
        asked = [type(self).__name__, settings.model, settings.temperature, settings.seed, prompts.VERSION]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _values(self, requests: Iterable[ChatRequest], schema: type[S]) -> Generator[S | ChatFailure]:
        for answer in self.endpoint.ask_many(requests):
            if isinstance(answer, ChatFailure):
                yield answer
            else:
                assert isinstance(answer.value, schema)
                yield answer.value

    def _all(self, requests: Sequence[ChatRequest], schema: type[S], what: str) -> list[S]:
        """All answers; EndpointError if there is one that never came, as an evaluation without it would be another."""
        values: list[S] = []
        failures: list[str] = []
        for value in self._values(requests, schema):
            failures.append(value.reason) if isinstance(value, ChatFailure) else values.append(value)
        if failures:
            raise EndpointError(
                f"{self.endpoint.name}: no answer for {len(failures)} of {len(requests)} {what}, first: {failures[0]}; "
                "run again: the other answers are kept"
            )
        return values


@dataclass(frozen=True)
class Captioner(_Role):
    """Describes images."""

    def describe(self, images: Iterable[Image]) -> Generator[str | ChatFailure]:
        """A description of each image, (h, w) uint8, in order; images are taken as needed."""
        return _texts(self.endpoint, (ChatRequest("Describe it.", prompts.CAPTION, (image,)) for image in images))


@dataclass(frozen=True)
class QualityJudge(_Role):
    """Grades images, alone or against a description."""

    def grade(self, images: Iterable[tuple[Image, str]]) -> Generator[Quality | ChatFailure]:
        """The grade of each image (h, w) uint8 with its description (which may be empty), in order."""

        def request(image: Image, text: str) -> ChatRequest:
            system = prompts.QUALITY.format(against=prompts.AGAINST_TEXT if text else "")
            return ChatRequest(f"Description: {text}" if text else "Grade it.", system, (image,), Quality)

        return self._values((request(*one) for one in images), Quality)


@dataclass(frozen=True)
class ContentRole(_Role):
    """Says what pictures are, for the curation of data sets."""

    def look(self, images: Iterable[Image]) -> Generator[ChatAnswer | ChatFailure]:
        """The answer on each image (h, w) uint8, in order, with its tokens; its value is a :class:`PictureContent`.
        Images are taken as needed."""
        return self.endpoint.ask_many(
            ChatRequest("Judge it.", prompts.CONTENT, (image,), PictureContent) for image in images
        )


@dataclass(frozen=True)
class ChatLabeller(_Role):
    """A :class:`~xgem.judges.report_labellers.ReportLabeller`."""

    def label(self, reports: Sequence[str]) -> Array:
        """As the protocol; equal reports are asked once, an empty one mentions nothing.

        Raises:
            EndpointError: a report got no answer.
        """
        schema = _by_class(Literal["present", "absent", "uncertain", "not mentioned"])
        texts = list(dict.fromkeys(text for text in reports if text.strip()))
        answers = self._all([ChatRequest(text, prompts.LABELS, (), schema) for text in texts], schema, "reports")
        known = {text: [_LABELS[label] for label in _fields(one)] for text, one in zip(texts, answers, strict=True)}
        empty = [math.nan] * len(CHEXPERT_CLASSES)
        rows = [known.get(text, empty) for text in reports]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(CHEXPERT_CLASSES))


@dataclass(frozen=True)
class ReportWriter(_Role):
    """Writes reports of studies."""

    def write(self, studies: Iterable[Mapping[str, Image]]) -> Generator[WrittenReport | ChatFailure]:
        """The report of each study, images (h, w) uint8 by view, in order; studies are taken as needed."""

        def request(images: Mapping[str, Image]) -> ChatRequest:
            views = ", ".join(images)
            return ChatRequest(f"Images: {views}.", prompts.REPORT, tuple(images.values()), WrittenReport)

        return self._values((request(one) for one in studies), WrittenReport)


@dataclass(frozen=True)
class ChatJudge(_Role):
    """A :class:`~xgem.judges.judge.Judge` of CheXpert's classes, by the probabilities that the model states."""

    size: int = JUDGE_SIZE

    @property
    def weights(self) -> str:
        """As ``version``."""
        return self.version

    @property
    def classes(self) -> tuple[str, ...]:
        """CheXpert's 14."""
        return CHEXPERT_CLASSES

    def scores(self, images: Image) -> Array:
        """As the protocol.

        Raises:
            EndpointError: an image got no answer.
        """
        schema = _by_class(int, ge=0, le=100)
        requests = [ChatRequest("Judge it.", prompts.FINDINGS, (image,), schema) for image in images]
        answers = self._all(requests, schema, "images")
        rows = [[value / 100 for value in _fields(one)] for one in answers]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(CHEXPERT_CLASSES))


@cache
def _by_class(kind: Any, **bounds: Any) -> type[BaseModel]:
    """A schema with one field for each of CheXpert's classes."""
    fields: dict[str, Any] = {_key(name): (kind, Field(title=name, **bounds)) for name in CHEXPERT_CLASSES}
    return create_model("Findings", **fields)


def _key(name: str) -> str:
    return name.lower().replace(" ", "_")


def _fields(answer: BaseModel) -> list[Any]:
    return [getattr(answer, _key(name)) for name in CHEXPERT_CLASSES]


def _texts(endpoint: ChatEndpoint, requests: Iterable[ChatRequest]) -> Generator[str | ChatFailure]:
    for answer in endpoint.ask_many(requests):
        yield answer.text if isinstance(answer, ChatAnswer) else answer
