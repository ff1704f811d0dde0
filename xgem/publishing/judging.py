"""Judges that choose synthetic images: a model at a chat endpoint, xgem's classifier, distances to real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from xgem.chat.messages import ChatFailure
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet, Item
from xgem.data.transforms import read_grey
from xgem.eval.features import extract
from xgem.judges import malformed
from xgem.judges.chat_roles import QualityJudge
from xgem.judges.extractors import Extractor, open_extractor
from xgem.judges.judge import OWN_JUDGE, OwnJudge, scores_of
from xgem.judges.saved import open_judge
from xgem.labels.rules import label_report
from xgem.labels.vocabulary import annotated_labels
from xgem.metrics.bootstrap import Array
from xgem.types import InputError
from xgem.utils.cache import evaluation_cache

FEATURES: Final = "mobilenet-v2"
"""The space in which malformed images are found: xgem trains nothing in it."""
MOST_TRAINING: Final = 2000
"""Real training images that synthetic ones are compared with, drawn at random from more."""


@dataclass(frozen=True)
class Picture:
    """An image of a manifest: its row, its file, and the text that it was asked for with."""

    row: Row
    file: Path

    @property
    def text(self) -> str:
        """Findings and impression."""
        return " ".join(part for part in (self.row.findings, self.row.impression) if part)

    @property
    def labels(self) -> dict[str, float]:
        """CheXpert's classes that are known, 1 or 0: of the row's labels, else by xgem's rules from the text."""
        if self.row.labels:
            return annotated_labels(self.row.labels, self.row.source)
        known = label_report(self.text) if self.text else {}
        return {name: float(label) for name, label in known.items() if label in (0, 1)}

    @property
    def item(self) -> Item:
        """As evaluations take it."""
        return Item(self.row.study, self.file, reading=self.row.reading)

    def pixels(self) -> NDArray[np.uint8]:
        """(h, w) uint8."""
        return read_grey(self.file, self.row.reading)


def pictures_of(manifest: Manifest) -> list[Picture]:
    """The images of a manifest whose view is known, in the order of its rows.

    Raises:
        InputError: there are none.
    """
    found: list[Picture] = []
    for row in manifest.rows:
        file = manifest.file(row)
        if file is not None and row.view is not None:
            found.append(Picture(row, file))
    if not found:
        raise InputError("the manifest has no images of a known view; expected a synthetic set with images")
    return found


@dataclass(frozen=True)
class Judged:
    """One judge's score of one image, None where it gave none; ``reason`` says why, or what it saw."""

    value: float | None
    reason: str = ""


class PictureJudge(Protocol):
    """``measure`` names the score; ``upwards``: higher is better."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def measure(self) -> str: ...

    @property
    def upwards(self) -> bool: ...

    def judge(self, pictures: Sequence[Picture]) -> Iterator[Judged]:
        """A score for each image, in order."""
        ...


@dataclass(frozen=True)
class ByQuality:
    """``quality``: 3 high, 2 medium, 1 low, 0 not relevant, by a vision model against the text."""

    role: QualityJudge
    measure: str = "quality"
    upwards: bool = True

    @property
    def name(self) -> str:
        """``chat:MODEL``."""
        return self.role.name

    @property
    def version(self) -> str:
        """Of model, sampling and prompt."""
        return self.role.version

    def judge(self, pictures: Sequence[Picture]) -> Iterator[Judged]:
        """As the protocol; an image without an answer has no score.

        Raises:
            EndpointError: the endpoint cannot be used at all; answers so far are kept.
        """
        for grade in self.role.grade((picture.pixels(), picture.text) for picture in pictures):
            if isinstance(grade, ChatFailure):
                yield Judged(None, f"no answer: {grade.reason}")
            else:
                yield Judged(float(grade.score), grade.reason)


class ByFindings:
    """``agreement``: how xgem's classifier sees the known findings as they were asked for, 0 to 1.

    The mean of two shares: of the classes that were asked for, those that are shown, and of the classes that are to be
    absent, those that are not shown. "No Finding" is a class that normal images are asked for. Where nothing was asked
    for, or nothing is to be absent, it is the other share alone.
    """

    name = OWN_JUDGE
    measure = "agreement"
    upwards = True

    def __init__(self, views: Sequence[str], device: str = "cpu") -> None:
        self._judges: dict[str, OwnJudge] = {view: open_judge(None, view, None, device=device) for view in views}

    @property
    def version(self) -> str:
        """Hashes of the classifiers, by view."""
        return ", ".join(f"{view} {judge.weights}" for view, judge in sorted(self._judges.items()))

    def judge(self, pictures: Sequence[Picture]) -> Iterator[Judged]:
        """As the protocol; an image has no score if no finding is known, or none asked for is the classifier's."""
        return _view_by_view(pictures, self._judges, self._of_view)

    def _of_view(self, view: str, pictures: Sequence[Picture]) -> list[Judged]:
        judge = self._judges[view]
        images = EvalSet(view, tuple(picture.item for picture in pictures), pad=True)
        shown = scores_of(judge, images) > judge.thresholds
        rows = (dict(zip(judge.classes, row.tolist(), strict=True)) for row in shown)
        return [_agreement(picture.labels, row) for picture, row in zip(pictures, rows, strict=True)]


