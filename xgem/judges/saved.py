"""The judge of findings as files: those that ship with xgem, and judges of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xgem.chat.settings import PREFIX
from xgem.checkpoints.locate import ASSETS
from xgem.data.sets import EvalSet
from xgem.judges.classifier import Classifier, ClassifierConfig
from xgem.judges.judge import OwnJudge, scores_of, train_judge
from xgem.judges.networks import SmallResNet
from xgem.metrics.auc import auc, auc_scores, too_few
from xgem.metrics.bootstrap import Bootstrap
from xgem.types import CheckpointError, InputError, NotComputed
from xgem.utils.files import one_line, read_json, replacing, write_json

SHIPPED: Final = ASSETS / "judges"
"""A folder for each view whose judge ships with xgem."""
RECORD: Final = "judge.json"
WEIGHTS: Final = "model.safetensors"
TRAIN: Final = "train"
"""In place of a folder: train a judge on the real training images at hand."""


def save_judge(judge: OwnJudge, folder: Path, about: Mapping[str, Any]) -> None:
    """Write weights as float16, and ``about`` (training data, metrics) with classes, thresholds and settings.

    Raises:
        OutputError: the folder cannot be written.
    """
    classifier = judge.classifier
    state = {name: value.half() if value.is_floating_point() else value for name, value in classifier.state.items()}
    with replacing(folder / WEIGHTS) as partial:
        save_file(state, partial)
    record = {
        "classes": list(judge.classes),
        "thresholds": judge.thresholds.tolist(),
        "config": asdict(classifier.config),
        **about,
    }
    with replacing(folder / RECORD) as partial:
        write_json(partial, record)


def load_judge(folder: Path, device: str = "cpu") -> OwnJudge:
    """A judge that :func:`save_judge` wrote.

    Raises:
        CheckpointError: files are missing or do not fit together; names the file.
    """
    record = read_json(folder / RECORD)
    try:
        config = ClassifierConfig(**record["config"])
        network = SmallResNet(len(record["classes"]), config.width, config.dropout)
        state = load_file(folder / WEIGHTS)
        network.load_state_dict({name: value.to(network.state_dict()[name].dtype) for name, value in state.items()})
        thresholds = np.asarray(record["thresholds"], dtype=np.float64)
        return OwnJudge(Classifier(network, record["classes"], config, torch.device(device)), thresholds)
    except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: not a judge of findings ({one_line(error)}); expected {RECORD} and {WEIGHTS} of xgem eval judge"
        ) from None


def make_judge(
    training: EvalSet,
    held_out: EvalSet,
    folder: Path,
    *,
    config: ClassifierConfig | None = None,
    cache: Path | None = None,
    device: str = "cpu",
    draws: int = 1000,
) -> dict[str, Any]:
    """Train a judge, measure it on real images of other patients, and write it into ``folder``.

    Returns:
        the record's ``auroc``: by class, and as ``macro``, the value with its interval, and the positives among the
        held-out studies with a label; of a class with too few of them the reason instead.

    Raises:
        NotComputed: as :func:`xgem.judges.judge.train_judge`. OutputError: the folder cannot be written.
    """
    judge = train_judge(training, config=config, folder=cache and cache / "judges", device=device)
    held_out = held_out.with_images()
    labels = held_out.labels(judge.classes)
    labels[labels == -1] = np.nan
    scores = scores_of(judge, held_out)
    bootstrap = Bootstrap(len(held_out), draws=draws)
    auroc: dict[str, Any] = {}
    for name, score, label in zip(judge.classes, scores.T, labels.T, strict=True):
        value = too_few(label) or auc(score, label, bootstrap).estimate().as_dict()
        auroc[name] = {"auroc": value, "positives": int((label == 1).sum()), "labelled": int(np.isfinite(label).sum())}
    auroc["macro"] = {"auroc": auc_scores(scores, labels, bootstrap)["macro"].estimate().as_dict()}
    sets = {name: one.described for name, one in (("training", training), ("held out", held_out))}
    save_judge(judge, folder, {"auroc": auroc, "sets": sets, "draws": draws})
    return auroc


def open_judge(
    source: str | None,
    view: str,
    training: EvalSet | None,
    *,
    config: ClassifierConfig | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> OwnJudge:
    """A judge of findings for a view.

    Args:
        source: a folder, or ``"train"`` for one trained on ``training``; None takes the one that ships with xgem, and
            trains where a view has none.
        config, cache: of training, as for :func:`xgem.judges.judge.train_judge`.

    Raises:
        NotComputed: it has to be trained, and ``training`` is missing or has no usable labels.
        CheckpointError: as :func:`load_judge`. InputError: a judge at a chat endpoint.
    """
    if source is not None and source.startswith(PREFIX):
        raise InputError(f"{source}: a judge at a chat endpoint gives no features; use it in `xgem eval factual`")
    shipped = SHIPPED / view
    if source not in (None, TRAIN):
        return load_judge(Path(str(source)), device)
    if source is None and (shipped / RECORD).is_file():
        return load_judge(shipped, device)
    if training is None:
        raise NotComputed("this judge is trained on real training images, and none were given (--training)")
    return train_judge(training, config=config, folder=cache and cache / "judges", device=device)
