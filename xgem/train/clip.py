"""The stage that trains the prompt encoders (XGeM 2.1)."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from xgem.checkpoints import store
from xgem.configs.components import ImageEncoderConfig, TextEncoderConfig
from xgem.configs.preset import Preset
from xgem.data.augment import JITTER, jitter
from xgem.data.study import Study
from xgem.data.wordings import absent_classes
from xgem.encoders.contrastive import Temperature, info_nce
from xgem.encoders.image import ImageEncoder
from xgem.encoders.text import TextEncoder
from xgem.labels.hard_negatives import hard_negatives
from xgem.labels.rules import label_report
from xgem.labels.sides import SIDES, named_sides
from xgem.labels.vocabulary import CHEXPERT_CLASSES, named
from xgem.train import needs
from xgem.train.context import StageContext, first_output
from xgem.train.corpus import Corpus, balanced, studies_by_class, studies_by_field, vary
from xgem.train.share import Share
from xgem.train.stage import ComparingStage, permuted
from xgem.types import ConfigError, Encoded
from xgem.utils.random import mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PATCH = 8  # side of the coarse patch that each token predicts
_COMMON = 20  # minimum number of studies with a label for it to be learned
_LIMITS = {"age": (20, 30, 40, 50, 60, 70), "severity": (3, 6, 9, 12)}


class ContrastiveModel(nn.Module):
    """Both encoders, the temperature, and linear heads used in training only: one predicts patches from tokens, to keep
    tokens local; one predicts annotated labels from the shared space, one what a text states."""

    def __init__(self, image: ImageEncoder, text: TextEncoder, labels: int, stated: int = 0) -> None:
        super().__init__()
        self.image, self.text, self.temperature = image, text, Temperature()
        self.read_out = nn.LazyLinear(_PATCH * _PATCH)
        self.labels = nn.Linear(image.config.embed_dim, labels) if labels else None
        self.stated = nn.Linear(text.config.embed_dim, stated) if stated else None

    def forward(
        self, images: Tensor, ids: Tensor
    ) -> tuple[Encoded, Encoded, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Images (b, 1, s, s) and ids (b', n) to both encodings, predicted patches (b, tokens, 64), the inverse
        temperature (), label logits (b + b', labels) of images, then texts, and logits (b', stated) of texts."""
        image, text = self.image(images), self.text(ids)
        unit = math.sqrt(text.pooled.shape[1])  # unit vectors to unit variance
        labels = None if self.labels is None else self.labels(torch.cat([image.pooled, text.pooled]) * unit)
        stated = None if self.stated is None else self.stated(text.pooled * unit)
        return image, text, self.read_out(image.tokens), self.temperature(), labels, stated


def coarse_patches(x: Tensor, tokens: int) -> Tensor:
    """Target of the patch head: images (b, 1, s, s) as (b, tokens, 64), the patch of each token at 8 x 8."""
    side = round(tokens**0.5)
    small = F.interpolate(x, size=(side * _PATCH, side * _PATCH), mode="area")  # (b, 1, 8 side, 8 side)
    return rearrange(small, "b 1 (h p) (w q) -> b (h w) (p q)", p=_PATCH, q=_PATCH)


def written_labels(known: Mapping[str, Any]) -> list[float]:
    """The fields of ``Corpus.known`` as binary labels: female, age above each limit, severity above each limit; NaN if
    unknown."""
    labels = [float(known["sex"] == "F") if "sex" in known else math.nan]
    for field, limits in _LIMITS.items():
        labels += [float(known[field] > limit) if field in known else math.nan for limit in limits]
    return labels


@lru_cache(maxsize=65536)
def stated_labels(text: str) -> tuple[float, ...]:
    """What a text states by the rules: (3 x 14,), each CheXpert class affirmed, on the left, on the right.

    Sides are NaN of classes that are not affirmed, or are so without a side.
    """
    labels, found = label_report(text), named_sides(text)
    affirmed = [float(labels.get(name) == 1) for name in CHEXPERT_CLASSES]
    sides = [float(side in found[name]) if found.get(name) else math.nan for side in SIDES for name in CHEXPERT_CLASSES]
    return (*affirmed, *sides)


def _spread(studies: int, values: Tensor, places: Tensor, slots: int = 1) -> Tensor:
    """Values (m, ...) at ``places`` (m,) among ``slots`` a study: (studies, slots, ...), zeros elsewhere."""
    places = places.to(values.device)
    room = values.new_zeros(studies * slots, *values.shape[1:])
    return room.index_copy(0, places, values[: len(places)]).unflatten(0, (studies, slots))


