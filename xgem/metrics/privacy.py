"""How close generated images come to training images: pixel and latent distances, re-identification.

CheXGenBench, section 2.3. The paper compares with the *closest* training image; its published code only with the one
whose prompt was used, which is the mode ``own_prompt`` here and misses copies of any other training image.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array, Estimate, Sampled
from xgem.types import InputError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

Rows = NDArray[np.int64]
Statistic = Callable[[Array], float]
DELTA: Final = 0.85
"""CheXGenBench's threshold of the re-identification score, above which a generated image counts as re-identified."""
ALIGNED_SIZE: Final = 64
"""Side in pixels at which :func:`aligned_distance` finds copies: shows the anatomy, and 25 shifts stay affordable."""
_BLOCK_BYTES: Final = 1 << 27
_BLOCK_ROWS: Final = 2048


@dataclass(frozen=True)
class Closest:
    """The closest training image of each of n generated images: distances or scores (n,), and its ``rows`` (n,)."""

    values: Array
    rows: Rows

    def estimate(self, statistic: Statistic = np.mean, **options: Any) -> Estimate:
        """A statistic of the n values with its interval; options as :func:`estimate`."""
        return estimate(self.values, statistic, **options)


def pixel_distance(
    generated: NDArray[np.uint8],
    training: NDArray[np.uint8] | Iterable[NDArray[np.uint8]],
    *,
    own_prompt: Sequence[int] | Rows | None = None,
    exclude: Sequence[int] | Rows | None = None,
    wraparound: bool = False,
    device: str = "cpu",
) -> Closest:
    """Distance to the closest training image (CheXGenBench 2.3): root mean squared difference of the pixels.

    In grey levels, 0 (identical) to 255 (black against white). Squares are summed in float64, in which integers are
    exact, so blocks of any size give the same result.

    Args:
        generated: (n, h, w) uint8.
        training: (m, h, w) uint8, or batches of such arrays, which are read once and need not fit into memory together.
        own_prompt: (n,) rows of ``training``: compare each image with that row only, as the published code does.
        exclude: (n,) the row of ``training`` that each image is not compared with, such as itself.
        wraparound: only with ``own_prompt``: training minus generated modulo 256, as in the published code's uint8
            arrays, where one grey level too bright counts as 255; only for comparison with published numbers.

    Raises:
        ShapeError: images of other shapes. InputError: other than uint8, no training images, rows out of range.
    """
    if wraparound and own_prompt is None:
        raise InputError("wraparound=True reproduces the published code, which compares with own_prompt; give that too")
    queries = _rows(generated, 3)
    size = queries.shape[1]
    if own_prompt is None:
        nearest = _nearest(queries, _blocks(training, generated.shape[1:], 3), exclude, device)
        return _root(_checked(nearest), size)
    # The published code: the training image of the own prompt alone
    images, rows = _own(training, own_prompt, generated)
    others, values = _rows(images, 3), np.empty(len(queries))
    for i, row in enumerate(rows):
        difference = others[row].astype(np.int64) - queries[i].astype(np.int64)
        values[i] = np.square(difference % 256 if wraparound else difference).sum()
    return _root(Closest(values, rows), size)


def latent_distance(
    generated: NDArray[Any],
    training: NDArray[Any] | Iterable[NDArray[Any]],
    *,
    own_prompt: Sequence[int] | Rows | None = None,
    exclude: Sequence[int] | Rows | None = None,
    device: str = "cpu",
) -> Closest:
    """Euclidean distance in a feature space to the closest training image, divided by the root of its dimension.

    CheXGenBench 2.3 with RAD-DINO, of dimension 768. 0 for equal features; there is no upper limit.

    Args:
        generated, training: (n, d) and (m, d) features, or batches of the latter.
        own_prompt, exclude: as in :func:`pixel_distance`.

    Raises:
        ShapeError, InputError: as :func:`pixel_distance`; features that are not finite.
    """
    queries = _rows(generated, 2)
    if own_prompt is None:
        nearest = _nearest(queries, _blocks(training, generated.shape[1:], 2), exclude, device)
        return _root(_checked(nearest), queries.shape[1])
    features, rows = _own(training, own_prompt, generated)
    difference = queries.astype(np.float64) - _rows(features, 2)[rows]
    return _root(Closest(np.square(difference).sum(axis=1), rows), queries.shape[1])


