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

from xgem.eval.classifier import Classifier, ClassifierConfig, columns_of, learnable, train_findings
from xgem.eval.record import NotComputed
from xgem.eval.sets import EvalSet, squares
from xgem.eval.statistics import Array
from xgem.types import InputError

Images = NDArray[np.uint8]
OWN_JUDGE: Final = "xgem-classifier"
MOST_PICTURES: Final = 20_000
XRV_MODELS: Final = ("all", "mimic_ch", "mimic_nb", "chex", "nih", "pc", "rsna")


class Judge(Protocol):
    """A classifier of pictures of any size, which it brings to ``size``, the side that its network wants.

    ``weights`` is a hash. It may have ``thresholds`` (classes,), else they are 0.5.
    """

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def classes(self) -> Sequence[str]: ...

    def scores(self, pictures: Images) -> Array:
        """(n, h, w) uint8 to (n, classes) in [0, 1]."""
        ...


def thresholds_of(judge: Judge) -> Array:
    """(classes,) scores above which the judge calls a finding present."""
    return np.asarray(getattr(judge, "thresholds", np.full(len(judge.classes), 0.5)), dtype=np.float64)


def scores_of(judge: Judge, pictures: EvalSet, size: int | None = None) -> Array:
    """Scores (n, classes) of all pictures of a set, in order.

    Args:
        size: side that pictures are brought to before the judge resizes them; by default their own, or the judge's
            for a set of several sizes.

    Raises:
        InputError: the judge gives another shape, or a score that is not finite.
    """
    side = size or (judge.size if pictures.pad else None)
    found = np.concatenate([np.asarray(judge.scores(batch), np.float64) for batch in pictures.batches(side)])
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
    def size(self) -> int:
        return self.classifier.config.size

    @property
    def classes(self) -> tuple[str, ...]:
        return self.classifier.classes

    def scores(self, pictures: Images) -> Array:
        """As :class:`Judge`; probabilities."""
        return 1 / (1 + np.exp(-self.classifier.logits(squares(pictures, self.size))))


def train_judge(
    training: EvalSet,
    *,
    config: ClassifierConfig | None = None,
    folder: Path | None = None,
    device: str = "cpu",
) -> OwnJudge:
    """Train xgem's classifier on real training pictures with CheXpert's labels, or take it from ``folder``.

    At most 20,000 pictures are taken, chosen by the classifier's seed, and read at its size. Uncertain labels and those
    that are not mentioned give no loss. A class is left out where ``training`` does not hold
    both positives and negatives of it; it is then not among the judge's classes.

    Raises:
        NotComputed: no class is left.
    """
    config = config or ClassifierConfig()
    training = training.with_pictures()
    if len(training) > MOST_PICTURES:
        rows = np.random.default_rng(config.seed).choice(len(training), MOST_PICTURES, replace=False)
        training = training.subset(np.sort(rows))
    labels = training.labels()
    labels[labels == -1] = np.nan
    if not learnable(labels):
        raise NotComputed(
            f"{training.name}: no CheXpert class with positives and negatives, which a judge learns from; of a "
            "manifest, its source tells what is absent where labels do not name it"
        )
    pictures = training.pictures(config.size)
    classifier = train_findings(pictures, labels, config=config, folder=folder, device=device)
    judge = OwnJudge(classifier, np.full(len(classifier.classes), 0.5))
    return OwnJudge(classifier, prevalence_thresholds(judge.scores(pictures), labels[:, columns_of(classifier)]))


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
        self.size = 224

    def scores(self, pictures: Images, batch_size: int = 32) -> Array:
        """As :class:`Judge`; pictures square, resized to 224 as the package does."""
        import torch
        from torch.nn import functional as F

        side = (self.size, self.size)
        found: list[Any] = []
        with torch.inference_mode():
            for start in range(0, len(pictures), batch_size):
                x = torch.from_numpy(np.array(pictures[start : start + batch_size])).to(self._device)
                x = (x.unsqueeze(1).float() / 255 * 2 - 1) * 1024  # the package's range
                if x.shape[-2:] != side:
                    x = F.interpolate(x, size=side, mode="bilinear", antialias=True)
                found.append(self._network(x)[:, self._columns].cpu())
        return torch.cat(found).numpy().astype(np.float64)


def load_xrv(path: str | Path | None, model: str = "all", *, device: str = "cpu") -> XrvJudge:
    """TorchXRayVision's DenseNet from a local file; nothing is downloaded and nothing in the file is run.

    Args:
        path: the published ``.pt`` (a whole module, of which only known layer classes are built), or a state dict as
            ``.pt`` or ``.safetensors``; None looks into the package's own cache folder.
        model: which of :data:`XRV_MODELS` the file holds: it says what the outputs mean.

    Raises:
        NotComputed: no such file, or the package is missing.
        CheckpointError: the file holds something else.
        InputError: no such model.
    """
    from xgem.eval.extractors.convolutional import xrv_network

    if model not in XRV_MODELS:
        raise InputError(f"XRV model {model!r}: expected one of {', '.join(XRV_MODELS)}")
    network: Any = xrv_network(f"XRV-DenseNet ({model})", None if path is None else str(path), model)
    import torch
    from torchxrayvision import models

    facts: Any = models.model_urls[f"densenet121-res224-{model}"]
    labels: list[str] = facts["labels"]
    points = torch.tensor(facts.get("op_threshs", [0.5] * len(labels)))
    network.op_threshs = torch.nan_to_num(points, nan=0.5)  # 0.5 leaves the probability as it is
    named = [(k, {"Effusion": "Pleural Effusion"}.get(name, name)) for k, name in enumerate(labels) if name]
    return XrvJudge(network, [k for k, _ in named], [name for _, name in named], model, device)
