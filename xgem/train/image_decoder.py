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
from xgem.train.perceptual import FeatureDiscriminator, PerceptualFeatures, perceptual_distance
from xgem.train.share import Share
from xgem.train.stage import Frozen
from xgem.utils.hashing import module_hash

_STEEPEST = 2.0
_Logits = tuple[Tensor, Tensor, Tensor]
_Maps = tuple[list[Tensor], list[Tensor]] | None


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
    """The codec and its discriminators in one ``forward``: of patches, and of ``features``."""

    def __init__(self, vae: ImageVAE, noise: float, features: PerceptualFeatures | None, on_features: bool) -> None:
        super().__init__(vae, noise)
        self.discriminator = PatchDiscriminator()
        self.on_features = FeatureDiscriminator() if on_features else None
        self.features = Frozen(perceptual=features)

    def judge(self, x: Tensor, y: Tensor, maps: _Maps) -> list[_Logits]:
        """Logits of real images and of decoded ones, each discriminator's, scale by scale; ``maps``: their features.

        The first two of a triple have no gradient to the codec, the third none to the discriminator: one backward pass
        serves both.
        """
        real, fake = self.discriminator(torch.cat([x, y.detach()])).float().chunk(2)
        judged = [(real, fake, _frozen(self.discriminator, y).float())]
        if self.on_features is not None and maps is not None:
            reals, fakes = self.on_features(maps[0]), self.on_features([one.detach() for one in maps[1]])
            judged += zip(reals, fakes, _frozen(self.on_features, maps[1]), strict=True)
        return judged

    def forward(self, x: Tensor, drawn: Mapping[str, Tensor] | None = None) -> tuple[Any, ...]:
        y, mean, logvar = super().forward(x, drawn)
        if not self.training:
            return y, mean, logvar
        features = self.features["perceptual"]
        maps = None if features is None else (features(x), features(y))
        return y, self.judge(x, y, maps), maps


def _frozen(discriminator: nn.Module, x: Any) -> Any:
    """Its output without a gradient to its parameters."""
    return functional_call(discriminator, {name: p.detach() for name, p in discriminator.named_parameters()}, (x,))


class ImageDecoderStage(CodecStage):
    """L1 + gradients + divergence of local power + a patch discriminator (hinge loss), for the decoder only.

    It continues from the codec in its checkpoint folder. Latents do not change, so their generators remain valid.
    ``config.loss``: ``gradient``, ``power``, ``adversarial``; ``after``, steps before the adversarial loss is applied;
    ``perceptual``, distance between SqueezeNet's features; ``on_features``, the weight of a second discriminator, of
    these features, relative to that of patches; ``noise``, greatest standard deviation of the noise in the latents that
    the decoder learns to decode, as a generator's latents are not quite those of images.
    """

    name = "image-decoder"
    losses: ClassVar[Mapping[str, float]] = {
        "gradient": 0.5, "power": 0.02, "adversarial": 0.01, "after": 150, "crop": 1.0,
        "perceptual": 0.0, "on_features": 0.0, "noise": 0.0,
    }  # fmt: skip

    def __init__(self, context: StageContext) -> None:
        (vae,) = context.parts([context.preset.codec(context.view)], self.name).values()
        super().__init__(context, vae)
        self.adversarial, self.after = self.weights.pop("adversarial"), self.weights.pop("after")
        self.on_features, self.noise = self.weights.pop("on_features"), self.weights.pop("noise")
        self.features = PerceptualFeatures().to(self.device) if self.on_features or self.weights["perceptual"] else None
        if self.features is None:
            del self.weights["perceptual"]
        decoder = set(vae.decoder_parameters())
        for parameter in vae.parameters():
            parameter.requires_grad_(parameter in decoder)
        self.module = _Judged(vae, self.noise, self.features, self.on_features > 0)

    @property
    def fresh(self) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        """Includes the encoder, but not the decoder, which a finished run has changed."""
        return super().fingerprint() + module_hash(self.vae.vae.encoder)

    def batch(self, share: Share) -> dict[str, Any]:
        return super().batch(share) | {"adversarial": self.adversarial if share.step >= self.after else 0.0}

    def terms(self, x: Tensor, y: Tensor, *moments: Tensor) -> dict[str, Tensor]:
        return self._terms(x, y, self.features and (self.features(x), self.features(y)))

    def _terms(self, x: Tensor, y: Tensor, maps: _Maps) -> dict[str, Tensor]:
        perceptual = {} if maps is None else {"perceptual": perceptual_distance(*maps)}
        return image_terms(x, y) | {"power": power_divergence(x, y)} | perceptual

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["x"]
        y, (patches, *scales), maps = module(x, batch["drawn"])
        terms = self._terms(x, y, maps)
        named = {"discriminator": (1.0, [patches])} | ({"on_features": (self.on_features, scales)} if scales else {})
        total = self.total(terms)
        for name, (weight, logits) in named.items():
            discriminators = torch.stack([((1 - real).relu() + (1 + fake).relu()).mean() for real, fake, _ in logits])
            decoder = torch.stack([judged.mean() for _, _, judged in logits])
            total = total - batch["adversarial"] * weight * decoder.mean() + discriminators.mean()
            terms[name] = discriminators.mean()
        return total, {name: value.detach() for name, value in terms.items()}

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, Autoencoder)
        store.save_component(root, self.component, module.vae)
