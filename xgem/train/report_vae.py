"""The stage that trains the report codec."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xgem.checkpoints import store
from xgem.configs.base import Section
from xgem.configs.codecs import ReportVAEConfig
from xgem.configs.preset import Preset
from xgem.generators.report_sentences import to_sentences
from xgem.generators.report_vae import ReportVAE
from xgem.labels.rules import label_report
from xgem.labels.vocabulary import NO_FINDING
from xgem.train import needs
from xgem.train.context import StageContext, first_output
from xgem.train.corpus import Corpus
from xgem.train.recombine import Recombined
from xgem.train.share import Share
from xgem.train.stage import ComparingStage, mean_and_std, permuted
from xgem.types import DataError
from xgem.utils.random import mix
from xgem.utils.sequences import Computed

_BLOCK = 16


def kl_weight(progress: float) -> float:
    """One annealing cycle (Optimus; Fu et al. 2019): 0 for half of training, a linear ramp for a quarter, then 1."""
    return min(1.0, max(0.0, (progress - 0.5) / 0.25))


def _distinct(reports: Iterable[str], places: Mapping[Section, int], more: Iterable[str] = ()) -> list[str]:
    """The distinct sentences of reports, as the codec divides them, and ``more``."""
    return list(dict.fromkeys([*(text for report in reports for text in to_sentences(report, places)), *more]))


def _worth_knowing(reports: Iterable[str], places: Mapping[Section, int]) -> list[str]:
    """The sentences that stand in more than one report, or state a finding."""
    counts = Counter(text for report in reports for text in set(to_sentences(report, places)))
    return sorted(text for text, count in counts.items() if count > 1 or _states_a_finding(text))


def _states_a_finding(text: str) -> bool:
    return any(label == 1 for name, label in label_report(text).items() if name != NO_FINDING)


def _reports(corpus: Corpus) -> Sequence[str]:
    """Those of all studies that have one, each read when it is asked for."""
    studies = np.flatnonzero(corpus.facts.reported).astype(np.int32)
    return Computed(len(studies), lambda number: corpus.report(int(studies[number])))


def _sentences(corpus: Corpus) -> Sequence[str]:
    """Those of all studies, each read when it is asked for."""
    ends = np.cumsum(corpus.facts.sentences, dtype=np.uint32)

    def sentence(number: int) -> str:
        study = int(np.searchsorted(ends, number, side="right"))
        return corpus.sentences(study)[number - int(ends[study])]  # counted from the last

    return Computed(int(ends[-1]) if len(ends) else 0, sentence)


class _Autoencoder(nn.Module):
    def __init__(self, vae: ReportVAE, hide: float) -> None:
        super().__init__()
        self.vae, self.hide = vae, hide

    def forward(
        self, texts: list[str], drawn: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Negative log likelihood (b,), mean and log variance (b, d), and the number of predicted tokens (b,).

        ``drawn``, in training: the ``noise`` of the posterior's sample (b, d), and for every token of the longest text
        a number in [0, 1) that says whether it is ``hidden`` from the decoder.
        """
        mean, logvar = self.vae.posterior(texts)  # (b, d) each
        z = mean if drawn is None else mean + drawn["noise"] * (0.5 * logvar).exp()
        ids = self.vae.decoder_ids(texts)  # (b, n)
        inputs = ids
        if drawn is not None and self.hide > 0:  # word dropout makes the decoder rely on z (Bowman et al. 2016)
            hidden = drawn["hidden"][:, : ids.shape[1]] < self.hide
            hidden[:, 0] = False
            inputs = ids.masked_fill(hidden, self.vae.decoder_tokenizer.pad_token_id)
        counts = (ids[:, 1:] != self.vae.decoder_tokenizer.pad_token_id).sum(dim=1)
        return self.vae.reconstruction_loss(ids, z, inputs), mean, logvar, counts


