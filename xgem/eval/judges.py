"""Judges of pictures: classifiers whose scores say which findings a picture shows.

Two are here: xgem's own, trained on real training pictures, and TorchXRayVision's DenseNet from a local file. Anything
that is a :class:`Judge` can be given in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from xgem.eval.classifier import Classifier, ClassifierConfig, train_classifier
from xgem.eval.label_rules import CHEXPERT_CLASSES
from xgem.eval.record import NotComputed
from xgem.eval.sets import EvalSet
from xgem.eval.statistics import Array
from xgem.types import CheckpointError, DataError, InputError

Images = NDArray[np.uint8]
OWN_JUDGE: Final = "xgem-classifier"
XRV_MODELS: Final = ("all", "mimic_ch", "mimic_nb", "chex", "nih", "pc", "rsna")
_XRV_SIZE: Final = 224


class Judge(Protocol):
    """A classifier of pictures; ``weights`` is a hash. It may have ``thresholds`` (classes,), else they are 0.5."""

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> str: ...

    @property
    def classes(self) -> Sequence[str]: ...

    def scores(self, pictures: Images) -> Array:
        """(n, h, w) uint8 to (n, classes) in [0, 1]."""
        ...


def thresholds_of(judge: Judge) -> Array:
    """(classes,) scores above which the judge calls a finding present."""
    return np.asarray(getattr(judge, "thresholds", np.full(len(judge.classes), 0.5)), dtype=np.float64)


def scores_of(judge: Judge, pictures: EvalSet, size: int | None = None) -> Array:
    """Scores (n, classes) of all pictures of a set, in order; ``size`` as in :meth:`EvalSet.batches`.

    Raises:
        InputError: the judge gives another shape, or a score that is not finite.
    """
    found = np.concatenate([np.asarray(judge.scores(batch), np.float64) for batch in pictures.batches(size)])
    if found.shape != (len(pictures.with_pictures()), len(judge.classes)) or not np.isfinite(found).all():
        raise InputError(f"{judge.name}: scores of shape {found.shape}: expected (n, {len(judge.classes)}), all finite")
    return found


def prevalence_thresholds(scores: Array, labels: Array) -> Array:
    """By class, the score that as many pictures exceed as are labelled positive.

    Args:
        scores, labels: (n, classes) of real training pictures; labels 1, 0 or NaN (unknown).
    """
    share = np.nanmean(labels, axis=0)
    return np.array([np.quantile(own, 1 - p) for own, p in zip(scores.T, share, strict=True)])


@dataclass(frozen=True)
class OwnJudge:
    """xgem's own classifier with CheXpert's class names; thresholds fixed on the real training pictures."""

    classifier: Classifier
    thresholds: Array
    name: str = OWN_JUDGE

    @property
    def weights(self) -> str:
        return self.classifier.hash

    @property
    def classes(self) -> tuple[str, ...]:
        return self.classifier.classes

    def scores(self, pictures: Images) -> Array:
        """As :class:`Judge`; probabilities, pictures square."""
        return 1 / (1 + np.exp(-self.classifier.logits(pictures)))


def train_judge(
    training: EvalSet,
    *,
    size: int = 128,
    config: ClassifierConfig | None = None,
    folder: Path | None = None,
    device: str = "cpu",
) -> OwnJudge:
    """Train xgem's classifier on real training pictures with CheXpert's labels, or take it from ``folder``.

    Uncertain labels and those that are not mentioned give no loss. A class is left out where ``training`` does not hold
    both positives and negatives of it; it is then not among the judge's classes.

    Raises:
        DataError: no class is left.
    """
    training = training.with_pictures()
    labels = training.labels()
    labels[labels == -1] = np.nan
    kept = [k for k in range(len(CHEXPERT_CLASSES)) if {0.0, 1.0} <= set(labels[:, k])]
    if not kept:
        raise DataError(f"{training.name}: no CheXpert class with positives and negatives; expected labels for a judge")
    pictures, labels = training.pictures(size), labels[:, kept]
    config = config or ClassifierConfig(size=size)
    names = [CHEXPERT_CLASSES[k] for k in kept]
    classifier = train_classifier(pictures, labels, names, config=config, folder=folder, device=device)
    judge = OwnJudge(classifier, np.full(len(kept), 0.5))
    return OwnJudge(classifier, prevalence_thresholds(judge.scores(pictures), labels))


class XrvJudge:
    """TorchXRayVision's DenseNet-121 (Cohen et al. 2022) with its operating points, which lie at 0.5."""

    def __init__(self, network: Any, columns: Sequence[int], classes: Sequence[str], name: str, device: str) -> None:
        from xgem.data.cache import module_hash

        self._network = network.to(device).eval()
        self._columns = list(columns)
        self._device = device
        self.classes = tuple(classes)
        self.name = f"XRV-DenseNet ({name})"
        self.weights = module_hash(network)

    def scores(self, pictures: Images, batch_size: int = 32) -> Array:
        """As :class:`Judge`; pictures square, resized to 224 as the package does."""
        import torch
        from torch.nn import functional as F

        found: list[Any] = []
        with torch.inference_mode():
            for start in range(0, len(pictures), batch_size):
                x = torch.from_numpy(np.array(pictures[start : start + batch_size])).to(self._device)
                x = (x.unsqueeze(1).float() / 255 * 2 - 1) * 1024  # the package's range
                if x.shape[-2:] != (_XRV_SIZE, _XRV_SIZE):
                    x = F.interpolate(x, size=(_XRV_SIZE, _XRV_SIZE), mode="bilinear", antialias=True)
                found.append(self._network(x)[:, self._columns].cpu())
        return torch.cat(found).numpy().astype(np.float64)


