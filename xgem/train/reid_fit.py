"""A re-identification network fitted in closed form: a projection of frozen features that tells patients apart.

Linear discriminant analysis with many classes, as of face and speaker verification (Fisher 1936; Ioffe, "Probabilistic
linear discriminant analysis", ECCV 2006): principal components, then the directions in which images of all patients
vary the most against images of one patient. A logistic regression on pairs of patients that the projection was not
fitted on turns squared distances into probabilities.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray

from xgem.judges.reid import Projection, ReidConfig, SiameseNetwork, to_input
from xgem.metrics.bootstrap import Array
from xgem.train.reid_pairs import Patients
from xgem.types import DataError
from xgem.utils.progress import track
from xgem.utils.random import mix

log = logging.getLogger(__name__)

COMPONENTS: Final = 400
SHRINKAGE: Final = 0.5
"""Of the variance within patients towards its mean over components."""
FOLDS: Final = 4
_PAIRS: Final = 10
"""Pairs of each patient with several images, of either kind."""


def fit(patients: Patients, config: ReidConfig, seed: int) -> SiameseNetwork:
    """The network of ``config`` (``mobilenet-v2``), fitted on ``patients``.

    Raises:
        DataError: fewer than two patients with several images per fold.
    """
    if len(patients.several) < 2 * FOLDS:
        raise DataError(
            f"{len(patients.several)} training patients have several images: preset 'mobilenet' needs at least "
            f"{2 * FOLDS}"
        )
    network = SiameseNetwork(config).eval()
    model = cast(Projection, network.model)
    images = patients.images.unsqueeze(1)
    maps = np.concatenate(
        [
            model.maps(to_input(part.float() / 255, config)).numpy()
            for part in track(images.split(64), "features of patients")
        ]
    )
    owner = _owners(patients, len(maps))
    slope, offset = _calibrated(patients, maps, owner, config.features, seed)
    weight, bias = _projection(maps, owner, config.features)
    with torch.no_grad():
        rank = len(weight)  # fewer patients than features leave the others at 0
        model.project.weight.zero_()
        model.project.bias.zero_()
        model.project.weight[:rank] = torch.from_numpy(weight).float()
        model.project.bias[:rank] = torch.from_numpy(bias).float()
        network.fc_end.weight.fill_(slope)
        network.fc_end.bias.fill_(offset)
        for parameter in (*model.parameters(), *network.fc_end.parameters()):
            parameter.copy_(parameter.half().float())  # as they are saved, so that what is measured is what is loaded
    return network.requires_grad_(False)


def _owners(patients: Patients, n: int) -> NDArray[np.int64]:
    """The number of the patient that each row shows, (n,)."""
    owner = np.full(n, -1)
    for number, patient in enumerate(sorted(patients.rows)):
        owner[list(patients.rows[patient])] = number
    return owner


def _projection(maps: NDArray[np.float32], owner: NDArray[np.int64], features: int) -> tuple[Array, Array]:
    """Weight (k, d) and bias (k,) of the projection, k at most ``features``."""
    mean = maps.mean(axis=0, dtype=np.float64)
    centred = maps - mean  # (n, d), n far below d: principal components by the Gram matrix
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    kept = np.flatnonzero(values > 1e-9 * values[-1])[-COMPONENTS:]
    basis = centred.T @ (vectors[:, kept] / np.sqrt(values[kept]))  # (d, k), orthonormal
    scores = centred @ basis
    within = [scores[owner == one] for one in np.unique(owner)]
    spread = np.concatenate([rows - rows.mean(axis=0) for rows in within if len(rows) > 1])
    scatter = spread.T @ spread / len(spread)
    scatter += SHRINKAGE * np.trace(scatter) / len(scatter) * np.eye(len(scatter))
    # Whiten the variance within patients; then the directions of the largest variance over all images
    whiten = np.linalg.cholesky(np.linalg.inv(scatter))
    _, directions = np.linalg.eigh(np.cov((scores @ whiten).T))
    weight = (basis @ whiten @ directions[:, -features:]).T
    return weight, -weight @ mean


def _calibrated(
    patients: Patients, maps: NDArray[np.float32], owner: NDArray[np.int64], features: int, seed: int
) -> tuple[float, float]:
    """Slope and offset of the log odds over the squared distance, from pairs of patients not fitted on."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(mix(seed, "reid", "folds"))
    fold = rng.permutation(owner.max() + 1) % FOLDS  # of each patient
    names = sorted(patients.rows)
    distances: list[float] = []
    same: list[bool] = []
    for number in track(range(FOLDS), "folds"):
        known = fold[owner] != number
        weight, bias = _projection(maps[known], owner[known], features)
        held_out: Sequence[str] = [one for one in patients.several if fold[names.index(one)] == number]
        for patient in held_out:
            for kind in (True, False):
                for _ in range(_PAIRS):
                    first, second = patients.pair(patient, kind, rng)
                    a, b = (maps[row] @ weight.T + bias for row in (first, second))
                    distances.append(float(((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum()))
                    same.append(kind)
    found = LogisticRegression(C=1e6).fit(np.array(distances)[:, None], same)
    log.info("reid: %d pairs of %d folds for the probabilities", len(same), FOLDS)
    return float(found.coef_[0, 0]), float(found.intercept_[0])
