"""What is known of all studies of a corpus without reading one of them: arrays, gathered once."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xgem.data.study import Study
from xgem.labels.views import VIEWS
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels, is_affirmation
from xgem.types import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FIELDS = ("age", "race", "severity", "sex")
"""Those of ``Corpus.known``, in alphabetical order."""
CLASSES = tuple(sorted(CHEXPERT_CLASSES))


class Described(NamedTuple):
    """A study with its ``texts``, what is ``known`` of it, its ``report`` and its number of ``sentences``."""

    study: Study
    texts: Sequence[str]
    known: Mapping[str, Any]
    report: str
    sentences: int


@dataclass(frozen=True)
class Facts:
    """Of n studies, 13 bytes each; bits are in the order of ``VIEWS``, :data:`FIELDS` and :data:`CLASSES`.

    ``views`` (n,), bits of those that it has an image of; ``described`` and ``reported`` (n,), whether it has any text,
    and a report; ``sentences`` (n,), their number; ``known`` (n,), bits of the fields that the preset adds to texts;
    ``classes`` (n,), bits of the findings that it is annotated with. ``labels``: by label that affirms something, the
    number of studies. ``fingerprint``: hash of all images and texts.
    """

    views: NDArray[np.int32]
    described: NDArray[np.bool_]
    reported: NDArray[np.bool_]
    sentences: NDArray[np.uint16]
    known: NDArray[np.uint8]
    classes: NDArray[np.int32]
    labels: Mapping[str, int]
    fingerprint: str

    @classmethod
    def gather(cls, studies: Iterable[Described], images: str) -> Facts:
        """Of studies in their order; ``images``: the hash of all images."""
        views, described, reported, sentences = array("i"), array("b"), array("b"), array("H")
        fields, classes = array("B"), array("i")
        labels: Counter[str] = Counter()
        digest = hashlib.sha256(images.encode())
        for one in studies:
            study = one.study
            annotated = annotated_labels(study.labels, study.source)
            views.append(_bits(VIEWS, study.images))
            described.append(bool(one.texts))
            reported.append(bool(one.report))
            sentences.append(one.sentences)
            fields.append(_bits(FIELDS, one.known))
            classes.append(_bits(CLASSES, [name for name, label in annotated.items() if label == 1]))
            labels.update(label for label in set(study.labels) if is_affirmation(label))
            digest.update("\x1f".join([study.id, *one.texts]).encode() + b"\x1e")
        # Arrays of the same memory, not copies
        of_texts, of_reports = (np.asarray(one).view(np.bool_) for one in (described, reported))
        counts, known, found = (np.asarray(one) for one in (sentences, fields, classes))
        return cls(np.asarray(views), of_texts, of_reports, counts, known, found, labels, digest.hexdigest())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays by name."""
        rest = json.dumps([dict(sorted(self.labels.items())), self.fingerprint]).encode()
        return {name: getattr(self, name) for name in _ARRAYS} | {"rest": np.frombuffer(rest, np.uint8).copy()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> Facts:
        """Those of :meth:`arrays`."""
        labels, fingerprint = json.loads(arrays["rest"].numpy().tobytes())
        return cls(**{name: arrays[name].numpy() for name in _ARRAYS}, labels=labels, fingerprint=fingerprint)

    def shows(self, view: str) -> NDArray[np.bool_]:
        """(n,), whether a study has an image with the view."""
        return (self.views >> list(VIEWS).index(view) & 1).astype(bool)


_ARRAYS = ("views", "described", "reported", "sentences", "known", "classes")


def _bits(names: Iterable[str], present: Iterable[str]) -> int:
    return sum(1 << bit for bit, name in enumerate(names) if name in present)


def by_field(usable: NDArray[np.int32], known: NDArray[Any], share: float) -> list[NDArray[np.int32]]:
    """Those of the ``usable`` studies whose texts say the age, the race, the severity score, or the sex.

    Raises:
        DataError: there are none, and a ``share`` of every batch is to be drawn from them.
    """
    groups = _grouped(usable, known, FIELDS)
    if share and not groups:
        raise DataError("no age, sex or score is known for any training study: set the loss setting known to 0")
    return groups


def by_class(usable: NDArray[np.int32], classes: NDArray[Any], least: int) -> list[NDArray[np.int32]]:
    """Those of the ``usable`` studies that have each of CheXpert's ``classes`` (n,), where ``least`` or more do."""
    return _grouped(usable, classes, CLASSES, least=least)


def _grouped(
    usable: NDArray[np.int32], values: NDArray[Any], names: Sequence[str], *, least: int = 1
) -> list[NDArray[np.int32]]:
    """The ``usable`` studies with each bit of ``values`` (n,), in the order of the bits' names; those of ``least``."""
    values = values[usable]
    groups = [usable[(values >> bit & 1).astype(bool)] for bit in range(len(names))]
    return [group for group in groups if len(group) >= least]
