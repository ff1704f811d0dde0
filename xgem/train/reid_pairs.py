"""Pairs of images of one patient and of two, and how well a re-identification network tells them apart."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgem.configs.components import TransformConfig
from xgem.data.manifest import Manifest
from xgem.data.prepare import prepare_images
from xgem.judges.reid import WEIGHTS_NAME, ReidConfig, SiameseNetwork, save_reid, to_input
from xgem.metrics.bootstrap import Array, Estimate, Sampled
from xgem.metrics.privacy import DELTA
from xgem.types import DataError
from xgem.utils.files import write_json
from xgem.utils.random import mix

log = logging.getLogger(__name__)

RECORD_NAME: Final = "reid.json"
VIEW: Final = "frontal"
PAIRS_A_PATIENT: Final = 10
NEGATIVES: Final = 10
"""Pairs of two patients per pair of one in the evaluation; the AUC does not depend on this ratio."""


@dataclass(frozen=True)
class Patients:
    """Images (n, s, s) uint8 of one or more splits, the ``rows`` of each patient and the ``source`` of each row.

    ``several``: patients with at least two images whose sources all have at least one other patient.
    """

    images: Tensor
    rows: Mapping[str, Sequence[int]]
    source: Mapping[int, str]
    several: tuple[str, ...]
    sha256: str

    @classmethod
    def load(cls, manifest: Manifest, splits: Sequence[str], size: int, cache: Path, *, progress: bool) -> Patients:
        """Read (or take from the cache) the frontals.

        Raises:
            DataError: no patient has two frontal images.
        """
        values: list[Tensor] = []
        rows: dict[str, list[int]] = {}
        source: dict[int, str] = {}
        digest, start = hashlib.sha256(), 0
        for split in splits:
            studies = manifest.studies(split)
            if not any(VIEW in study.images for study in studies):
                continue
            prepared = prepare_images(manifest, split, TransformConfig(size=size), cache, progress=progress)
            for number, study in enumerate(studies):
                if own := prepared.rows(number, study, VIEW):
                    rows.setdefault(study.subject, []).extend(start + row for row in own)
                    source |= {start + row: study.source for row in own}
            values.append(prepared.values[:])
            start += len(prepared.values)
            digest.update(prepared.sha256.encode())
        of_source = Counter(name for images in rows.values() for name in {source[row] for row in images})
        several = sorted(
            patient
            for patient, images in rows.items()
            if len(images) > 1 and all(of_source[source[row]] > 1 for row in images)
        )
        if not several:
            raise DataError(
                f"no patient of split {' or '.join(splits)} has two {VIEW} images: re-identification needs data with "
                "several images per patient, such as ChestX-ray14"
            )
        digest.update(json.dumps([rows, source], sort_keys=True).encode())
        return cls(torch.cat(values), rows, source, tuple(several), digest.hexdigest())

    def pair(self, patient: str, same: bool, rng: np.random.Generator) -> tuple[int, int]:
        """Rows of two images: both of ``patient``, or one of ``patient`` and one of another patient.

        The other patient's is of a source that ``patient`` has an image of.
        """
        rows = self.rows[patient]
        if same:
            first, second = rng.choice(len(rows), 2, replace=False)
            return rows[int(first)], rows[int(second)]
        sources = sorted({self.source[row] for row in rows})
        drawn = sources[0] if len(sources) == 1 else self.source[rows[int(rng.integers(len(rows)))]]
        other_row = self.other(patient, drawn, rng)
        return rows[int(rng.integers(len(rows)))], other_row

    def other(self, patient: str, source: str, rng: np.random.Generator) -> int:
        """A row of ``source`` that shows another patient."""
        others, other = self._others[source], patient
        while other == patient:
            other = others[int(rng.integers(len(others)))]
        rows = [row for row in self.rows[other] if self.source[row] == source]
        return rows[int(rng.integers(len(rows)))]

    @cached_property
    def _others(self) -> dict[str, list[str]]:
        by_source: dict[str, list[str]] = {}
        for patient in sorted(self.rows):
            for source in sorted({self.source[row] for row in self.rows[patient]}):
                by_source.setdefault(source, []).append(patient)
        return by_source

    def judged(self, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[tuple[str, str]]]:
        """Pairs (k, 2) of rows for the evaluation, whether each is of one patient (k,), and the patients of each.

        The pairs of two have the first image of a pair of one, and a second one of the same source as its second.
        """
        rng = np.random.default_rng(mix(seed, "judged"))
        owner = {row: patient for patient, images in self.rows.items() for row in images}
        rows: list[tuple[int, int]] = []
        for patient in self.several:
            images = self.rows[patient]
            pairs = [(a, b) for i, a in enumerate(images) for b in images[i + 1 :]]
            rows += [pairs[int(i)] for i in rng.permutation(len(pairs))[:PAIRS_A_PATIENT]]
        positives = len(rows)
        for i in range(positives * NEGATIVES):
            first, second = rows[i % positives]
            rows.append((first, self.other(owner[first], self.source[second], rng)))
        same = np.arange(len(rows)) < positives
        return np.array(rows, dtype=np.int64), same, [(owner[a], owner[b]) for a, b in rows]


Judged = tuple[Array, NDArray[np.bool_], list[tuple[str, str]]]
"""Logits (k,) of pairs, whether each is of one patient (k,), and the patients of each."""


@torch.inference_mode()
def judge_pairs(network: SiameseNetwork, config: ReidConfig, held_out: Patients, seed: int) -> Judged:
    """The held-out pairs; each image is encoded once."""
    pairs, same, whose = held_out.judged(seed)
    rows, places = np.unique(pairs, return_inverse=True)
    features = embedded(network, config, held_out.images[rows])
    first, second = (features[places.reshape(pairs.shape)[:, side]] for side in (0, 1))
    return network.compare(first, second).double().cpu().numpy(), same, whose


def embedded(network: SiameseNetwork, config: ReidConfig, images: Tensor) -> Tensor:
    """Features (n, d) of images (n, s, s) uint8, on the network's device."""
    device = network.fc_end.weight.device
    parts = (part.to(device).unsqueeze(1).float() / 255 for part in images.split(64))
    return torch.cat([network.embed(to_input(part, config)) for part in parts])


