"""What a downstream task has to answer, so that one loop trains and one runner compares them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xgem.data.sets import EvalSet, Images
from xgem.data.study import Study
from xgem.judges.settings import UtilitySettings
from xgem.judges.tasks.data import Data, Targets, annotated
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.metrics.classification import Measures
from xgem.types import InputError

Predictions = dict[str, NDArray[Any]]
"""What a trained network says of the test images, as arrays to be cached."""

Annotation = TypeVar("Annotation")


class Task(Protocol):
    """A downstream task. ``classes`` names its outputs, ``headline`` the measure that protocols are compared by.

    ``per_case`` names what :meth:`cases` gives: a score that every test case has by itself, for the Wilcoxon test.
    ``lower_is_better`` names measures. ``autocast``: whether a GPU may train it in bfloat16.
    """

    settings: UtilitySettings
    classes: tuple[str, ...]
    headline: str
    per_case: str
    lower_is_better: frozenset[str]
    autocast: bool

    def usable(self, items: EvalSet) -> EvalSet:
        """The items that have an image and a target; InputError where none has."""
        ...

    def targets(self, items: EvalSet) -> Targets: ...

    def presence(self, targets: Targets) -> NDArray[np.bool_]:
        """(n, classes): which class each image shows, for balanced sampling."""
        ...

    def network(self) -> nn.Module: ...

    def prepare(self, network: nn.Module, targets: Targets) -> None:
        """Set what of the network follows from the targets of its (last) training set."""
        ...

    def loss(self, network: nn.Module, x: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Of a batch: ``x`` (b, 1, s, s) in [-1, 1], targets on the same device; augments by itself."""
        ...

    def predict(self, network: nn.Module, images: Images, device: torch.device) -> Predictions: ...

    def measures(self, predictions: Predictions, test: Data, bootstrap: Bootstrap) -> Measures: ...

    def cases(self, predictions: Predictions, test: Data) -> Array: ...

    def missing(self, test: Data) -> dict[tuple[str, str], str]:
        """Measures (name, class) that the test set cannot give, with the reason."""
        ...


def with_targets(items: EvalSet, has: Sequence[bool], what: str) -> EvalSet:
    """The items with an image for which ``has`` is true; InputError where none is."""
    rows = [row for row, (item, one) in enumerate(zip(items.items, has, strict=True)) if one and item.file is not None]
    if not rows:
        raise InputError(f"{items.name}: none of its {len(items)} items has an image and {what}; this task needs both")
    return items if len(rows) == len(items) else items.subset(rows)


class OfStudies(ABC, Generic[Annotation]):
    """The part of a :class:`Task` whose targets are annotations of the items' studies, each read once.

    ``what`` names an annotation in messages.
    """

    what: ClassVar[str]

    def __init__(self, settings: UtilitySettings, classes: Sequence[str], studies: Mapping[str, Study]) -> None:
        self.settings = settings
        self.classes = tuple(classes)
        self._studies = studies
        self._known: dict[str, Annotation] = {}

    @abstractmethod
    def names(self, study: Study) -> Iterable[str]:
        """Of which classes the study has annotations."""

    @abstractmethod
    def read(self, study: Study) -> Annotation:
        """The study's annotations of ``classes``, on the task's grid."""

    def usable(self, items: EvalSet) -> EvalSet:
        has = [
            study is not None
            and (self.settings.absent == "empty" or any(name in self.classes for name in self.names(study)))
            for study in annotated(items, self._studies)
        ]
        return with_targets(items, has, f"a {self.what} of {' or '.join(self.classes)}")

    def annotations(self, items: EvalSet) -> list[Annotation]:
        """What :meth:`read` gives for the study of each item that has one."""
        studies = [study for study in annotated(items, self._studies) if study is not None]
        for study in studies:
            if study.id not in self._known:
                self._known[study.id] = self.read(study)
        return [self._known[study.id] for study in studies]

    def prepare(self, network: nn.Module, targets: Targets) -> None:
        """Nothing follows from the targets."""
