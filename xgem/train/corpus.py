"""The training corpus: the studies of a manifest with prepared images and all texts that describe them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgem.configs.preset import Preset
from xgem.data import wordings
from xgem.data.cache import ArrayCache
from xgem.data.captions import LABELLED_NORMAL, NORMAL_CAPTION, caption_from_labels, preface
from xgem.data.manifest import Manifest
from xgem.data.prepare import PreparedImages, prepare_images
from xgem.data.streamed import StreamedManifest
from xgem.data.study import Study, report_of
from xgem.labels.sentences import written_sentences
from xgem.train.facts import Described, Facts, by_class, by_field
from xgem.types import DataError
from xgem.utils.hashing import array_hash
from xgem.utils.progress import track
from xgem.utils.random import mix

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST = 10
"""Studies with a class below which it is not drawn for its own sake: too few to learn more than these by heart."""
_SAMPLE = 256  # studies whose facts are compared with those of before
_WORDINGS = 2  # random wordings of a caption among the fixed texts of a study, beside the canonical one


@dataclass(frozen=True)
class Corpus:
    """One split: its ``studies``, ordered by id, and all of their ``images``.

    ``sections``, ``prompt_sections``, ``joined`` (modalities that are added to report texts), ``captions`` and
    ``prefix``: from the preset. ``kept``: where :attr:`facts` are kept, and what the studies are of; or nowhere.
    """

    studies: Sequence[Study]
    images: PreparedImages
    sections: tuple[str, ...]
    prompt_sections: tuple[str, ...] | None = None
    joined: frozenset[str] = frozenset()
    captions: str = "labels"
    prefix: str = "optional"
    kept: tuple[ArrayCache, Mapping[str, str]] | None = None

    @classmethod
    def load(
        cls, manifest: Manifest | StreamedManifest, split: str, preset: Preset, cache: Path, *, progress: bool = True
    ) -> Corpus:
        """Read one split, or load it from the cache; DataError if it is empty."""
        described = cls.without_images(manifest, split, preset)
        if not described.studies:
            raise DataError(f"the manifest has no studies in split {split!r}: prepare it again with that split")
        images = prepare_images(manifest, split, preset.transform, cache, progress=progress)
        if isinstance(manifest, Manifest):
            return replace(described, images=images)
        return replace(
            described, images=images, kept=(ArrayCache(cache), {"manifest": manifest.sha256, "split": split})
        )

    @classmethod
    def without_images(cls, manifest: Manifest | StreamedManifest, split: str, preset: Preset) -> Corpus:
        """The studies and texts of one split, maybe none; no file is read."""
        studies = manifest.studies(split)
        images = PreparedImages.none(len(studies))
        joined = frozenset(name for name, modality in preset.modalities.items() if modality.joins == "report")
        how = preset.report_sections, preset.prompt_sections, joined, preset.captions, preset.prefix
        return cls(studies, images, *how)

    def complete(self, index: int) -> bool:
        """Whether study ``index`` has all sections of the report that a generator learns to write."""
        return all(getattr(self.studies[index], section).strip() for section in self.sections)

    def rows(self, index: int, view: str) -> list[int]:
        """Rows of ``images`` with view ``view`` of study ``index``; empty if it has none."""
        return self.images.rows(index, self.studies[index], view)

    def report(self, index: int) -> str:
        """The report that a generator learns to write; empty where sections are missing."""
        return report_of(self.studies[index], self.sections)

    def sentences(self, index: int) -> list[str]:
        """The sentences of a study's impression, findings, and caption of its labels, of which none comes twice."""
        study = self.studies[index]
        sections = study.impression, study.findings, caption_from_labels(study.labels)
        return [part for text in dict.fromkeys(sections) for part in written_sentences(text)]

    def texts(self, index: int) -> list[str]:
        """All distinct texts that describe a study: report, findings, impression and a caption of its labels; or, if
        set, the preset's ``prompt_sections``, and the caption only for studies without them; no caption with
        ``captions="none"``. If demographics or severity are known and the preset adds them to texts, each text also
        comes with them as a prefix, and every non-empty part of the prefix is a text of its own; with
        ``prefix="always"`` each text comes with the prefix only, which stands alone where there is no text.

        With ``captions="qualified"`` these are joined by captions of the findings with side, place and size: the
        canonical one and two wordings that depend on the study's id alone.
        """
        study = self.studies[index]
        caption = "" if self.captions == "none" else self._said(study, caption_from_labels(study.labels))
        if self.prompt_sections is None:
            candidates = [self.report(index), study.impression, study.findings, caption]
        else:
            candidates = [report_of(study, self.prompt_sections) or caption]
        candidates += self.worded(index)
        texts = list(dict.fromkeys(text for text in candidates if text.strip()))
        known = self.known(index)
        if known and self.prefix == "always":
            return [f"{preface(**known)} {text}".strip() for text in texts or [""]]
        if known:
            texts += [f"{preface(**known)} {text}" for text in texts]
        parts = (part for count in range(1, len(known) + 1) for part in combinations(known.items(), count))
        return texts + [preface(**dict(part)) for part in parts]

    def worded(self, index: int) -> list[str]:
        """Those of :meth:`texts` that are captions in several wordings; none unless the preset asks for them."""
        study = self.studies[index]
        if self.captions != "qualified" or not (study.labels or study.qualified):
            return []
        rng = random.Random(mix(0, "captions", study.id))
        said = (study.qualified, study.labels, study.source)
        made = [wordings.caption(*said), *(wordings.random_caption(*said, rng) for _ in range(_WORDINGS))]
        return list(dict.fromkeys(self._said(study, text) for text in made if text))

    @staticmethod
    def _said(study: Study, caption: str) -> str:
        """A caption as a text of this study.

        Collections without reports have captions alone, so that a caption that is also a frequent impression would
        stand for the look of their images: NIH's normal ones are 529, each with two texts, Open-i's have six.
        """
        reported = study.impression.strip() or study.findings.strip()
        return LABELLED_NORMAL if caption == NORMAL_CAPTION and not reported else caption

    def draw_text(self, index: int, rng: random.Random) -> str | None:
        """One of :meth:`texts`, uniformly, None where there is none; of a caption in wordings any, at every use."""
        texts = self.texts(index)
        if not texts:
            return None
        text = rng.choice(texts)
        fixed = next((one for one in self.worded(index)[1:] if text.endswith(one)), None)
        if fixed is None:
            return text
        study = self.studies[index]
        drawn = wordings.random_caption(study.qualified, study.labels, study.source, rng)
        return text.removesuffix(fixed) + self._said(study, drawn)

    def known(self, index: int) -> dict[str, Any]:
        """Known demographics and severity of a study that the preset adds to texts: arguments of ``preface``."""
        study = self.studies[index]
        fields = {**dict.fromkeys(("sex", "age", "race"), "demographics"), "severity": "severity"}
        return {
            name: value
            for name, modality in fields.items()
            if modality in self.joined and (value := getattr(study, name)) is not None
        }

    @cached_property
    def facts(self) -> Facts:
        """What is known of all studies; of those on the disk read from the cache, once it has been gathered."""
        if self.kept is None:
            return self._gathered(range(len(self.studies)))
        cache, of = self.kept
        some = self._gathered(range(0, len(self.studies), max(1, len(self.studies) // _SAMPLE)))
        how = [self.sections, self.prompt_sections, sorted(self.joined), self.captions, self.prefix]
        sample = [array_hash(one) for one in some.arrays().values()]  # tells texts that another version of xgem makes
        key = {**of, "how": how, "images": self.images.sha256, "sample": sample}
        found = cache.get_or_make("studies", key, lambda: self._gathered(range(len(self.studies))).arrays())
        return Facts.of_arrays(found)

    def _gathered(self, indices: range) -> Facts:
        described = (
            Described(
                self.studies[index],
                self.texts(index),
                self.known(index),
                self.report(index),
                len(self.sentences(index)),
            )
            for index in indices
        )
        return Facts.gather(track(described, "reading studies", len(indices)), self.images.sha256)

    def fingerprint(self) -> str:
        """A hash that changes with any image or text."""
        return self.facts.fingerprint


def studies_by_field(corpus: Corpus, usable: NDArray[np.int32], share: float) -> list[NDArray[np.int32]]:
    """As :func:`xgem.train.facts.by_field`."""
    return by_field(usable, corpus.facts.known, share)


def studies_by_class(corpus: Corpus, usable: NDArray[np.int32], least: int = FEWEST) -> list[NDArray[np.int32]]:
    """Those of the ``usable`` studies that have each of CheXpert's classes, where there are ``least`` or more."""
    return by_class(usable, corpus.facts.classes, least)


def balanced(studies: Sequence[int], groups: Sequence[Any], share: float, rngs: Sequence[random.Random]) -> list[int]:
    """``studies``, each replaced with probability ``share`` by one of a group: any group, then any of its studies."""
    if not share or not groups:
        return list(studies)
    return [
        int(rng.choice(rng.choice(groups))) if rng.random() < share else study
        for study, rng in zip(studies, rngs, strict=True)
    ]


def vary(text: str, rng: random.Random, *, keep: float = 0.7) -> str:
    """A training variant of a description: a random part of its sentences in random order.

    Every sentence of a report is true of its images, so any subset is a valid description of them.
    """
    parts = written_sentences(text)
    if len(parts) < 2:
        return text
    chosen = [part for part in parts if rng.random() < keep] or [rng.choice(parts)]
    rng.shuffle(chosen)
    return " ".join(chosen)


def draw_prompts(
    present: Sequence[str], target: str, rng: random.Random, null_probability: float, *, single: bool = False
) -> frozenset[str]:
    """The prompts of one sample: a uniformly drawn non-empty subset of ``present`` without ``target``.

    With n modalities besides the target, each of the 2^n - 1 subsets has the same probability. With probability
    ``null_probability``, or if only the target is present, the result is empty: the null context, which
    classifier-free guidance needs. ``target`` is never among the prompts. ``single``: one prompt, each with the same
    probability, as CoDi trains (without Multi-Prompt Training).
    """
    candidates = sorted(set(present) - {target})
    if not candidates or rng.random() < null_probability:
        return frozenset()
    if single:
        return frozenset([rng.choice(candidates)])
    chosen = rng.randrange(1, 2 ** len(candidates))
    return frozenset(name for bit, name in enumerate(candidates) if chosen >> bit & 1)