def aligned_distance(
    generated: NDArray[np.uint8],
    training: NDArray[np.uint8] | Iterable[NDArray[np.uint8]],
    *,
    margin: int = 2,
    exclude: Sequence[int] | Rows | None = None,
    device: str = "cpu",
) -> Closest:
    """Pixel distance invariant to small shifts and to exposure; xgem's own measure, not from a paper.

    Compares the training image without a border of ``margin`` pixels with a window of the same size at every position
    in the generated image, and takes the smallest distance; each window is standardised to mean 0 and variance 1. 0
    (equal up to brightness and contrast) to 2 (inverted). Meant for small images: see :data:`ALIGNED_SIZE`.

    Args:
        generated, training, exclude: as in :func:`pixel_distance`.
        margin: the largest shift in pixels, in each direction.

    Raises:
        ShapeError, InputError: as :func:`pixel_distance`; images that are no larger than the margins.
    """
    import torch

    _rows(generated, 3)
    height, width = (side - 2 * margin for side in generated.shape[1:])
    if min(height, width) < 1 or margin < 0:
        raise InputError(
            f"images of {generated.shape[2]} x {generated.shape[1]} with margin {margin}: too small; give larger ones"
        )

    def window(images: NDArray[Any], top: int, left: int) -> NDArray[np.float32]:
        """(b, h, w) -> (b, height * width), standardised."""
        flat = images[:, top : top + height, left : left + width].reshape(len(images), -1).astype(np.float32)
        flat -= flat.mean(axis=1, keepdims=True)
        return flat / (flat.std(axis=1, keepdims=True) + np.float32(1e-6))

    def tensor(windows: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(windows).to(device, torch.float64)

    shifts = [shift for shift in product(range(2 * margin + 1), repeat=2) if shift != (margin, margin)]
    best, best_rows = np.full(len(generated), np.inf), np.full(len(generated), -1, dtype=np.int64)
    start = 0  # row of the block's first training image
    for block in _blocks(training, generated.shape[1:], 3):
        for values in _parts(block):
            centres = tensor(window(values.reshape(-1, *generated.shape[1:]), margin, margin))
            norms = centres.square().sum(1)
            for first in range(0, len(generated), _BLOCK_ROWS):
                part = slice(first, first + _BLOCK_ROWS)
                excluded = None if exclude is None else np.asarray(exclude)[part] - start
                # The closest training image over all windows, found by products and measured by differences
                chosen = tensor(window(generated[part], margin, margin))
                lowest, rows = _squared(chosen, centres, norms, excluded).min(1)
                for top, left in shifts:
                    x = tensor(window(generated[part], top, left))
                    squared, nearest = _squared(x, centres, norms, excluded).min(1)
                    closer = squared < lowest
                    lowest[closer], rows[closer], chosen[closer] = squared[closer], nearest[closer], x[closer]
                exact = (chosen - centres[rows]).square().sum(1)
                exact[lowest.isinf()] = torch.inf
                _improve(best, best_rows, part, exact.cpu().numpy(), start + rows.cpu().numpy())
            start += len(values)
    return _root(_checked(Closest(best, best_rows)), height * width)


def reidentification_score(
    generated: NDArray[Any],
    training: NDArray[Any] | Iterable[NDArray[Any]],
    weight: NDArray[Any],
    bias: float,
    *,
    power: int = 1,
    own_prompt: Sequence[int] | Rows | None = None,
    device: str = "cpu",
) -> Closest:
    """The highest probability that a generated and a training image show the same patient (CheXGenBench 2.3).

    ``sigmoid(weight . |a - b|^power + bias)`` of the network's features (Packhaeuser et al. 2022: power 1), 0 to 1; the
    maximum over the training images. See :class:`xgem.judges.reid.Reid` for features, weight and bias.

    Args:
        generated, training: (n, d) and (m, d) features, or batches of the latter.
        weight, bias: (d,) and a scalar: the last layer.
        power: 1 or 2.
        own_prompt: as in :func:`pixel_distance`.
    """
    import torch

    queries, weights = _rows(generated, 2), np.asarray(weight, dtype=np.float64)
    if weights.shape != (queries.shape[1],):
        raise ShapeError(f"weight of shape {weights.shape}: expected ({queries.shape[1]},), one per feature")
    if own_prompt is not None:
        features, rows = _own(training, own_prompt, generated)
        logits = np.abs(queries.astype(np.float64) - _rows(features, 2)[rows]) ** power @ weights + bias
        return Closest(_sigmoid(logits), rows)
    # w . |a - b|^p is a difference of two distances: over the features with positive and with negative weight
    scales = [torch.as_tensor(np.clip(sign * weights, 0, None) ** (1 / power), device=device) for sign in (1, -1)]
    best, best_rows = np.full(len(queries), np.inf), np.zeros(len(queries), dtype=np.int64)
    start = 0  # row of the block's first training image
    for block in _blocks(training, generated.shape[1:], 2):
        for y in _parts(block):
            right = [torch.as_tensor(y, dtype=torch.float64, device=device) * scale for scale in scales]
            for first in range(0, len(queries), _BLOCK_ROWS):
                part = slice(first, first + _BLOCK_ROWS)
                x = torch.as_tensor(np.array(queries[part]), dtype=torch.float64, device=device)
                up, down = (
                    torch.cdist(x * scale, other, p=power) ** power for scale, other in zip(scales, right, strict=True)
                )
                lowest, rows = (down - up).min(1)  # of (queries, training): the negated logit without its bias
                _improve(best, best_rows, part, lowest.cpu().numpy(), start + rows.cpu().numpy())
            start += len(y)
    return Closest(_sigmoid(bias - best), best_rows)


def estimate(
    values: Array,
    statistic: Statistic = np.mean,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A statistic of (n,) values with its percentile bootstrap interval (one-sided for an extreme).

    Args:
        groups: n names; values of one name are drawn together, as the seeds of one prompt are not independent.

    Raises:
        InputError: fewer than two values or groups. ShapeError: the numbers of groups and values differ.
    """
    names = range(len(values)) if groups is None else groups
    rows = _grouped(values, names)
    if len(rows) < 2:
        raise InputError(f"{len(rows)} independent values: a bootstrap needs at least 2, so evaluate more images")
    rng, n = np.random.default_rng(seed), len(rows)
    statistics = np.empty(draws)
    for draw in range(draws):
        drawn = rng.integers(0, n, n)
        sample = values[drawn] if groups is None else values[np.concatenate([rows[i] for i in drawn])]
        statistics[draw] = statistic(sample)
    return Sampled(float(statistic(values)), statistics, len(values)).estimate()


def _grouped(values: Array, names: Sequence[Hashable]) -> list[list[int]]:
    if len(values) != len(names):
        raise ShapeError(f"{len(values)} values of {len(names)} prompts: expected one prompt per value")
    groups: dict[Hashable, list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    return list(groups.values())


def count_above(delta: float = DELTA) -> Statistic:
    """The number of scores above ``delta`` (CheXGenBench's C; the text once says "at least", the equation ``>``)."""
    return lambda values: float(np.count_nonzero(values > delta))


def per_prompt(values: Array, prompts: Sequence[Hashable], worst: Callable[[Array], Any]) -> Array:
    """The worst (``np.min`` of distances, ``np.max`` of scores) over the seeds of each prompt (CheXGenBench 3.2).

    Args:
        values: (n,).
        prompts: n identifiers of prompts.

    Returns:
        (p,), in the order of the prompts' first occurrence.
    """
    return np.array([worst(values[rows]) for rows in _grouped(values, prompts)], dtype=np.float64)


# ---------------------------------------------------------------------------------------------------------- blocks


def _rows(values: NDArray[Any], ndim: int) -> NDArray[Any]:
    """(n, ...) as (n, d), checked: images (``ndim`` 3) are uint8, features (2) finite."""
    expected = "(n, h, w)" if ndim == 3 else "(n, d)"
    if values.ndim != ndim:
        raise ShapeError(f"array of shape {values.shape}: expected {expected}")
    if ndim == 3 and values.dtype != np.uint8:
        raise InputError(f"images of {values.dtype}: expected uint8, 0 to 255")
    if ndim == 2 and not np.isfinite(values).all():
        raise InputError("features contain NaN or infinity: look for images that the extractor cannot process")
    return values.reshape(len(values), -1)


def _blocks(
    training: NDArray[Any] | Iterable[NDArray[Any]], shape: tuple[int, ...], ndim: int
) -> Iterator[NDArray[Any]]:
    """The training images or features block by block, flat and checked; InputError where there are none."""
    any_rows = False
    for block in [training] if isinstance(training, np.ndarray) else training:
        if block.shape[1:] != shape:
            raise ShapeError(f"training of shape {block.shape}, generated of (n, {', '.join(map(str, shape))})")
        if len(block):
            any_rows = True
            yield _rows(block, ndim)
    if not any_rows:
        raise InputError("no training images: expected at least one to compare with")


def _parts(block: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A block (m, d) in pieces that fit into memory as float64."""
    step = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // (8 * block.shape[1])))
    for start in range(0, len(block), step):
        yield np.array(block[start : start + step])


def _own(training: Any, own_prompt: Any, generated: NDArray[Any]) -> tuple[NDArray[Any], Rows]:
    """The training array and the rows (n,) of each generated image's own prompt, checked."""
    rows = np.asarray(own_prompt, dtype=np.int64)
    if not isinstance(training, np.ndarray) or training.shape[1:] != generated.shape[1:]:
        raise ShapeError(
            f"own_prompt: expected training as one array of (m, {', '.join(map(str, generated.shape[1:]))})"
        )
    if rows.shape != (len(generated),) or (len(rows) and not 0 <= rows.min() <= rows.max() < len(training)):
        raise InputError(f"own_prompt: expected {len(generated)} rows from 0 to {len(training) - 1}")
    return training, rows


def _nearest(queries: NDArray[Any], blocks: Iterator[NDArray[Any]], exclude: Any, device: str) -> Closest:
    """Squared Euclidean distances to the closest rows: products find them, differences measure them (0 for a copy)."""
    import torch

    best, best_rows = np.full(len(queries), np.inf), np.full(len(queries), -1, dtype=np.int64)
    step = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // (8 * queries.shape[1])))
    start = 0  # row of the block's first training image
    for block in blocks:
        for values in _parts(block):
            y = torch.as_tensor(values).to(device, torch.float64)
            norms = y.square().sum(1)
            for first in range(0, len(queries), step):
                part = slice(first, first + step)
                x = torch.as_tensor(np.array(queries[part])).to(device, torch.float64)
                excluded = None if exclude is None else np.asarray(exclude)[part] - start
                lowest, nearest = _squared(x, y, norms, excluded).min(1)
                exact = (x - y[nearest]).square().sum(1)
                exact[lowest.isinf()] = torch.inf
                _improve(best, best_rows, part, exact.cpu().numpy(), start + nearest.cpu().numpy())
            start += len(values)
    return Closest(best, best_rows)


def _squared(x: Tensor, y: Tensor, norms: Tensor, excluded: Rows | None) -> Tensor:
    """Squared distances (n, m) of the rows of x (n, d) and y (m, d), whose squared ``norms`` are (m,).

    ``excluded`` (n,) is the row of y that each row of x is not compared with; a row that y has not excludes nothing.
    """
    import torch

    squared = torch.addmm(norms + x.square().sum(1, keepdim=True), x, y.T, alpha=-2)
    if excluded is not None:
        rows = torch.as_tensor(excluded, device=x.device)[:, None]
        squared[rows == torch.arange(len(y), device=x.device)] = torch.inf
    return squared


def _checked(closest: Closest) -> Closest:
    """``closest``; InputError where an image has no training image to be compared with."""
    if np.isinf(closest.values).any():
        raise InputError("no training image is left to compare with: exclude removes the only one")
    return closest


def _improve(best: Array, best_rows: Rows, part: slice, values: Array, rows: Rows) -> None:
    """Replace, in place, the values that are higher than the new ones, and their rows; ties keep the earlier."""
    lower = values < best[part]
    best[part][lower] = values[lower]
    best_rows[part][lower] = rows[lower]


def _root(squared: Closest, size: int) -> Closest:
    """Root mean square from sums of ``size`` squares."""
    return Closest(np.sqrt(squared.values / size), squared.rows)


def _sigmoid(logits: Array) -> Array:
    from scipy.special import expit

    return np.asarray(expit(logits), dtype=np.float64)