def write_reid(
    root: Path,
    network: SiameseNetwork,
    config: ReidConfig,
    patients: Patients,
    judged: Judged,
    trained: Mapping[str, Any],
) -> None:
    """The weights, and the record with the AUC on held-out patients, in ``root``."""
    logits, same, whose = judged
    auc = pair_auc(logits, same, whose, seed=trained["seed"])
    above = logits > np.log(DELTA / (1 - DELTA))
    record = {
        "auc": auc.as_dict(),
        "n_is": "held-out patients with several images",
        "pairs": {"of one patient": int(same.sum()), "of two": int((~same).sum())},
        f"above {DELTA:g}": {"of one patient": float(above[same].mean()), "of two": float(above[~same].mean())},
        "training": {"patients with several images": len(patients.several), "all": len(patients.rows)},
        **trained,
    }
    save_reid(root / WEIGHTS_NAME, network, config)
    write_json(root / RECORD_NAME, record)
    log.info("reid: AUC %s on %d held-out patients", auc, auc.n)


def pair_auc(
    scores: Array, same: NDArray[np.bool_], whose: Sequence[tuple[str, str]], *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Area under the ROC curve for pairs of one patient against pairs of two.

    The bootstrap interval resamples patients, not pairs: a pair is weighted by how often its patient was drawn, or by
    the product for two patients.

    Args:
        scores: (k,) higher for pairs of one patient.
        same: (k,) True for pairs of one patient.
        whose: the patients of each pair.

    Returns:
        The area, 0 to 1, chance 0.5; ``n`` is the number of patients with pairs of their own.
    """
    from scipy.stats import rankdata

    patients = {name: i for i, name in enumerate(sorted({name for pair in whose for name in pair}))}
    first, second = (np.array([patients[pair[side]] for pair in whose]) for side in (0, 1))
    order = np.asarray(rankdata(scores, "dense"), dtype=np.int64) - 1

    def area(weights: Array) -> float:
        up = np.bincount(order[same], weights[same], order.max() + 1)
        down = np.bincount(order[~same], weights[~same], order.max() + 1)
        wins = (up * (np.cumsum(down) - down / 2)).sum()
        total = up.sum() * down.sum()
        return float(wins / total) if total else float("nan")

    rng = np.random.default_rng([seed, 1])
    areas = np.empty(draws)
    for draw in range(draws):
        counts = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients))).astype(np.float64)
        areas[draw] = area(np.where(same, counts[first], counts[first] * counts[second]))
    return Sampled(area(np.ones(len(scores))), areas, len(np.unique(first[same]))).estimate()
