"""The stage that trains the report codec's decoder on latents as a generator makes them: near those of real reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xgem.checkpoints import store
from xgem.generators.report_vae import ReportVAE
from xgem.train.context import StageContext
from xgem.train.report_vae import Autoencoder, ReportVAEStage
from xgem.utils.hashing import module_hash


class _NoisyDecoder(Autoencoder):
    """The codec, whose decoder gets posterior means with noise of a standard deviation drawn for each text."""

    def __init__(self, vae: ReportVAE, hide: float, noise: float) -> None:
        super().__init__(vae, hide)
        self.noise = noise

    def latents(self, mean: Tensor, logvar: Tensor) -> Tensor:
        del logvar
        share = torch.rand(len(mean), 1, device=mean.device) if self.training else 0.5  # (b, 1)
        return mean + share * self.noise * self.vae.config.latent_std * torch.randn_like(mean)

    def posterior(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        self.vae.encoder.eval()  # frozen, so without dropout
        with torch.no_grad():
            return super().posterior(texts)


class ReportDecoderStage(ReportVAEStage):
    """Reconstruction from noisy latents, for the decoder only.

    A generator's latents lie beside those of real texts, where a decoder that has seen none but these writes no
    sentences. It continues from the codec in its checkpoint folder; latents do not change, so their generators remain
    valid. ``config.loss``: ``noise``, the largest standard deviation of what is added, in those of the latents;
    ``hide`` and ``recombined`` as in :class:`~xgem.train.report_vae.ReportVAEStage`.
    """

    name = "report-decoder"
    losses: ClassVar[Mapping[str, float]] = {"noise": 0.7, "hide": 0.2, "recombined": 0.3}

    def __init__(self, context: StageContext) -> None:
        (vae,) = context.parts([context.preset.codec(context.text)], self.name).values()
        super().__init__(context, vae)
        encoder = {id(value) for part in (vae.encoder, vae.to_posterior) for value in part.parameters()}
        for parameter in vae.parameters():
            parameter.requires_grad_(id(parameter) not in encoder)  # of shared embeddings too
        self.module = _NoisyDecoder(vae, self.weights["hide"], self.weights["noise"])

    @property
    def fresh(self) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        """Includes the encoder, but not the decoder, which a finished run has changed."""
        vae = self.autoencoder.vae
        return super().fingerprint() + module_hash(vae.encoder) + module_hash(vae.to_posterior)

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        nll, _, _, counts = module(batch["texts"])
        return nll.mean() / 10, {"nll_per_token": (nll.sum() / counts.sum()).detach()}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Of texts with half of the noise, and without it the fraction that is decoded verbatim."""
        assert isinstance(module, Autoencoder)
        nll, _, _, counts = module(self.val_texts[:256])
        return {
            "loss": float(nll.mean()) / 10,
            "nll_per_token": float(nll.sum() / counts.sum()),
            "exact": self.exact(module.vae),
        }

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, Autoencoder)
        store.save_component(root, self.component, module.vae)
