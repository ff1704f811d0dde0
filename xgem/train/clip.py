"""The stage that trains the prompt encoders (XGeM 2.1)."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from xgem.checkpoints import store
from xgem.configs.components import ImageEncoderConfig, TextEncoderConfig
from xgem.configs.preset import Preset, StageConfig
from xgem.data.augment import jitter
from xgem.data.study import Study
from xgem.encoders.contrastive import Temperature, gathered, info_nce
from xgem.encoders.image import ImageEncoder
from xgem.encoders.text import TextEncoder
from xgem.train.corpus import Corpus, enriched, known_studies, vary
from xgem.train.loop import Stage, permuted
from xgem.types import Encoded
from xgem.utils.random import mix

_VIEWS = ("frontal", "lateral")
_PATCH = 8  # side of the coarse patch that a token has to describe
_COMMON = 20  # studies that an annotated label needs to be learned
_LIMITS = {"age": (20, 30, 40, 50, 60, 70), "severity": (3, 6, 9, 12)}


class ContrastiveModel(nn.Module):
    """Both encoders, the temperature, and two linear layers that serve training only: a read-out of patches that keeps
    tokens local, and one of the annotated labels from the shared space."""

    def __init__(self, image: ImageEncoder, text: TextEncoder, labels: int) -> None:
        super().__init__()
        self.image, self.text, self.temperature = image, text, Temperature()
        self.read_out = nn.LazyLinear(_PATCH * _PATCH)
        self.labels = nn.Linear(image.config.embed_dim, labels) if labels else None

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Encoded, Encoded, Tensor, Tensor, Tensor | None]:
        """Images (b, 1, s, s) and ids (b', n): both encoded, the read-out (b, tokens, 64), inverse temperature, and
        the labels' logits (b + b', labels) of images and texts."""
        image, text = self.image(images), self.text(ids)
        logits = None
        if self.labels is not None:
            vectors = torch.cat([image.pooled, text.pooled])
            logits = self.labels(vectors * math.sqrt(vectors.shape[1]))  # unit vectors at unit variance
        return image, text, self.read_out(image.tokens), self.temperature(), logits


def coarse_patches(x: Tensor, tokens: int) -> Tensor:
    """What the read-out should say: (b, 1, s, s) as (b, tokens, 64), each token's patch at 8 x 8."""
    side = round(tokens**0.5)
    small = F.interpolate(x, size=(side * _PATCH, side * _PATCH), mode="area")
    return rearrange(small, "b 1 (h p) (w q) -> b (h w) (p q)", p=_PATCH, q=_PATCH)


def written_labels(known: Mapping[str, Any]) -> list[float]:
    """What ``Corpus.known`` says of a study as labels: female, and whether its age and its score are over some limits;
    NaN where it is not known."""
    labels = [float(known["sex"] == "F") if "sex" in known else math.nan]
    for field, limits in _LIMITS.items():
        labels += [float(known[field] > limit) if field in known else math.nan for limit in limits]
    return labels


def common_labels(corpus: Corpus) -> list[str]:
    """The annotated labels that at least 20 studies have, in alphabetical order."""
    counts = Counter(label for study in corpus.studies for label in set(study.labels))
    return sorted(label for label, count in counts.items() if count >= _COMMON)


