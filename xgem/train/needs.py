"""What stages take from the data, asked of all planned stages before the first of them trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from xgem.data.study import ANNOTATED_VIEW, Study
from xgem.modalities import get_modality
from xgem.train.corpus import Corpus
from xgem.types import DataError

SPLITS = ("train", "val")
_ANNOTATIONS: Mapping[str, Callable[[Study], bool]] = {
    "masks": lambda study: bool(study.masks),
    "boxes": lambda study: bool(study.boxes),
    "severity": lambda study: study.severity is not None,
}


@dataclass(frozen=True)
class Need:
    """What at least one study of each of the ``splits`` must have.

    ``met`` says whether study ``index`` of a corpus has it; the corpus may be one without images.
    """

    what: str
    met: Callable[[Corpus, int], bool]
    splits: tuple[str, ...] = SPLITS


def image(*views: str) -> Need:
    """An image of one of the views."""
    return Need(f"a {' or '.join(views)}", lambda corpus, index: _has_image(corpus, index, views))


def prompt(modality: str) -> Need:
    """An image of that view; of a text modality any text that describes a study."""
    if get_modality(modality).is_image:
        return image(modality)
    return Need(f"a text for the prompt {modality}", lambda corpus, index: bool(corpus.texts(index)))


def target(modality: str, sections: tuple[str, ...]) -> Need:
    """An image of that view; of a text modality the ``sections`` that a generator learns to write."""
    if get_modality(modality).is_image:
        return image(modality)
    return Need(f"a {modality} ({', '.join(sections)})", lambda corpus, index: corpus.complete(index))


def together(*needs: Need) -> Need:
    """All of them in one study."""
    what = " and ".join(need.what for need in needs)
    return Need(f"{what} in one study", lambda corpus, index: all(need.met(corpus, index) for need in needs))


def at_least(count: int, *needs: Need) -> Need:
    """Any ``count`` of them in one study."""
    what = ", ".join(need.what for need in needs)
    return Need(
        f"{count} of these in one study: {what}",
        lambda corpus, index: sum(need.met(corpus, index) for need in needs) >= count,
    )


def annotation(kinds: Iterable[str], splits: tuple[str, ...] = SPLITS) -> Need:
    """A frontal image with masks, boxes or a severity score, whichever are among ``kinds``."""
    kinds = tuple(kinds)

    def met(corpus: Corpus, index: int) -> bool:
        study = corpus.studies[index]
        return _has_image(corpus, index, (ANNOTATED_VIEW,)) and any(_ANNOTATIONS[kind](study) for kind in kinds)

    return Need(f"a {ANNOTATED_VIEW} with {' or '.join(kinds) or 'no annotation of a positive weight'}", met, splits)


def known() -> Need:
    """An age, a sex or a score that the preset adds to texts, in the training split."""
    return Need("a known age, sex or score", lambda corpus, index: bool(corpus.known(index)), ("train",))


def _has_image(corpus: Corpus, index: int, views: Iterable[str]) -> bool:
    return any(corpus.studies[index].images.get(view) for view in views)


def check(needs: Mapping[str, Iterable[Need]], splits: Mapping[str, Corpus]) -> None:
    """Refuse data that lack what a stage needs; ``needs`` by stage, corpora by split.

    Raises:
        DataError: lists all that is missing, in which split, and for which stages.
    """
    missing = [f"split {split} is empty" for split, corpus in splits.items() if not corpus.studies]
    for split, corpus in splits.items():
        stages: dict[str, list[str]] = {}
        for stage, wanted in needs.items():
            for need in wanted:
                if split in need.splits and not any(need.met(corpus, index) for index in range(len(corpus.studies))):
                    stages.setdefault(need.what, []).append(stage)
        if corpus.studies and stages:
            parts = (f"{what} (for {', '.join(of)})" for what, of in stages.items())
            missing.append(f"split {split} has no study with {', none with '.join(parts)}")
    if missing:
        raise DataError(
            f"{'; '.join(missing)}: add such studies, or train by name the stages that the data suffice for"
        )
