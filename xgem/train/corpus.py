"""The training corpus: a manifest's studies with prepared images and the texts that each study offers."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from xgem.configs.preset import Preset
from xgem.data.captions import caption_from_labels, preface
from xgem.data.manifest import Manifest
from xgem.data.prepare import PreparedImages, prepare_images
from xgem.data.study import Study, report_of
from xgem.types import DataError

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def sentences(text: str) -> list[str]:
    """Sentences of cleaned report text."""
    return [part for part in _SENTENCE.split(text.strip()) if part]


@dataclass(frozen=True)
class Corpus:
    """One split. ``images`` holds every image of it, ``studies`` the studies in the order of their ids.

    ``sections``, ``prompt_sections`` and ``joined``: as the preset has them.
    """

    studies: tuple[Study, ...]
    images: PreparedImages
    sections: tuple[str, ...]
    prompt_sections: tuple[str, ...] | None = None
    joined: frozenset[str] = frozenset()
    reports: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reports", tuple(report_of(study, self.sections) for study in self.studies))

    @classmethod
    def load(cls, manifest: Manifest, split: str, preset: Preset, cache: Path, *, progress: bool = True) -> Corpus:
        """Read (or take from the cache) one split; DataError where it is empty."""
        studies = tuple(manifest.studies(split))
        if not studies:
            raise DataError(f"the manifest has no studies in split {split!r}: prepare it again with that split")
        images = prepare_images(manifest, split, preset.transform, cache, progress=progress)
        joined = frozenset(name for name, modality in preset.modalities.items() if modality.joins == "report")
        return cls(studies, images, preset.report_sections, preset.prompt_sections, joined)

    def rows(self, index: int, view: str) -> list[int]:
        """Rows of ``images`` that show study ``index`` from ``view``; empty where it has none."""
        return self.images.index.get((self.studies[index].id, view), [])

    def texts(self, index: int) -> list[str]:
        """All distinct texts that describe a study: report, findings, impression and the caption from its labels; or
        the preset's ``prompt_sections``, and that caption where it has none of them. Each comes with and without what
        the preset writes in front of it, if that is known; and so does any part of that alone.
        """
        study = self.studies[index]
        caption = caption_from_labels(study.labels)
        if self.prompt_sections is None:
            found = [self.reports[index], study.impression, study.findings, caption]
        else:
            found = [report_of(study, self.prompt_sections) or caption]
        texts = list(dict.fromkeys(text for text in found if text.strip()))
        known = self.known(index)
        if known:
            texts += [f"{preface(**known)} {text}" for text in texts]
        parts = (part for count in range(1, len(known) + 1) for part in combinations(known.items(), count))
        return texts + [preface(**dict(part)) for part in parts]

    def known(self, index: int) -> dict[str, Any]:
        """What is known of study ``index`` that the preset writes in front of a text: arguments of ``preface``."""
        study = self.studies[index]
        fields = {**dict.fromkeys(("sex", "age", "race"), "demographics"), "severity": "severity"}
        return {
            name: value
            for name, modality in fields.items()
            if modality in self.joined and (value := getattr(study, name)) is not None
        }

    def fingerprint(self) -> str:
        """Changes with any image or text."""
        digest = hashlib.sha256(self.images.sha256.encode())
        for index, study in enumerate(self.studies):
            digest.update("\x1f".join([study.id, *self.texts(index)]).encode() + b"\x1e")
        return digest.hexdigest()


def known_studies(corpus: Corpus, usable: Sequence[int], share: float) -> list[int]:
    """Of ``usable`` studies, those of which something is known that is written in front of texts.

    Raises:
        DataError: there is none, and a ``share`` of every batch is to be drawn from them.
    """
    found = [index for index in usable if corpus.known(index)]
    if share and not found:
        raise DataError("no age, sex or score is known of the training studies: set the loss setting known to 0")
    return found


def vary(text: str, rng: random.Random, *, keep: float = 0.7) -> str:
    """A training variant of a description: some of its sentences, in another order.

    Every sentence of a report is true of its images, so any subset is a valid description of them.
    """
    parts = sentences(text)
    if len(parts) < 2:
        return text
    chosen = [part for part in parts if rng.random() < keep] or [rng.choice(parts)]
    rng.shuffle(chosen)
    return " ".join(chosen)


def draw_prompts(present: Sequence[str], target: str, rng: random.Random, null_probability: float) -> frozenset[str]:
    """The prompts of one sample: a uniformly drawn non-empty subset of ``present`` without ``target``.

    With n modalities besides the target, each of the 2^n - 1 subsets has the same probability. With
    ``null_probability``, or where nothing but the target is present, the result is empty: the null context, which
    classifier-free guidance needs. ``target`` is never among the prompts.
    """
    candidates = sorted(set(present) - {target})
    if not candidates or rng.random() < null_probability:
        return frozenset()
    chosen = rng.randrange(1, 2 ** len(candidates))
    return frozenset(name for bit, name in enumerate(candidates) if chosen >> bit & 1)


def enriched(studies: Sequence[int], rare: Sequence[int], share: float, rng: random.Random) -> list[int]:
    """``studies``, of which about ``share`` made way for some of ``rare``, drawn with even chance."""
    return [rng.choice(rare) if share and rng.random() < share else study for study in studies]