class ClipStage(Stage):
    """Symmetric InfoNCE over frontal-report, lateral-report and frontal-lateral, all three at every step.

    Studies whose annotated findings (or, without them, impressions) are the same are no negatives of one another where
    a report is involved: half of all chest reports say that nothing is wrong. ``config.loss``: ``patches`` and
    ``labels``, the weights of the patch read-out and of the common annotated labels, with what the preset writes in
    front of texts (binary cross-entropy from either encoder's vector, unannotated studies left out); ``known``, the
    share of samples drawn from studies of which the latter is known.
    """

    name = "clip"

    def __init__(
        self, preset: Preset, config: StageConfig, train: Corpus, val: Corpus, tokenizer: Any, seed: int
    ) -> None:
        self.config, self.seed, self.train, self.val = config, seed, train, val
        self.weights = self.loss_weights(patches=1.0, labels=0.0, known=0.0)
        self.labels = common_labels(train) if self.weights["labels"] else []
        self.written = bool(self.weights["labels"] and train.joined)
        count = len(self.labels) + (len(written_labels({})) if self.written else 0)
        self.names = (preset.encoder("frontal"), preset.encoder("report"))
        image, text = (preset.components[name] for name in self.names)
        assert isinstance(image, ImageEncoderConfig)
        assert isinstance(text, TextEncoderConfig)
        self.settings = (image, text)
        image_encoder = ImageEncoder.from_config(image)
        text_encoder = TextEncoder.from_config(text, None, tokenizer)
        self.tokenize = text_encoder.tokenize
        self.module = ContrastiveModel(image_encoder, text_encoder, count)
        with torch.no_grad():
            size = image_encoder.config.image_size
            self.module(torch.zeros(1, 1, size, size), self.tokenize(["normal"]))
        self.usable = [i for i in range(len(train.studies)) if self._parts(train, i) >= 2]
        self.known = known_studies(train, self.usable, self.weights["known"])

    @property
    def fresh(self) -> dict[str, nn.Module]:
        assert isinstance(self.module, ContrastiveModel)
        return dict(zip(self.names, (self.module.image, self.module.text), strict=True))

    @staticmethod
    def _parts(corpus: Corpus, index: int) -> int:
        return sum(bool(corpus.rows(index, view)) for view in _VIEWS) + bool(corpus.texts(index))

    def fingerprint(self) -> str:
        return super().fingerprint() + self.train.fingerprint()

    def batch(self, step: int, rank: int, world: int) -> dict[str, Any]:
        size = self.config.batch_size
        picked = permuted(len(self.usable), (step * world + rank) * size, size, mix(self.seed, self.name))
        rng = random.Random(mix(self.seed, self.name, "texts", step, rank))
        studies = enriched([self.usable[i] for i in picked], self.known, self.weights["known"], rng)
        return self._collate(self.train, studies, rng)

    def _labels_of(self, study: Study, known: Mapping[str, Any]) -> list[float]:
        annotated = [float(name in study.labels) if study.labels else math.nan for name in self.labels]
        return annotated + (written_labels(known) if self.written else [])

    def _collate(self, corpus: Corpus, indices: list[int], rng: random.Random | None) -> dict[str, Any]:
        """``owner`` (images or texts,) says which study of the batch each row belongs to; ``key`` which are alike."""
        rows: dict[str, list[int]] = {view: [] for view in _VIEWS}
        owners: dict[str, list[int]] = {"frontal": [], "lateral": [], "report": []}
        texts: list[str] = []
        keys: list[int] = []
        labels: list[list[float]] = []
        text_labels: list[list[float]] = []
        for position, index in enumerate(indices):
            for view in _VIEWS:
                if found := corpus.rows(index, view):
                    rows[view].append(rng.choice(found) if rng else found[0])
                    owners[view].append(position)
            study = corpus.studies[index]
            known = corpus.known(index)
            labels.append(self._labels_of(study, known))
            if found := corpus.texts(index):
                text = vary(rng.choice(found), rng) if rng else found[0]
                texts.append(text)
                owners["report"].append(position)
                said = {field: value for field, value in known.items() if f"{field}:" in text}
                text_labels.append(self._labels_of(study, said))
            alike = "|".join(sorted(study.labels)) or study.impression
            keys.append(int.from_bytes(hashlib.sha256(alike.encode()).digest()[:6], "big"))
        x = corpus.images.floats(rows["frontal"] + rows["lateral"])
        return {
            "images": jitter(x) if rng else x,
            "ids": self.tokenize(texts or ["normal"]),
            "key": torch.tensor(keys),
            "labels": torch.tensor(labels),
            "text_labels": torch.tensor(text_labels).reshape(len(text_labels), len(labels[0])),
            "owner": {name: torch.tensor(value, dtype=torch.long) for name, value in owners.items()},
        }

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        image, text, read_out, scale, logits = module(batch["images"], batch["ids"])
        owner, device = batch["owner"], image.pooled.device
        count = len(batch["key"])
        frontals = len(owner["frontal"])
        vectors = {"frontal": image.pooled[:frontals], "lateral": image.pooled[frontals:], "report": text.pooled}
        gather = partial(gathered, training=module.training)
        placed, present = {}, {}
        for name, value in vectors.items():  # every process gathers the same shape: one row a study, zeros if missing
            rows = owner[name].to(device)
            placed[name] = gather(value.new_zeros(count, value.shape[1]).index_copy(0, rows, value[: len(rows)]))
            present[name] = gather(value.new_zeros(count).index_fill(0, rows, 1.0)) > 0
        key = gather(batch["key"].to(device).double()).long()  # 48 bits: exact as doubles, which can be gathered
        terms: dict[str, Tensor] = {}
        for a, b in itertools.combinations(vectors, 2):
            both = present[a] & present[b]
            if both.sum() < 2:
                continue
            same = key[both][:, None] == key[both] if b == "report" else None
            terms[f"{a}-{b}"] = info_nce(placed[a][both], placed[b][both], scale, same)
        # A batch may have no pair with one of the towers; processes expect gradients of all weights from each other.
        total = 0 * (image.pooled.sum() + text.pooled.sum())
        if terms:
            total = total + torch.stack(list(terms.values())).mean()
        patches = F.mse_loss(read_out, coarse_patches(batch["images"], read_out.shape[1]))
        logged = {k: v.detach() for k, v in terms.items()} | {"patches": patches.detach(), "scale": scale.detach()}
        total = total + self.weights["patches"] * patches
        if logits is not None:
            imaged = torch.cat([owner[view] for view in _VIEWS]).to(device)
            truth = torch.cat([batch["labels"].to(device)[imaged], batch["text_labels"].to(device)])
            known = truth.isfinite()
            logits = logits.float()[: len(truth)]
            losses = F.binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none") * known
            found = losses.sum() / known.sum().clamp(min=1)
            total, logged = total + self.weights["labels"] * found, logged | {"labels": found.detach()}
        return total, logged

    def validate(self, module: nn.Module) -> dict[str, float]:
        device = next(module.parameters()).device
        figures: dict[str, float] = {}
        size = 64
        indices = [i for i in range(len(self.val.studies)) if self._parts(self.val, i) >= 2]
        chunks = [indices[i : i + size] for i in range(0, len(indices) - len(indices) % size or len(indices), size)]
        for chunk in chunks:
            batch = self._collate(self.val, chunk, None)
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            loss, logged = self.loss(module, batch)
            for key, value in (logged | {"loss": loss}).items():
                figures[key] = figures.get(key, 0.0) + float(value) / len(chunks)
        return figures

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, ContrastiveModel)
        for name, part in zip(self.names, (module.image, module.text), strict=True):
            store.save_component(root, name, part)