def _label_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Of every row of logits (m, l), the sum of the binary cross-entropies of its known labels, and how many are known:
    (m, 2). Labels are 1, 0, or NaN where they are unknown; further rows of logits have none."""
    labels = labels.to(logits.device)
    known = torch.isfinite(labels)
    losses = F.binary_cross_entropy_with_logits(logits[: len(labels)].float(), labels.nan_to_num(), reduction="none")
    return torch.stack([(losses * known).sum(dim=1), known.sum(dim=1).to(losses)], dim=1)


def common_labels(corpus: Corpus) -> list[str]:
    """Annotated labels with at least 20 studies, in alphabetical order."""
    return sorted(label for label, count in corpus.facts.labels.items() if count >= _COMMON)


class ClipStage(ComparingStage):
    """Symmetric InfoNCE over all pairs at every step: frontal-report, lateral-report and frontal-lateral.

    Further views take part if they share the first one's encoder.

    ``config.loss``: ``patches``, weight of the patch head; ``labels``, weight of the binary cross-entropy of annotated
    labels, and of demographics and severity if the preset adds them to texts, from either encoder's vector (unknown
    labels masked); ``stated``, weight of the same for what each text states by :func:`stated_labels`, hard negatives
    included, from its own vector: a finding that images of this size hardly show is still another text, and so is the
    other side; ``known``, fraction of samples drawn from studies of which severity, age, sex or race is known, field by
    field; ``balanced``, class by class (:func:`xgem.train.corpus.studies_by_class`); ``hard_negatives``, number of
    texts per study that differ from its own in one statement: the other side, another size or finding, a denial
    (``xgem.labels.hard_negatives``). They are further negatives of their own study's images, in the direction from
    image to text. They are none for the images of other studies, of which they may be true ("right effusion").

    Three switches are on by default: ``mask_equal``, studies with the same annotated findings (or, without annotations,
    the same impression) are not negatives of each other in pairs with a report, as half of all chest reports are
    normal; ``vary``, texts are random parts of their sentences in random order (:func:`xgem.train.corpus.vary`);
    ``jitter``, images are changed a little (:func:`xgem.data.augment.jitter`). With these and ``patches`` 0, the loss
    is the paper's Eq. 1, the mean of both directions and of all pairs.
    """

    name = "clip"
    losses: ClassVar[Mapping[str, float]] = {
        "patches": 1.0,
        "labels": 0.0,
        "stated": 0.0,
        "known": 0.0,
        "balanced": 0.0,
        "hard_negatives": 0.0,
        "mask_equal": 1.0,
        "vary": 1.0,
        "jitter": 1.0,
    }
    switches = ("mask_equal", "vary", "jitter")

    @classmethod
    def needs(cls, name: str, preset: Preset) -> list[needs.Need]:
        encoder, text = preset.encoder(first_output(preset, is_image=True)), first_output(preset, is_image=False)
        shown = [modality for modality, config in preset.modalities.items() if config.encoder == encoder]
        pair = needs.at_least(2, *map(needs.prompt, (*shown, text)))
        return [pair, needs.known()] if cls.loss_weights(name, preset.train[name])["known"] else [pair]

    def __init__(self, context: StageContext) -> None:
        preset, train = context.preset, context.train
        self.config, self.seed, self.train, self.val = context.config(self.name), context.seed, train, context.val
        self.device = context.device
        self.weights = self.loss_weights(self.name, self.config)
        self.negatives = int(self.weights["hard_negatives"])  # k in shapes
        if self.negatives != self.weights["hard_negatives"] or self.negatives < 0:
            raise ConfigError(
                f"stage {self.name}: hard_negatives is {self.weights['hard_negatives']:g}; expected a number of texts, "
                "0 or more"
            )
        self.labels = common_labels(train) if self.weights["labels"] else []
        self.written = bool(self.weights["labels"] and train.joined)
        count = len(self.labels) + (len(written_labels({})) if self.written else 0)
        self.text = context.text
        self.names = (preset.encoder(context.view), preset.encoder(self.text))
        self.views = tuple(name for name, modality in preset.modalities.items() if modality.encoder == self.names[0])
        image, text = (preset.components[name] for name in self.names)
        assert isinstance(image, ImageEncoderConfig)
        assert isinstance(text, TextEncoderConfig)
        self.settings = (image, text)
        tokenizer = context.tokenizer(self.names[1])
        image_encoder = ImageEncoder.from_config(image)
        text_encoder = TextEncoder.from_config(text, None, tokenizer)
        self.tokenize = text_encoder.tokenize
        states = len(stated_labels("")) if self.weights["stated"] else 0
        self.module = ContrastiveModel(image_encoder, text_encoder, count, states)
        with torch.no_grad():
            size = image_encoder.config.image_size
            self.module(torch.zeros(1, 1, size, size), self.tokenize(["normal"]))
        self.usable = self._usable(train)
        self.known = studies_by_field(train, self.usable, self.weights["known"])
        self.classes = studies_by_class(train, self.usable)

    @property
    def fresh(self) -> dict[str, nn.Module]:
        assert isinstance(self.module, ContrastiveModel)
        return dict(zip(self.names, (self.module.image, self.module.text), strict=True))

    def _usable(self, corpus: Corpus, least: int = 2) -> NDArray[np.int32]:
        """The studies with ``least`` modalities or more."""
        parts = sum((corpus.facts.shows(view) for view in self.views), corpus.facts.described.astype(np.int32))
        return np.flatnonzero(parts >= least).astype(np.int32)

    def fingerprint(self) -> str:
        return super().fingerprint() + self.train.fingerprint()

    def batch(self, share: Share) -> dict[str, Any]:
        picked = permuted(len(self.usable), share.numbers, mix(self.seed, self.name))
        rngs = share.rngs("texts")
        studies = balanced(self.usable[picked].tolist(), self.known, self.weights["known"], rngs)
        studies = balanced(studies, self.classes, self.weights["balanced"], rngs)
        drawn = share.uniform((len(self.views), JITTER), "jitter") if self.weights["jitter"] else None
        return self._collate(self.train, studies, rngs, drawn)

    def _labels_of(self, study: Study, known: Mapping[str, Any]) -> list[float]:
        annotated = [named(name, study.labels, study.source) for name in self.labels]
        return annotated + (written_labels(known) if self.written else [])

    def _false_texts(self, corpus: Corpus, index: int, text: str, rng: random.Random | None) -> list[str]:
        """Up to k texts that are false of study ``index`` and differ from its ``text`` in one statement."""
        study, told = corpus.studies[index], corpus.texts(index)
        absent = absent_classes(study.labels, study.source)
        if not study.labels:  # not annotated: what its report denies
            labels = label_report(" ".join(filter(None, (study.findings, study.impression))))
            absent = tuple(name for name, label in labels.items() if label == 0)
        own = rng or random.Random(mix(self.seed, self.name, "hard negatives", study.id))
        return hard_negatives(text, self.negatives, own, absent=absent, told=told)

    def _collate(
        self,
        corpus: Corpus,
        indices: list[int],
        rngs: Sequence[random.Random] | None = None,
        jittered: Tensor | None = None,
    ) -> dict[str, Any]:
        """Batch of the studies ``indices``, b in number; n images (view by view) and m texts.

        In training, ``rngs`` draw images and texts, b in number, and ``jittered`` (b, views, 6) how images are changed.

        ``images`` (n, 1, s, s); ``ids`` (m, tokens); ``owner`` by modality: position in the batch of the study of each
        row; ``key`` (b,): equal for studies that are not negatives of each other; ``labels`` (b, l); ``text_labels``
        (m, l): only what the text states. With p hard negatives, ``ids`` is (m + p, tokens), and ``negatives`` (p,) has
        the place of each among k of every study: k times the position of its study, and its number there. ``stated``
        (m + p, 42) is there where it is trained on.
        """
        rows: dict[str, list[int]] = {view: [] for view in self.views}
        owners: dict[str, list[int]] = {name: [] for name in (*self.views, self.text)}
        texts: list[str] = []
        keys: list[int] = []
        labels: list[list[float]] = []
        text_labels: list[list[float]] = []
        false_texts: list[str] = []
        places: list[int] = []
        for position, index in enumerate(indices):
            rng = None if rngs is None else rngs[position]
            for view in self.views:
                if candidates := corpus.rows(index, view):
                    rows[view].append(rng.choice(candidates) if rng else candidates[0])
                    owners[view].append(position)
            study = corpus.studies[index]
            known = corpus.known(index)
            labels.append(self._labels_of(study, known))
            description = corpus.draw_text(index, rng) if rng else next(iter(corpus.texts(index)), None)
            if description is not None:
                text = vary(description, rng) if rng and self.weights["vary"] else description
                texts.append(text)
                owners[self.text].append(position)
                stated = {field: value for field, value in known.items() if f"{field}:" in text}
                text_labels.append(self._labels_of(study, stated))
                made = self._false_texts(corpus, index, text, rng) if self.negatives else []
                places += range(position * self.negatives, position * self.negatives + len(made))
                false_texts += made
            content = "|".join(sorted(study.labels)) or study.impression
            keys.append(int.from_bytes(hashlib.sha256(content.encode()).digest()[:6], "big"))
        x = corpus.images.floats(list(chain.from_iterable(rows.values())), self.device)
        if jittered is not None:
            x = jitter(x, torch.cat([jittered[owners[view], place] for place, view in enumerate(self.views)]))
        return {
            "images": x,
            "ids": self.tokenize([*texts, *false_texts] or ["normal"]),
            "key": torch.tensor(keys),
            "labels": torch.tensor(labels),
            "text_labels": torch.tensor(text_labels).reshape(len(text_labels), len(labels[0])),
            "negatives": torch.tensor(places, dtype=torch.long),
            "stated": torch.tensor([stated_labels(text) for text in [*texts, *false_texts] if self.weights["stated"]]),
            "owner": {name: torch.tensor(value, dtype=torch.long) for name, value in owners.items()},
        }

    def per_sample(self, module: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        # b studies, v views, n images, m texts, k hard negatives a study and p in all, d shared space
        image, text, read_out, scale, logits, states = module(batch["images"], batch["ids"])
        owner, v, k = batch["owner"], len(self.views), self.negatives
        spread = partial(_spread, len(batch["key"]))
        shown = torch.cat([owner[view] * v + place for place, view in enumerate(self.views)])  # (n,) in b v
        told, false = owner[self.text], batch["negatives"]  # (m,) in b, (p,) in b k
        errors = (read_out - coarse_patches(batch["images"], read_out.shape[1])).square().mean(dim=(1, 2))  # (n,)
        found = {
            "key": batch["key"],
            "scale": scale.expand(len(batch["key"])),
            "images": spread(image.pooled, shown, v),  # (b, v, d)
            "shown": spread(errors.new_ones(len(shown)), shown, v),  # (b, v)
            "texts": spread(text.pooled, told),  # (b, 1, d)
            "told": spread(errors.new_ones(len(told)), told),  # (b, 1)
            "patches": spread(errors, shown, v),  # (b, v)
        }
        if k:
            found["false"] = spread(text.pooled[len(told) :], false, k)  # (b, k, d)
            found["counted"] = spread(errors.new_ones(len(false)), false, k)  # (b, k)
        if logits is not None:
            # Label head: n images, then m texts; unknown labels are masked
            of_images = torch.cat([owner[view] for view in self.views])  # (n,)
            truth = torch.cat([batch["labels"][of_images], batch["text_labels"]])  # (n + m, l)
            places = torch.cat([of_images * (v + 1) + shown % v, told * (v + 1) + v])
            found["labels"] = spread(_label_sums(logits, truth), places, v + 1)  # (b, v + 1, 2)
        if states is not None:
            truth = batch["stated"].reshape(-1, states.shape[1])  # (m + p, 42)
            places = torch.cat([told * (k + 1), false + torch.div(false, max(k, 1), rounding_mode="floor") + 1])
            found["stated"] = spread(_label_sums(states, truth), places, k + 1)  # (b, k + 1, 2)
        return found

    def criterion(self, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        key, scale = values["key"], values["scale"].mean()
        vectors = torch.cat([values["images"], values["texts"]], dim=1).unbind(dim=1)  # (b, d) each
        present = (torch.cat([values["shown"], values["told"]], dim=1) > 0).unbind(dim=1)  # (b,) each
        # InfoNCE of every pair of modalities, over the studies that have both
        terms: dict[str, Tensor] = {}
        names = (*self.views, self.text)
        for a, b in combinations(range(len(names)), 2):
            both = present[a] & present[b]
            if both.sum() < 2:
                continue
            with_text = names[b] == self.text
            same = key[both][:, None] == key[both] if with_text and self.weights["mask_equal"] else None
            false = with_text and "false" in values
            extra = (values["false"][both], values["counted"][both] > 0) if false else (None, None)
            terms[f"{names[a]}-{names[b]}"] = info_nce(vectors[a][both], vectors[b][both], scale, same, *extra)
        logged = {name: value.detach() for name, value in terms.items()}
        patches = values["patches"].sum() / values["shown"].sum().clamp(min=1)
        logged |= {"patches": patches.detach(), "scale": scale.detach()}
        total = self.weights["patches"] * patches
        if terms:
            total = total + torch.stack(list(terms.values())).mean()
        for name in ("labels", "stated"):
            if name in values:
                losses, known = values[name].flatten(0, 1).sum(dim=0)
                total = total + self.weights[name] * losses / known.clamp(min=1)
                logged[name] = (losses / known.clamp(min=1)).detach()
        return total, logged

    def validate(self, module: nn.Module) -> dict[str, float]:
        device = next(module.parameters()).device
        figures: dict[str, float] = {}
        size = 64
        indices = self._usable(self.val).tolist()
        chunks = [indices[i : i + size] for i in range(0, len(indices) - len(indices) % size or len(indices), size)]
        for chunk in chunks:
            batch = self._collate(self.val, chunk)
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            loss, logged = self.loss(module, batch)
            for key, value in (logged | {"loss": loss}).items():
                figures[key] = figures.get(key, 0.0) + float(value) / len(chunks)
        return figures

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, ContrastiveModel)
        for name, part in zip(self.names, (module.image, module.text), strict=True):
            store.save_component(root, name, part)