def _agreement(asked: Mapping[str, float], shown: Mapping[str, bool]) -> Judged:
    compared = {name: label == 1 for name, label in asked.items() if name in shown and label in (0, 1)}
    positive = [name for name, label in asked.items() if label == 1]
    if not compared or (positive and not any(compared.values())):
        return Judged(None, f"the classifier does not know {', '.join(positive) or 'any finding that is known'}")
    wrong = [name for name, label in compared.items() if shown[name] != label]
    said = ", ".join(f"{name} {'not shown' if compared[name] else 'shown, not asked for'}" for name in wrong)
    sides = [[shown[name] == label for name, label in compared.items() if label is side] for side in (True, False)]
    return Judged(float(np.mean([np.mean(side) for side in sides if side])), said)


@dataclass(frozen=True)
class _Known:
    """Real images of one view: the neighbourhoods in both spaces, and the hashes of the sets they are of."""

    spaces: Mapping[str, malformed.Neighbourhood]
    sha256: str

    @classmethod
    def of(cls, real: Path, view: str, extractor: Extractor, size: int, seed: int) -> _Known:
        training = read_set(real, split="train", view=view, pad=True, name="training").with_images()
        if len(training) > MOST_TRAINING:
            drawn = np.random.default_rng(seed).choice(len(training), MOST_TRAINING, replace=False)
            training = training.subset(np.sort(drawn))
        studies = [study for study in Manifest.read(real).studies() if study.split != "train"]
        files = [(study, study.images[view][0]) for study in studies if view in study.images]
        if len(files) < malformed.FEWEST:
            raise InputError(
                f"{real}: {len(files)} held-out images of view {view}, expected at least {malformed.FEWEST} in val or "
                "test for the threshold of malformed images"
            )
        items = tuple(Item(study.id, file, reading=study.reading_of(file)) for study, file in files)
        held_out = EvalSet("held out", items, pad=True)
        known, rest = (_vectors(images, extractor, size) for images in (training, held_out))
        spaces = {
            name: malformed.Neighbourhood.fitted(known[name], rest[name], scaled=name != "features") for name in known
        }
        return cls(spaces, f"{view} {training.sha256[:16]} {held_out.sha256[:16]}")


class ByRealImages:
    """``malformed``: distance to real images over the threshold, the larger of two spaces; 1 or more is malformed.

    Features and grey levels as in :mod:`xgem.judges.malformed`, of images padded to squares of ``size`` pixels.
    Training images are the split train of the manifest ``real``, thresholds are of its other splits.

    Raises:
        InputError: fewer than 50 held-out images of a view. DataError: no training images of it.
    """

    name = measure = "malformed"
    upwards = False

    def __init__(self, real: Path, views: Sequence[str], size: int, *, device: str = "cpu", seed: int = 0) -> None:
        self._extractor = open_extractor(FEATURES, device=device)
        self._size = size
        self._known = {view: _Known.of(real, view, self._extractor, size, seed) for view in views}

    @property
    def version(self) -> str:
        """Hashes of the network and of the real images."""
        real = ", ".join(known.sha256 for _, known in sorted(self._known.items()))
        return f"{FEATURES} {self._extractor.weights[:16]}, real images {real}"

    def judge(self, pictures: Sequence[Picture]) -> Iterator[Judged]:
        """As the protocol."""
        return _view_by_view(pictures, self._known, self._of_view)

    def _of_view(self, view: str, pictures: Sequence[Picture]) -> list[Judged]:
        images = EvalSet(view, tuple(picture.item for picture in pictures), pad=True)
        vectors = _vectors(images, self._extractor, self._size)
        spaces = self._known[view].spaces
        ratios = {name: space.distances(vectors[name]) / space.threshold for name, space in spaces.items()}
        judged: list[Judged] = []
        for values in zip(*ratios.values(), strict=True):
            beyond = [name for name, value in zip(ratios, values, strict=True) if value > 1]
            judged.append(Judged(float(max(values)), f"unlike real ones in {' and '.join(beyond)}" if beyond else ""))
        return judged


def _view_by_view(
    pictures: Sequence[Picture], views: Iterable[str], judge: Callable[[str, Sequence[Picture]], list[Judged]]
) -> Iterator[Judged]:
    """What ``judge`` says of each view's images, in the order of all."""
    found: dict[int, Judged] = {}
    for view in views:
        numbers = [number for number, picture in enumerate(pictures) if picture.row.view == view]
        if numbers:
            found |= zip(numbers, judge(view, [pictures[number] for number in numbers]), strict=True)
    yield from (found[number] for number in range(len(pictures)))


def _vectors(images: EvalSet, extractor: Extractor, size: int) -> dict[str, Array]:
    features: Any = extract(images, extractor, evaluation_cache(), size=size)
    grey = np.concatenate([malformed.grey_statistics(batch) for batch in images.batches(size)])
    return {"features": features, "grey levels": grey}
