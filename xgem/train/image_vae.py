"""The stage that trains the image codec."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from xgem.checkpoints import store
from xgem.configs.codecs import ImageVAEConfig
from xgem.configs.preset import Preset
from xgem.data.prepare import as_floats
from xgem.generators.image_vae import ImageVAE
from xgem.labels.views import VIEWS
from xgem.metrics.spectrum import band_power
from xgem.train import needs
from xgem.train.context import StageContext
from xgem.train.share import Share
from xgem.train.sheets import contact_sheet
from xgem.train.stage import Stage, mean_and_std, permuted
from xgem.utils.random import mix

_VALIDATION = 128
_SHORTCUT = 1024


class Autoencoder(nn.Module):
    """Encode, sample the posterior, decode in one ``forward``, so that all is wrapped by DDP and compiled.

    ``noise``: greatest standard deviation of the noise that normalised latents get in training, drawn for each image.
    """

    def __init__(self, vae: ImageVAE, noise: float = 0.0) -> None:
        super().__init__()
        self.vae, self.noise = vae, noise

    def forward(self, x: Tensor, drawn: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Images (b, 1, s, s) to reconstructions, and mean and log variance (b, c, h, w) of the posterior.

        ``drawn``, in training: the noise of the posterior's sample (b, c, h, w), ``added`` noise of that shape, and the
        ``amount`` of the latter (b,) from 0 to 1.
        """
        mean, logvar = self.vae.moments(x)
        z = mean if drawn is None else mean + drawn["noise"] * (0.5 * logvar).exp()
        if drawn is not None and self.noise:
            amount = self.noise * drawn["amount"][:, None, None, None]  # (b, 1, 1, 1)
            z = z + amount * self.vae.latent_scale(z)[1] * drawn["added"]
        return self.vae.reconstruct(z).float(), mean.float(), logvar.float()


