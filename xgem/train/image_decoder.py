"""The stage that fine-tunes the image codec's decoder for sharpness; encoder and latents do not change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from xgem.checkpoints import store
from xgem.generators.image_vae import ImageVAE
from xgem.train.context import StageContext
from xgem.train.image_vae import Autoencoder, CodecStage, image_terms, local_spectra
from xgem.utils.hashing import module_hash

_STEEPEST = 2.0


def power_divergence(x: Tensor, y: Tensor) -> Tensor:
    """Itakura-Saito divergence of the local power spectra of ``y`` from those of ``x``, images (b, 1, h, w).

    With powers P of ``x`` and Q of ``y``, the expectation of P/Q - log(P/Q) - 1 over all P that a latent allows is
    lowest where Q is their *mean*. A difference of logarithms is lowest at their median, for noise log 2 = 0.69 of the
    mean. Beyond log(P/Q) = 2, P/Q is continued linearly, so that flat windows do not dominate the others.
    """
    log_ratio = 2 * (local_spectra(x) - local_spectra(y))
    ratio = log_ratio.clamp(max=_STEEPEST).exp() * (1 + (log_ratio - _STEEPEST).clamp(min=0))
    return (ratio - log_ratio - 1).mean()


class PatchDiscriminator(nn.Sequential):
    """Images (b, 1, h, w) to logits (b, 1, h', w'), one per patch of 34 x 34 pixels, high for real patches.

    Source: Isola et al. 2017 (3.2, appendix 6.1.2), with group instead of batch normalisation.
    """

    def __init__(self, width: int = 32) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after, stride in ((width, 2 * width, 2), (2 * width, 4 * width, 1)):
            layers += [nn.Conv2d(before, after, 4, stride, 1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(4 * width, 1, 4, 1, 1))


class _Judged(Autoencoder):
    """The codec and its discriminator in one ``forward``."""

    def __init__(self, vae: ImageVAE) -> None:
        super().__init__(vae)
        self.discriminator = PatchDiscriminator()

    def judge(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of real and decoded images for the discriminator's loss, and of decoded ones for the decoder's.

        The first two have no gradient to the codec, the third none to the discriminator: one backward pass serves both.
        """
        real, fake = self.discriminator(torch.cat([x, y.detach()])).float().chunk(2)
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        return real, fake, functional_call(self.discriminator, frozen, (y,)).float()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, mean, logvar = super().forward(x)
        return (y, *self.judge(x, y)) if self.training else (y, mean, logvar)


class ImageDecoderStage(CodecStage):
    """L1 + gradients + divergence of local power + a patch discriminator (hinge loss), for the decoder only.

    It continues from the codec in its checkpoint folder. Latents do not change, so their generators remain valid.
    ``config.loss``: ``gradient``, ``power``, ``adversarial``; ``after``, steps before the adversarial loss is applied.
    """

    name = "image-decoder"
    losses: ClassVar[Mapping[str, float]] = {
        "gradient": 0.5, "power": 0.02, "adversarial": 0.01, "after": 150, "crop": 1.0,
    }  # fmt: skip

    def __init__(self, context: StageContext) -> None:
        (vae,) = context.parts([context.preset.codec(context.view)], self.name).values()
        super().__init__(context, vae)
        self.adversarial, self.after = self.weights.pop("adversarial"), self.weights.pop("after")
        decoder = set(vae.decoder_parameters())
        for parameter in vae.parameters():
            parameter.requires_grad_(parameter in decoder)
        self.module = _Judged(vae)

    @property
    def fresh(self) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        """Includes the encoder, but not the decoder, which a finished run has changed."""
        return super().fingerprint() + module_hash(self.vae.vae.encoder)

    def batch(self, step: int, rank: int, world: int) -> dict[str, Any]:
        judged = step >= self.after * self.config.gradient_accumulation
        return super().batch(step, rank, world) | {"adversarial": self.adversarial if judged else 0.0}

    def terms(self, x: Tensor, y: Tensor, *moments: Tensor) -> dict[str, Tensor]:
        return image_terms(x, y) | {"power": power_divergence(x, y)}

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["x"]
        y, real, fake, judged = module(x)
        terms = self.terms(x, y)
        discriminator = ((1 - real).relu() + (1 + fake).relu()).mean()
        logged = {k: v.detach() for k, v in (terms | {"discriminator": discriminator}).items()}
        return self.total(terms) - batch["adversarial"] * judged.mean() + discriminator, logged

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, Autoencoder)
        store.save_component(root, self.component, module.vae)
