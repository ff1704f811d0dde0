"""Training and testing of protocols over several cached runs, and paired comparison of their results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from xgem.utils.progress import track

logger = logging.getLogger(__name__)
VERSION = 1
Extra = Callable[[torch.nn.Module, Data, torch.device], Predictions]
"""Further outputs of a trained network, besides its predictions; only for the first run."""


@dataclass(frozen=True)
class Runs:
    """The predictions of a protocol's networks for the test images, one per run.

    ``size``, ``pretraining``: numbers of images on which the first run's network was trained and pretrained.
    ``positives``: of a classification, how many of the former show each class. ``extra``: further outputs of the first
    run.
    """

    protocol: Protocol
    predictions: tuple[Predictions, ...]
    size: int
    pretraining: int
    notes: tuple[str, ...]
    positives: Mapping[str, int]
    extra: Predictions


@dataclass(frozen=True)
class Tested:
    """All protocols on one test set. ``failed`` gives the reasons why protocols have no runs.

    ``also``: the same networks on further test sets, by name.
    """

    task: Task
    test: Data
    runs: Mapping[str, Runs]
    failed: Mapping[str, str]
    also: Mapping[str, Tested] = field(default_factory=dict[str, "Tested"])

    def bootstrap(self) -> Bootstrap:
        """The bootstrap over test cases."""
        return Bootstrap(len(self.test), draws=self.task.settings.draws, seed=self.task.settings.seed)

    def measures(self, name: str, bootstrap: Bootstrap) -> tuple[Measures, dict[tuple[str, str], list[float]]]:
        """A protocol's metrics pooled over its runs, and the values of each run."""
        by_run = [self.task.measures(predictions, self.test, bootstrap) for predictions in self.runs[name].predictions]
        pooled = {key: pool([run[key] for run in by_run], self.task.settings.seed) for key in by_run[0]}
        return pooled, {key: [run[key].value for run in by_run] for key in by_run[0]}

    def cases(self, name: str) -> Array:
        """A protocol's score of each test case by run: (runs, n)."""
        return np.stack([self.task.cases(predictions, self.test) for predictions in self.runs[name].predictions])


@dataclass(frozen=True)
class _Trainer:
    """Trains one network, or takes its predictions from the cache."""

    task: Task
    images: ImageStore
    test: Data
    also: Mapping[str, Data]
    store: ArrayCache | None
    device: torch.device

    def run(self, training: Training, seed: int, extra: tuple[str, Extra] | None) -> Predictions:
        """One network's predictions of all test sets: plain ones of the first, the others with their names before."""
        task = self.task
        main = self._data(training.main)
        before = self._data(training.pretraining) if training.pretraining else None

        def make(folder: Path | None = None) -> Predictions:
            network = train(task, main, pretraining=before, seed=seed, device=self.device, folder=folder)
            predictions = task.predict(network, self.test.images, self.device)
            for name, one in self.also.items():
                predictions |= _prefixed(f"also {name}", task.predict(network, one.images, self.device))
            return predictions | _extra(extra, network, self.test, self.device)

        if self.store is None:
            return make()
        key: dict[str, Any] = {
            "version": VERSION,
            "settings": task.settings.of_training(),
            "threshold": task.settings.threshold if task.settings.task == "segmentation" else None,
            "classes": list(task.classes),
            "data": [main.hash, before.hash if before else None, self.test.hash],
            "seed": seed,
            "extra": extra[0] if extra else None,
        }
        if self.also:
            key["also"] = {name: one.hash for name, one in self.also.items()}
        unfinished = self.store.unfinished("utility", key)
        return {k: v.numpy() for k, v in self.store.get_or_make("utility", key, lambda: make(unfinished)).items()}

    def _data(self, items: EvalSet) -> Data:
        return Data(self.images.of(items), self.task.targets(items))