def local_spectra(x: Tensor, window: int = 16) -> Tensor:
    """Log amplitudes of Hann-windowed, half-overlapping patches: (b, 1, h, w) to (b, patches, window, window/2 + 1).

    The image counterpart of the multi-resolution STFT loss of vocoders (Yamamoto et al. 2020). It ignores phase, so
    that the decoder is rewarded for texture of the right amplitude even where its exact position is unknown, which a
    pixel loss turns into blur.
    """
    taper = torch.hann_window(window, periodic=False, dtype=x.dtype, device=x.device)
    patches = F.unfold(x, window, stride=window // 2).transpose(1, 2).unflatten(2, (window, window))  # (b, p, w, w)
    spectra = torch.fft.rfft2(patches * taper[:, None] * taper, norm="ortho")
    # The floor, an amplitude of 0.003, is below the noise of a radiograph; without it, blur has unbounded gradients
    return 0.5 * torch.log(spectra.real.square() + spectra.imag.square() + 1e-5)


def image_terms(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Mean absolute difference of images (b, 1, h, w), and of their horizontal and vertical gradients."""
    gradient = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return {"l1": (y - x).abs().mean(), "gradient": torch.as_tensor(gradient)}


def crops(x: Tensor, side: int, step: int, rngs: Sequence[random.Random]) -> Tensor:
    """A square of each image (b, 1, h, w) at a random place on a grid of ``step`` pixels: (b, 1, side, side)."""
    rows, columns = ((length - side) // step for length in x.shape[2:])
    corners = [(rng.randint(0, rows) * step, rng.randint(0, columns) * step) for rng in rngs]
    return torch.stack([one[:, i : i + side, j : j + side] for one, (i, j) in zip(x, corners, strict=True)])


class CodecStage(Stage):
    """Common base of the stages that train the image codec: batches, validation figures, contact sheets.

    ``config.loss``: ``crop``, the side of the random crop of an image that is trained on, as a fraction of the image's:
    a codec is made of convolutions, and many crops teach it more than few whole images do.
    """

    @classmethod
    def needs(cls, name: str, preset: Preset) -> list[needs.Need]:
        return [needs.image(*VIEWS)]

    def __init__(self, context: StageContext, vae: ImageVAE) -> None:
        self.config, self.seed, self.settings = context.config(self.name), context.seed, (vae.config,)
        self.component = context.preset.codec(context.view)
        self.train, self.val = context.train.images, context.val.images
        self.vae, self.module, self.device = vae, Autoencoder(vae), context.device
        self.weights = self.loss_weights(self.name, self.config)
        self.crop, self.noise = self.weights.pop("crop"), 0.0

    def fingerprint(self) -> str:
        return super().fingerprint() + self.train.sha256

    def batch(self, share: Share) -> dict[str, Any]:
        rows = permuted(len(self.train.values), share.numbers, mix(self.seed, self.name))
        x = self.train.bytes(rows)  # (b, 1, s, s) uint8
        grid = self.vae.config.downscale
        side = round(x.shape[2] * self.crop / grid) * grid
        x = crops(x, side, grid, share.rngs("crops")) if side < x.shape[2] else x
        shape = (self.vae.config.latent_channels, side // grid, side // grid)
        drawn = {"noise": share.normal(shape)}
        if self.noise:
            drawn |= {"amount": share.uniform((), "amount"), "added": share.normal(shape, "added")}
        return {"x": as_floats(x, self.device), "drawn": drawn}

    @abstractmethod
    def terms(self, x: Tensor, y: Tensor, *moments: Tensor) -> dict[str, Tensor]:
        """Terms of the loss, ``l1`` and the keys of ``weights``, for images ``x`` and reconstructions ``y``
        (b, 1, s, s); ``moments``: mean and log variance (b, c, h, w)."""

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["l1"] + sum(weight * terms[name] for name, weight in self.weights.items())

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        terms = self.terms(batch["x"], *module(batch["x"], batch["drawn"]))
        return self.total(terms), {k: v.detach() for k, v in terms.items()}

    def _val_rows(self) -> Tensor:
        n = len(self.val.values)
        return torch.linspace(0, n - 1, min(n, _VALIDATION)).long()

    def validate(self, module: nn.Module) -> dict[str, float]:
        device = next(module.parameters()).device
        figures: dict[str, float] = {}
        square, power = 0.0, np.zeros(2)
        chunks = self._val_rows().split(32)
        for rows in chunks:
            x = self.val.floats(rows).to(device)
            y, mean, logvar = module(x)
            terms = self.terms(x, y, mean, logvar)
            for key, value in ({"loss": self.total(terms)} | terms).items():
                figures[key] = figures.get(key, 0.0) + float(value) / len(chunks)
            square += float((y - x).square().mean()) / len(chunks)
            power += [band_power(images[:, 0].cpu().numpy()).sum() for images in (y, x)]
        figures["psnr"] = float(10 * torch.log10(torch.tensor(4.0 / square)))  # images span 2, from -1 to 1
        figures["upper_power_ratio"] = float(power[0] / power[1])
        return figures

    def sheet(self, module: nn.Module) -> Image.Image:
        x = self.val.floats(self._val_rows()[:8]).to(next(module.parameters()).device)
        return contact_sheet([x, module(x)[0].clamp(-1, 1)])


class ImageVAEStage(CodecStage):
    """L1 + gradients + local spectra + KL. ``config.loss``: ``gradient``, ``spectral``, ``kl``, ``prominence``."""

    name = "image-vae"
    losses: ClassVar[Mapping[str, float]] = {
        "gradient": 0.5, "spectral": 0.02, "kl": 0.001, "prominence": 0.5, "crop": 1.0,
    }  # fmt: skip

    def __init__(self, context: StageContext) -> None:
        settings = context.preset.components[context.preset.codec(context.view)]
        assert isinstance(settings, ImageVAEConfig)
        super().__init__(context, ImageVAE.from_config(settings))
        self.prominence = self.weights.pop("prominence")
        if settings.shortcut:
            rows = torch.linspace(0, len(self.train.values) - 1, _SHORTCUT).long().unique()
            self.vae.fit_shortcut(self.train.floats(rows))

    @property
    def fresh(self) -> dict[str, nn.Module]:
        return {self.component: self.vae}

    def terms(self, x: Tensor, y: Tensor, *moments: Tensor) -> dict[str, Tensor]:
        mean, logvar = moments
        spectral = (local_spectra(y) - local_spectra(x)).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return image_terms(x, y) | {"spectral": spectral, "kl": kl}

    def finish(self, module: nn.Module, root: Path) -> None:
        assert isinstance(module, Autoencoder)
        vae = module.vae
        mean, std = self._statistics(vae)
        if vae.config.shortcut:
            std = std / self._prominence(vae, std)
        vae.config = vae.config.model_copy(
            update={"latent_mean": tuple(mean.tolist()), "latent_std": tuple(std.tolist())}
        )
        store.save_component(root, self.component, vae)

    def _statistics(self, vae: ImageVAE) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (c,) of the latents of every fourth training image, by parts."""
        device = next(vae.parameters()).device
        parts = torch.arange(0, len(self.train.values), 4).split(64)
        latents = (vae.moments(self.train.floats(rows).to(device))[0].cpu() for rows in parts)  # (b, c, h, w)
        mean, std = mean_and_std(z.movedim(1, -1).flatten(end_dim=-2) for z in latents)
        return mean.float(), std.float()

    def _prominence(self, vae: ImageVAE, std: Tensor) -> Tensor:
        """Standard deviation (c,) of each channel of the normalised latents, of root mean square 1.

        With all principal components whitened to unit variance, a generator would have to resolve block means and the
        finest stripes at the same noise levels. Scaling by the channel's amplitude in the image, to the power of
        ``prominence`` (0: whitened, 1: as in pixels), lets coarse structure form first, as in natural images.
        """
        amplitude = vae.leave.weight.detach().flatten(1).norm(dim=1).cpu() * std
        weight = amplitude**self.prominence
        return weight / weight.square().mean().sqrt()
