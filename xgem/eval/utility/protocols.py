"""Training sets of real and synthetic images: each protocol is a plain function; the papers' suites are below."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from xgem.data.sets import EvalSet, check_disjoint
from xgem.types import DataError, InputError, NotComputed


@dataclass(frozen=True)
class Training:
    """The data that one network is trained on: first ``pretraining``, if any, then ``main``."""

    main: EvalSet
    pretraining: EvalSet | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """A named way to make a training set.

    ``make`` takes a run's seed. ``against`` names the protocol that it is compared with, "" for none. ``line`` and
    ``at`` are its line and position in the plot of a suite that varies an amount.
    """

    name: str
    make: Callable[[int], Training]
    against: str = ""
    line: str = ""
    at: float = math.nan


def refuse_overlap(training: EvalSet, test: EvalSet) -> None:
    """Refuse a training set that overlaps the test set in a subject, a study (or a synthetic image of it) or an image.

    Raises:
        DataError: they overlap; the message names what they share.
    """
    subjects = {item.subject for item in test.items if item.subject}
    ids = {item.id for item in test.items}
    for item in training.items:
        if item.subject in subjects:
            shared = f"subject {item.subject!r}"
        elif (item.pair or item.id) in ids:
            shared = f"study {item.pair or item.id!r}"
        else:
            continue
        raise DataError(f"{training.name} and the test set {test.name} share {shared}; split by subject, or rename ids")
    check_disjoint(training, test)


def real_only(real: EvalSet) -> Training:
    """Only real images: the baseline of all comparisons."""
    return Training(real)


def synthetic_only(synthetic: EvalSet, *, count: int | None = None, seed: int = 0) -> Training:
    """Only synthetic images (CheXGenBench: 20,000 of them), all or ``count``."""
    return Training(synthetic if count is None else taken(synthetic, count, seed))


def mixed(real: EvalSet, synthetic: EvalSet, multiple: float = 1.0, *, seed: int = 0) -> Training:
    """All real images and ``multiple`` times as many synthetic ones (ChexGen: 1 and 2)."""
    return Training(joined(real, taken(synthetic, round(multiple * len(real)), seed)))


def anonymised(real: EvalSet, synthetic: EvalSet, *, seed: int = 0) -> Training:
    """As many synthetic images in place of the real ones (XGeM, Table 8), if possible one of each real study."""
    return Training(taken(synthetic, len(real), seed))


def balanced(real: EvalSet, synthetic: EvalSet, classes: Sequence[str], *, seed: int = 0) -> Training:
    """Real images, and synthetic ones until all classes have as many positives as the most frequent (XGeM, Table 10).

    The rarest class is topped up first, with images that show as few of the complete classes as possible. If the
    synthetic images of a class run out, or nothing is topped up, ``notes`` says so.
    """
    # Positives of the real images, and the synthetic images in the order in which they are used
    counts = np.nansum(real.labels(classes) == 1, axis=0).astype(int)
    goal = int(counts.max())
    order = _in_rounds(synthetic, seed)
    labels = synthetic.labels(classes)[order] == 1
    free = np.ones(len(order), dtype=bool)
    chosen: list[int] = []
    notes: list[str] = []
    open_classes = set(range(len(classes)))
    # One image at a time, for the rarest class
    while short := [k for k in open_classes if counts[k] < goal]:
        k = min(short, key=lambda index: (counts[index], index))
        candidates = np.flatnonzero(free & labels[:, k])
        if not len(candidates):
            notes.append(f"{classes[k]}: {counts[k]} positives of {goal}, no synthetic ones left")
            open_classes.discard(k)
            continue
        row = int(candidates[np.argmin(labels[candidates][:, counts >= goal].sum(axis=1))])
        free[row] = False
        chosen.append(int(order[row]))
        counts += labels[row]
    if not chosen:
        counted = ", ".join(f"{name} {n}" for name, n in zip(classes, counts, strict=True))
        notes.append(f"nothing was topped up, the training set is that of real images (positives: {counted})")
    return Training(joined(real, synthetic.subset(chosen)), notes=tuple(notes))


def most_represented(real: EvalSet, classes: Sequence[str], count: int = 5) -> tuple[str, ...]:
    """The ``count`` classes with the most positives, in the order of ``classes`` (XGeM, Table 9)."""
    positives = np.nansum(real.labels(classes) == 1, axis=0)
    kept = set(np.argsort(-positives, kind="stable")[:count].tolist())
    return tuple(name for k, name in enumerate(classes) if k in kept and positives[k])


def fraction_of(real: EvalSet, share: float, *, seed: int = 0) -> EvalSet:
    """A random ``share`` of the real images, at least two; with one seed, larger shares contain the smaller ones."""
    if not 0 < share <= 1:
        raise InputError(f"a share of {share:g} of the real images: expected more than 0 and at most 1")
    order = np.random.default_rng([seed, 11]).permutation(len(real))
    return real.subset(np.sort(order[: max(2, round(share * len(real)))]))


def scarce(real: EvalSet, synthetic: EvalSet, share: float, multiple: float = 0.0, *, seed: int = 0) -> Training:
    """A share of the real images with ``multiple`` times as many synthetic ones (XGeM, Table 11: 0 to 4)."""
    kept = fraction_of(real, share, seed=seed)
    return mixed(kept, synthetic, multiple, seed=seed) if multiple else Training(kept)


def pretrained(
    real: EvalSet, synthetic: EvalSet, share: float = 1.0, *, multiple: float | None = None, seed: int = 0
) -> Training:
    """Pretraining on synthetic images, then fine-tuning on a share of the real ones (ChexGen: 1 % to 100 %).

    ``multiple``: on so many synthetic images per real one of the whole set (ChexGen: 1 to 5); by default on all.
    """
    return Training(fraction_of(real, share, seed=seed), _some(real, synthetic, multiple, seed))


def _some(real: EvalSet, synthetic: EvalSet, multiple: float | None, seed: int) -> EvalSet:
    return synthetic if multiple is None else taken(synthetic, round(multiple * len(real)), seed)


def few_shot(
    real: EvalSet, shots: int, classes: Sequence[str], *, pretraining: EvalSet | None = None, seed: int = 0
) -> Training:
    """``shots`` positives of each class (ChexGen after MedFMC: 1, 5, 10), at random; an image may count for several.

    As many images without any of the classes are added, as every class needs negatives.
    """
    # The rarest class first, counting the positives among the images chosen so far
    order = np.random.default_rng([seed, 12]).permutation(len(real))
    labels = real.labels(classes)[order] == 1
    chosen: set[int] = set()
    notes: list[str] = []
    for k in np.argsort(labels.sum(axis=0), kind="stable"):
        present = sum(bool(labels[row, k]) for row in chosen)
        rows = [row for row in np.flatnonzero(labels[:, k]) if row not in chosen][: max(0, shots - present)]
        chosen |= set(map(int, rows))
        if present + len(rows) < shots:
            notes.append(f"{classes[k]}: {present + len(rows)} positives of {shots}")
    chosen |= set(map(int, np.flatnonzero(~labels.any(axis=1))[:shots]))
    return Training(real.subset(np.sort(order[sorted(chosen)])), pretraining, tuple(notes))


def taken(synthetic: EvalSet, count: int, seed: int = 0) -> EvalSet:
    """``count`` of the synthetic images: one of each real study, then a second one of each, and so on.

    Raises:
        NotComputed: there are fewer.
    """
    if count > len(synthetic):
        raise NotComputed(f"needs {count} synthetic images, {synthetic.name} has {len(synthetic)}")
    return synthetic.subset(_in_rounds(synthetic, seed)[:count])


def joined(first: EvalSet, second: EvalSet) -> EvalSet:
    """The items of both sets; ids of the second set get its name as prefix if the first has them too."""
    first_ids = {item.id for item in first.items}
    renamed = tuple(
        replace(item, id=f"{second.name}:{item.id}", pair=item.pair or item.id) if item.id in first_ids else item
        for item in second.items
    )
    return EvalSet(f"{first.name} + {second.name}", first.items + renamed, first.labelled_by, pad=True)


def _in_rounds(synthetic: EvalSet, seed: int) -> list[int]:
    """All rows in random order, but first one of each real study, then the second ones, and so on."""
    order = np.random.default_rng([seed, 13]).permutation(len(synthetic))
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, int]] = []
    for row in map(int, order):
        study = synthetic.items[row].pair or synthetic.items[row].id
        rounds.append((seen[study], row))
        seen[study] += 1
    return [row for _, row in sorted(rounds, key=lambda entry: entry[0])]


SUITES: Final = ("augmentation", "substitution", "anonymisation", "imbalance", "scarcity", "pretraining", "few-shot")
FRACTIONS: Final = (0.01, 0.1, 0.3, 0.5, 0.7, 1.0)
MULTIPLES: Final = (1 / 3, 1.0, 2.0, 4.0)
SHOTS: Final = (1, 5, 10)


def suite(
    name: str,
    real: EvalSet,
    synthetic: EvalSet,
    classes: Sequence[str] = (),
    *,
    fractions: Sequence[float] = FRACTIONS,
    multiples: Sequence[float] | None = None,
    shots: Sequence[int] = SHOTS,
) -> tuple[Protocol, ...]:
    """The protocols of one suite.

    Args:
        name: ``augmentation`` (real, synthetic, real and 1 and 2 times synthetic), ``substitution`` (real, synthetic:
            CheXGenBench, Table 4), ``anonymisation``, ``imbalance``,
            ``scarcity`` (the one of ``fractions`` nearest to 10 %, with ``multiples`` of synthetic), ``pretraining``
            (each of ``fractions`` with and without), ``few-shot`` (each of ``shots`` with and without pretraining).
            ``multiples`` of the real images are pretrained on, each by itself; by default all synthetic ones.
        classes: for ``imbalance`` and ``few-shot``.

    Raises:
        InputError: no such suite.
    """
    whole = Protocol("real", lambda seed: real_only(real))
    if name == "augmentation":
        more = [
            Protocol(f"real + {k:g}x", lambda seed, k=k: mixed(real, synthetic, k, seed=seed), "real")
            for k in (multiples or (1.0, 2.0))
        ]
        return (whole, Protocol("synthetic", lambda seed: synthetic_only(synthetic), "real"), *more)
    if name == "substitution":
        return (whole, Protocol("synthetic", lambda seed: synthetic_only(synthetic), "real"))
    if name == "anonymisation":
        return (whole, Protocol("anonymised", lambda seed: anonymised(real, synthetic, seed=seed), "real"))
    if name == "imbalance":
        return (whole, Protocol("real + balance", lambda seed: balanced(real, synthetic, classes, seed=seed), "real"))
    if name == "scarcity":
        return _scarcity(real, synthetic, min(fractions, key=lambda share: abs(share - 0.1)), multiples or MULTIPLES)
    if name == "pretraining":
        return tuple(
            protocol
            for share in fractions
            for protocol in _with_and_without_pretraining(
                f"{100 * share:g} % real",
                100 * share,
                lambda seed, share=share: scarce(real, synthetic, share, seed=seed),
                lambda seed, k, share=share: pretrained(real, synthetic, share, multiple=k, seed=seed),
                multiples,
            )
        )
    if name == "few-shot":
        return tuple(
            protocol
            for k in shots
            for protocol in _with_and_without_pretraining(
                f"{k}-shot",
                float(k),
                lambda seed, k=k: few_shot(real, k, classes, seed=seed),
                lambda seed, multiple, k=k: few_shot(
                    real, k, classes, pretraining=_some(real, synthetic, multiple, seed), seed=seed
                ),
                multiples,
            )
        )
    raise InputError(f"suite {name!r}: expected one of {', '.join(SUITES)}")


def _scarcity(real: EvalSet, synthetic: EvalSet, share: float, multiples: Sequence[float]) -> tuple[Protocol, ...]:
    """A share of the real images by itself, with multiples of it in synthetic images, and all real images."""
    base, line = f"{100 * share:g} % real", "with synthetic"
    few = [
        Protocol(f"{base} + {k:.3g}x", lambda seed, k=k: scarce(real, synthetic, share, k, seed=seed), base, line, k)
        for k in multiples
    ]
    alone = Protocol(base, lambda seed: scarce(real, synthetic, share, seed=seed), line=line, at=0.0)
    return (alone, *few, Protocol("real", lambda seed: real_only(real), base))


def _with_and_without_pretraining(
    name: str,
    amount: float,
    scratch: Callable[[int], Training],
    pretraining: Callable[[int, float | None], Training],
    multiples: Sequence[float] | None,
) -> tuple[Protocol, ...]:
    """A protocol from scratch, and the same after pretraining on synthetic images, which is compared with it."""
    line = {k: "pretrained" if k is None else f"pretrained {k:g}x" for k in multiples or (None,)}
    after = [
        Protocol(f"{title}, {name}", lambda seed, k=k: pretraining(seed, k), name, title, amount)
        for k, title in line.items()
    ]
    return (Protocol(name, scratch, line="from scratch", at=amount), *after)
