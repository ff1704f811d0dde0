"""Protocols trained and tested over several runs, each cached; what they reach, and what one adds to another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from xgem.data.cache import ArrayCache
from xgem.data.sets import EvalSet
from xgem.eval.utility.protocols import Protocol, Training, refuse_overlap
from xgem.judges.tasks.data import Data, ImageStore
from xgem.judges.tasks.task import Predictions, Task
from xgem.judges.tasks.training import train
from xgem.metrics.bootstrap import Array, Bootstrap, Sampled
from xgem.metrics.classification import Measures
from xgem.types import NotComputed

logger = logging.getLogger(__name__)
VERSION = 1
Extra = Callable[[torch.nn.Module, Data, torch.device], Predictions]
"""Further outputs of a trained network, besides its predictions; only of the first run."""


@dataclass(frozen=True)
class Runs:
    """A protocol's networks, run by run: their predictions for the test images.

    ``size``, ``pretraining``: images that the first run's network was trained and pretrained on. ``extra``: of the
    first run.
    """

    protocol: Protocol
    predictions: tuple[Predictions, ...]
    size: int
    pretraining: int
    notes: tuple[str, ...]
    extra: Predictions


@dataclass(frozen=True)
class Tested:
    """All protocols on one test set. ``failed`` gives the reason why a protocol has no runs."""

    task: Task
    test: Data
    runs: Mapping[str, Runs]
    failed: Mapping[str, str]

    def bootstrap(self) -> Bootstrap:
        """Of the test cases."""
        return Bootstrap(len(self.test), draws=self.task.settings.draws, seed=self.task.settings.seed)

    def measures(self, name: str, bootstrap: Bootstrap) -> tuple[Measures, dict[tuple[str, str], list[float]]]:
        """A protocol's measures pooled over its runs, and each run's values."""
        each = [self.task.measures(one, self.test, bootstrap) for one in self.runs[name].predictions]
        pooled = {key: pool([one[key] for one in each], self.task.settings.seed) for key in each[0]}
        return pooled, {key: [one[key].value for one in each] for key in each[0]}

    def cases(self, name: str) -> Array:
        """(runs, n): a protocol's score of each test case, run by run."""
        return np.stack([self.task.cases(one, self.test) for one in self.runs[name].predictions])


def run_protocols(
    task: Task,
    protocols: Sequence[Protocol],
    known: Sequence[EvalSet],
    test: EvalSet,
    *,
    cache: Path | None = None,
    device: str | torch.device = "cpu",
    extra: tuple[str, Extra] | None = None,
) -> Tested:
    """Train every protocol's network ``task.settings.runs`` times and ask each of the test images.

    Args:
        known: the sets that the protocols take their images from: each is read once, and checked to share nothing
            with the test set.
        test: real images.
        cache: keeps each network's answers under a hash of training data, test data, settings and seed, so that an
            evaluation that was stopped goes on, a training from its last whole epoch, and equal training sets of two
            protocols are trained on once.
        extra: a name for the cache's key and what else to ask.

    Raises:
        DataError: a training set and the test set overlap.
    """
    place = torch.device(device)
    for items in known:
        refuse_overlap(items, test)
    images = ImageStore(task.settings.size)
    for items in (*known, test):
        images.add(items)
    tested = Data(images.of(test), task.targets(test))
    store = ArrayCache(cache) if cache else None

    def data(items: EvalSet) -> Data:
        return Data(images.of(items), task.targets(items))

    def one_run(training: Training, seed: int, ask: tuple[str, Extra] | None) -> Predictions:
        main = data(training.main)
        before = data(training.pretraining) if training.pretraining else None

        def make(folder: Path | None = None) -> Predictions:
            network = train(task, main, pretraining=before, seed=seed, device=place, folder=folder)
            answers = task.predict(network, tested.images, place)
            return answers | ({f"extra {k}": v for k, v in ask[1](network, tested, place).items()} if ask else {})

        if store is None:
            return make()
        key = {
            "version": VERSION,
            "settings": task.settings.of_training(),
            "threshold": task.settings.threshold if task.settings.task == "segmentation" else None,
            "classes": list(task.classes),
            "data": [main.hash, before.hash if before else None, tested.hash],
            "seed": seed,
            "extra": ask[0] if ask else None,
        }
        unfinished = store.unfinished("utility", key)
        return {k: v.numpy() for k, v in store.get_or_make("utility", key, lambda: make(unfinished)).items()}

    found: dict[str, Runs] = {}
    failed: dict[str, str] = {}
    for protocol in protocols:
        try:
            runs: list[Predictions] = []
            first: Training | None = None
            for run in range(task.settings.runs):
                seed = task.settings.seed + run
                training = protocol.make(seed)
                first = first or training
                logger.info("utility: %s, run %d of %d", protocol.name, run + 1, task.settings.runs)
                runs.append(one_run(training, seed, extra if run == 0 else None))
        except NotComputed as reason:
            failed[protocol.name] = str(reason)
            continue
        assert first is not None
        answers = tuple({k: v for k, v in one.items() if not k.startswith("extra ")} for one in runs)
        more = {k.removeprefix("extra "): v for k, v in runs[0].items() if k.startswith("extra ")}
        before = len(first.pretraining) if first.pretraining else 0
        found[protocol.name] = Runs(protocol, answers, len(first.main), before, first.notes, more)
    return Tested(task, tested, found, failed)


def pool(runs: Sequence[Sampled], seed: int = 0) -> Sampled:
    """The mean over runs of a measure on the same resampled cases; every draw resamples the runs too.

    So an interval holds the chance of the training as well as that of the test set. Runs of two protocols with equal
    seeds stay paired in their difference.
    """
    draws = np.stack([one.draws for one in runs])
    counts = np.random.default_rng([seed, 14]).multinomial(len(runs), np.full(len(runs), 1 / len(runs)), draws.shape[1])
    mean = (counts.T * draws).sum(axis=0) / len(runs)
    return Sampled(float(np.mean([one.value for one in runs])), mean, runs[0].n)


def bootstrap_p(difference: Sampled) -> float:
    """Two-sided p of a paired difference: twice the share of draws on the rarer side of 0, at least 2 / (draws + 1)."""
    draws = difference.draws[np.isfinite(difference.draws)]
    rarer = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + len(draws)))