class ReportVAEStage(ComparingStage):
    """Reconstruction + scheduled KL with free bits.

    Besides complete reports, it learns random combinations of sentences from all sections of the training split, so
    that the latent space covers combinations of findings that no single report has. A codec that codes sentences
    learns them one by one, each distinct one of the training split equally often, and as recombined ones variants with
    other clauses, sides, sizes and words. ``config.loss``: ``kl``; ``free_bits``, nats per dimension that are not
    penalised; ``hide``, fraction of decoder inputs masked; ``recombined``, fraction of the batch.
    """

    name = "report-vae"
    losses: ClassVar[Mapping[str, float]] = {"kl": 1.0, "free_bits": 0.5, "hide": 0.2, "recombined": 0.3}

    @classmethod
    def needs(cls, name: str, preset: Preset) -> list[needs.Need]:
        return [needs.target(first_output(preset, is_image=False), preset.report_sections)]

    def __init__(self, context: StageContext) -> None:
        self.config, self.seed = context.config(self.name), context.seed
        self.component = context.preset.codec(context.text)
        settings = context.preset.components[self.component]
        assert isinstance(settings, ReportVAEConfig)
        tokenizer = context.tokenizer(self.component)
        train, val = context.train, context.val
        self.corpus, self.settings = train, (settings,)
        self.weights = self.loss_weights(self.name, self.config)
        self.reports, self.val_reports = map(_reports, (train, val))
        if not self.val_reports:
            raise DataError("report-vae: the validation split has no report: use a manifest with reports in split val")
        self.pool = _sentences(train)
        self.variants: Recombined | None = None
        self.train_texts, self.val_texts = self.reports, self.val_reports
        if settings.sentences is not None:
            every = list(self.pool)
            self.variants = Recombined(every)
            self.train_texts = _distinct(self.reports, settings.sentences, every)
            self.val_texts = _distinct(self.val_reports, settings.sentences)
        self.block = lru_cache(1)(self._block)
        # A checkpoint has the sizes and tokenizers of its pretrained models: none is fetched again
        assets = context.init / self.component if context.init and settings.pretrained_encoder else None
        self.autoencoder = _Autoencoder(ReportVAE.from_config(settings, assets, tokenizer), self.weights["hide"])
        self.module = self.autoencoder

    @property
    def fresh(self) -> dict[str, nn.Module]:
        assert isinstance(self.module, _Autoencoder)
        return {self.component: self.module.vae}

    def fingerprint(self) -> str:
        return super().fingerprint() + self.corpus.fingerprint()

    def batch(self, share: Share) -> dict[str, Any]:
        # Blocks of 16 batches are drawn and sorted by length, which saves padding, then used in random order
        block, place = divmod(share.step, _BLOCK)
        drawn = self.block(block, _BLOCK * share.batch)
        slot = permuted(_BLOCK, range(_BLOCK), mix(self.seed, self.name, "block", block))[place]
        start = slot * share.batch + share.first
        texts = [
            self._recombined(self.train_texts[i], rng)
            if rng.random() < self.weights["recombined"]
            else self.train_texts[i]
            for i, rng in zip(drawn[start : start + share.size], share.rngs("texts"), strict=True)
        ]
        vae = self.autoencoder.vae
        random_numbers = {
            "noise": share.normal((vae.config.latent_dim,)),  # (b, d)
            "hidden": share.uniform((vae.config.max_length,), "hidden"),  # (b, n)
        }
        return {"texts": texts, "drawn": random_numbers, "kl": kl_weight(share.step / self.config.steps)}

    def _block(self, block: int, length: int) -> list[int]:
        """The numbers of the texts of a block of ``length``, sorted by their lengths."""
        drawn = permuted(len(self.train_texts), range(block * length, (block + 1) * length), mix(self.seed, self.name))
        return sorted(drawn, key=lambda number: len(self.train_texts[number]))

    def _recombined(self, text: str, rng: random.Random) -> str:
        if self.variants is None:
            return " ".join(rng.sample(self.pool, rng.choice((1, 1, 2, 3))))
        return self.variants.draw(text, rng)

    def _kl(self, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """KL divergence of posteriors (b, d), summed over dimensions, and the same with the batch mean of each clamped
        to at least the free bits."""
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        return kl.sum(dim=1).mean(), kl.mean(dim=0).clamp(min=self.weights["free_bits"]).sum()

    def per_sample(self, module: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        nll, mean, logvar, counts = module(batch["texts"], batch["drawn"])
        annealed = torch.full_like(nll, batch["kl"])
        return {"nll": nll, "mean": mean, "logvar": logvar, "counts": counts, "annealed": annealed}

    def criterion(self, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        nll, counts = values["nll"], values["counts"]
        kl, floored = self._kl(values["mean"], values["logvar"])
        total = nll.mean() + values["annealed"][0] * self.weights["kl"] * floored
        return total / 10, {"nll_per_token": (nll.sum() / counts.sum()).detach(), "kl": kl.detach()}

    def validate(self, module: nn.Module) -> dict[str, float]:
        assert isinstance(module, _Autoencoder)
        texts = list(self.val_texts[:256])
        nll, mean, logvar, counts = module(texts)
        kl, floored = self._kl(mean, logvar)
        # Fraction of reports that are decoded verbatim from the posterior mean
        vae, shown = module.vae, list(self.val_reports[:128])
        exact = sum(a == b for a, b in zip(vae.decode(vae.encode(shown)), shown, strict=True)) / len(shown)
        return {
            "loss": float(nll.mean() + self.weights["kl"] * floored) / 10,
            "nll_per_token": float(nll.sum() / counts.sum()),
            "kl": float(kl),
            "exact": exact,
        }

    def sheet(self, module: nn.Module) -> str:
        assert isinstance(module, _Autoencoder)
        vae, shown = module.vae, list(self.val_reports[:40])
        return "\n".join(f"{a}\n  -> {b}" for a, b in zip(shown, vae.decode(vae.encode(shown)), strict=True))

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, _Autoencoder)
        vae = module.vae
        chunks = (list(self.reports[start : start + 64]) for start in range(0, len(self.reports), 64))
        normalised = (vae.encode(chunk).cpu().double().reshape(-1, 1) for chunk in chunks)  # (b * n * d, 1)
        mean, std = mean_and_std(z * vae.config.latent_std + vae.config.latent_mean for z in normalised)
        vae.config = vae.config.model_copy(update={"latent_mean": float(mean), "latent_std": float(std)})
        if vae.config.known_sentences:
            vae.know(_worth_knowing(self.reports, vae.config.sentences or {}))
        store.save_component(root, self.component, vae)