def load_xrv(path: str | Path | None, model: str = "all", *, device: str = "cpu") -> XrvJudge:
    """TorchXRayVision's DenseNet from a local file; nothing is downloaded and nothing in the file is run.

    Args:
        path: the published ``.pt`` (a whole module, of which only known layer classes are built), or a state dict as
            ``.pt`` or ``.safetensors``.
        model: which of :data:`XRV_MODELS` the file holds: it says what the outputs mean.

    Raises:
        NotComputed: no path, no such file, or the package is missing.
        CheckpointError: the file holds something else.
        InputError: no such model.
    """
    if path is None or not Path(path).is_file():
        raise NotComputed(f"weights of XRV-DenseNet ({model}) are not {'given' if path is None else f'at {path}'}")
    if model not in XRV_MODELS:
        raise InputError(f"XRV model {model!r}: expected one of {', '.join(XRV_MODELS)}")
    try:
        from torchxrayvision import models
    except ImportError:
        raise NotComputed("the package torchxrayvision is not installed") from None
    import torch

    facts: Any = models.model_urls[f"densenet121-res224-{model}"]
    labels: list[str] = facts["labels"]
    points = torch.tensor(facts.get("op_threshs", [0.5] * len(labels)))
    network: Any = models.DenseNet(num_classes=len(labels))
    state = _xrv_state(Path(path), models)
    state.pop("op_threshs", None)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: not the weights of XRV-DenseNet ({model}) ({reason})") from None
    network.op_threshs = torch.nan_to_num(points, nan=0.5)  # 0.5 leaves the probability as it is
    named = [(k, {"Effusion": "Pleural Effusion"}.get(name, name)) for k, name in enumerate(labels) if name]
    return XrvJudge(network, [k for k, _ in named], [name for _, name in named], model, device)


def _xrv_state(path: Path, models: Any) -> dict[str, Any]:
    import torch
    from torch import nn

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    known: list[Any] = [models.DenseNet, models._DenseBlock, models._DenseLayer, models._Transition]
    known += [nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Linear]
    known.append(set)
    try:
        with torch.serialization.safe_globals(known):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file raises whatever the reader happens to meet
        reason = str(error).split("\n", 1)[0][:120]
        raise CheckpointError(
            f"{path}: cannot be read without running it ({reason}); save its state_dict() as .safetensors and give that"
        ) from None
    return dict(found.state_dict() if isinstance(found, nn.Module) else found)