def run_protocols(
    task: Task,
    protocols: Sequence[Protocol],
    known: Sequence[EvalSet],
    test: EvalSet,
    *,
    cache: Path | None = None,
    device: str | torch.device = "cpu",
    extra: tuple[str, Extra] | None = None,
    also: Mapping[str, EvalSet] | None = None,
) -> Tested:
    """Train every protocol's network ``task.settings.runs`` times, and predict the test images with each.

    Args:
        known: the sets from which the protocols take their images; none may overlap the test set.
        test: real images.
        cache: keeps each network's predictions by a hash of training data, test data, settings and seed: an interrupted
            evaluation resumes, and identical training sets of two protocols are trained on once.
        extra: a name for the cache key, and a function for further outputs.
        also: further test sets, such as an external one: the same networks predict them too.

    Raises:
        DataError: a training set and the test set overlap.
    """
    place = torch.device(device)
    others = also or {}
    for items in known:
        for tests in (test, *others.values()):
            refuse_overlap(items, tests)
    images = ImageStore(task.settings.size)
    for items in (*known, test, *others.values()):
        images.add(items)
    tested = Data(images.of(test), task.targets(test))
    tested_too = {name: Data(images.of(items), task.targets(items)) for name, items in others.items()}
    trainer = _Trainer(task, images, tested, tested_too, ArrayCache(cache) if cache else None, place)
    # Every protocol, run by run
    results: dict[str, Runs] = {}
    elsewhere: dict[str, dict[str, Runs]] = {name: {} for name in tested_too}
    failed: dict[str, str] = {}
    for protocol in track(protocols, "protocols of utility"):
        try:
            runs: list[Predictions] = []
            first: Training | None = None
            for run in range(task.settings.runs):
                seed = task.settings.seed + run
                training = protocol.make(seed)
                first = first or training
                logger.info("utility: %s, run %d of %d", protocol.name, run + 1, task.settings.runs)
                runs.append(trainer.run(training, seed, extra if run == 0 else None))
        except NotComputed as reason:
            failed[protocol.name] = str(reason)
            continue
        assert first is not None
        before = len(first.pretraining) if first.pretraining else 0
        own = tuple({k: v for k, v in run.items() if not k.startswith(("extra ", "also "))} for run in runs)
        shown = _positives(task, first.main)
        trained = Runs(protocol, own, len(first.main), before, first.notes, shown, _part(runs[0], "extra"))
        results[protocol.name] = trained
        for name in tested_too:
            theirs = tuple(_part(run, f"also {name}") for run in runs)
            elsewhere[name][protocol.name] = replace(trained, predictions=theirs, extra={})
    further = {name: Tested(task, one, elsewhere[name], failed) for name, one in tested_too.items()}
    return Tested(task, tested, results, failed, further)


def _positives(task: Task, items: EvalSet) -> dict[str, int]:
    if task.settings.task != "classification":
        return {}
    counts = (items.labels(task.classes) == 1).sum(axis=0)
    return {name: int(count) for name, count in zip(task.classes, counts, strict=True)}


def _prefixed(prefix: str, predictions: Predictions) -> Predictions:
    return {f"{prefix} {name}": values for name, values in predictions.items()}


def _part(run: Predictions, prefix: str) -> Predictions:
    """What :func:`_prefixed` has put into a run."""
    return {k.removeprefix(f"{prefix} "): v for k, v in run.items() if k.startswith(f"{prefix} ")}


def _extra(extra: tuple[str, Extra] | None, network: torch.nn.Module, test: Data, device: torch.device) -> Predictions:
    """Further outputs of a network, with the prefix that tells them from its predictions."""
    return _prefixed("extra", extra[1](network, test, device)) if extra else {}


def pool(runs: Sequence[Sampled], seed: int = 0) -> Sampled:
    """The mean over runs of a metric on the same resampled cases; every draw also resamples the runs.

    The interval thus reflects the variability of the training as well as of the test set. Runs of two protocols with
    equal seeds stay paired in their difference.
    """
    draws = np.stack([run.draws for run in runs])  # (runs, draws)
    counts = np.random.default_rng([seed, 14]).multinomial(len(runs), np.full(len(runs), 1 / len(runs)), draws.shape[1])
    mean = (counts.T * draws).sum(axis=0) / len(runs)
    return Sampled(float(np.mean([run.value for run in runs])), mean, runs[0].n)


def bootstrap_p(difference: Sampled) -> float:
    """Two-sided p of a paired difference: twice the fraction of draws on the rarer side of 0, >= 2 / (draws + 1)."""
    draws = difference.draws[np.isfinite(difference.draws)]
    rarer = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + len(draws)))
