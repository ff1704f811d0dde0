"""The stages of a preset without data: networks of the right sizes, and batches of the right shapes, for plans.

All is on the meta device: nothing is read, downloaded or allocated. What a stage knows
from the data (prompts present, tokens of a text) is assumed at its greatest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xgem.alignment.model import Alignment, TransformerAlignment
from xgem.configs.components import ControlNetConfig, DiTGeneratorConfig
from xgem.configs.preset import Preset
from xgem.convert.random_init import random_component
from xgem.encoders.image import ImageEncoder
from xgem.encoders.text import TextEncoder
from xgem.generators.controlnet import ControlNet
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.modalities import get_modality
from xgem.train import clip, control, diffusion, image_decoder, image_vae, joint, report_vae
from xgem.train.context import first_output
from xgem.train.perceptual import PerceptualFeatures
from xgem.train.share import Share
from xgem.train.stage import ComparingStage, Frozen, Stage
from xgem.types import Encoded

Batch = Callable[[int], dict[str, Any]]
_S = TypeVar("_S", bound=Stage)
_WORD = "effusion "


@dataclass
class Planned:
    """A stage without data; ``frozen``: networks that it keeps beside its own.

    ``batches``: its kinds of batches, each with the fraction of steps that have it, and what makes one of n samples.
    """

    stage: Stage
    frozen: Sequence[nn.Module]
    batches: Sequence[tuple[float, Batch]]

    @property
    def compares(self) -> bool:
        """Whether its loss compares samples."""
        return isinstance(self.stage, ComparingStage)

    def using(self, make: Batch) -> Stage:
        """The stage with batches of one kind."""

        def batch(share: Share) -> dict[str, Any]:
            with torch.device("meta"):
                return make(share.size)

        self.stage.batch = batch  # type: ignore[method-assign]
        return self.stage


def planned(name: str, preset: Preset, device: str = "meta") -> Planned:
    """The stage ``name`` of a preset that trains it, on the meta device, or with random weights on another."""
    makers = {
        "clip": _clip, "image-vae": _image_vae, "image-decoder": _image_decoder, "report-vae": _report_vae,
        "joint": _joint, "control": _control,
    }  # fmt: skip
    with torch.device(device):
        one = makers.get(name, _diffusion)(name, preset)
    for network in (*one.frozen, one.stage.module):
        network.to(device)  # libraries make some buffers on the CPU
    return one


def _component(name: str, preset: Preset, *, frozen: bool = True) -> Any:
    return random_component(preset.components[name]).requires_grad_(not frozen)


def _without_data(kind: type[_S], name: str, preset: Preset, **fields: Any) -> _S:
    stage = object.__new__(kind)
    vars(stage).update(name=name, config=preset.train[name], seed=0, **fields)
    return stage


def tokens_of(modality: str, preset: Preset) -> tuple[int, int, int]:
    """The most tokens of a prompt, their width, and that of its pooled vector."""
    config: Any = preset.components[preset.encoder(modality)]
    images = get_modality(modality).is_image
    count = (config.image_size // config.patch_size) ** 2 if images else config.max_length
    return count, config.width, config.embed_dim


def _encoded(modality: str, preset: Preset, b: int) -> Encoded:
    n, width, pooled = tokens_of(modality, preset)
    return Encoded(torch.zeros(b, pooled), torch.zeros(b, n, width), torch.ones(b, n, dtype=torch.bool))


def _prompts(names: Sequence[str], preset: Preset, b: int) -> dict[str, Any]:
    return {
        "encoded": {name: _encoded(name, preset, b) for name in names},
        "keep": {name: torch.ones(b, dtype=torch.bool) for name in names},
    }


def _times(b: int) -> Tensor:
    return torch.zeros(b, dtype=torch.long)


def _diffusion(name: str, preset: Preset) -> Planned:
    model = _component(preset.generator(name), preset, frozen=False)
    stage = _without_data(
        diffusion.DiffusionStage, name, preset, model=model, module=diffusion._Conditional(model), device=None
    )

    def batch(b: int) -> dict[str, Any]:
        z0, noise = (torch.zeros(b, *model.latent_shape) for _ in range(2))
        return {"z0": z0, "noise": noise, "t": _times(b)} | _prompts(model.config.prompts, preset, b)

    return Planned(stage, [_component(preset.codec(name), preset)], [(1.0, batch)])


def _control(name: str, preset: Preset) -> Planned:
    target = control._controlled(preset)
    settings, config = preset.components[str(preset.modalities[target].control)], preset.generator(target)
    assert isinstance(settings, ControlNetConfig)
    transformer = preset.components[config]
    assert isinstance(transformer, DiTGeneratorConfig)
    generator = _component(config, preset).eval()
    model = ControlNet(settings)
    model.checkpoint_activations(transformer.gradient_checkpointing)
    module = control._Steered(model, generator)
    stage = _without_data(control.ControlStage, name, preset, generator=generator, model=model, module=module)

    def batch(b: int) -> dict[str, Any]:
        shown = {key: torch.zeros(b, *generator.latent_shape) for key in ("z0", "noise", "annotation")}
        return shown | {"t": _times(b)} | _prompts(generator.config.prompts, preset, b)

    return Planned(stage, [generator, _component(preset.codec(target), preset)], [(1.0, batch)])


def _joint(name: str, preset: Preset) -> Planned:
    model = _component(str(preset.alignment), preset, frozen=False)
    assert isinstance(model, Alignment | TransformerAlignment)
    outputs = tuple(model.config.outputs)
    generators = Frozen({output: _component(preset.generator(output), preset).eval() for output in outputs})
    weights = joint.JointStage.loss_weights(name, preset.train[name])
    stage = _without_data(
        joint.JointStage, name, preset, model=model, generators=generators,
        module=joint._Together(model, generators),
        contrastive=weights["contrastive"], temperature=weights["temperature"], published=bool(weights["published"]),
    )  # fmt: skip

    def batch(group: Sequence[str], alone: bool, b: int) -> dict[str, Any]:
        b = 4 * b if alone else b
        latents = ("z0", "noise", "contrasted")
        drawn = {key: {one: torch.zeros(b, *generators[one].latent_shape) for one in group} for key in latents}
        rest = [one for one in outputs if one not in group]
        return drawn | _prompts(rest, preset, b) | {"alone": alone, "t": _times(b), "level": torch.tensor(0)}

    groups = [group for k in range(2, len(outputs) + 1) for group in itertools.combinations(outputs, k)]
    alone = min(1.0, weights["alone"] / preset.train[name].steps)
    batches: list[tuple[float, Batch]] = [
        ((1 - alone) / len(groups), lambda b, group=group: batch(group, False, b)) for group in groups
    ]
    if alone:
        batches.append((alone, lambda b: batch(outputs, True, b)))
    return Planned(stage, list(generators.values()), batches)


def _clip(name: str, preset: Preset) -> Planned:
    view, text = (first_output(preset, is_image=image) for image in (True, False))
    names = preset.encoder(view), preset.encoder(text)
    views = tuple(one for one, modality in preset.modalities.items() if modality.encoder == names[0])
    weights = clip.ClipStage.loss_weights(name, preset.train[name])
    joined = any(modality.joins for modality in preset.modalities.values())
    count = len(CHEXPERT_CLASSES) + (len(clip.written_labels({})) if joined else 0) if weights["labels"] else 0
    states = len(clip.stated_labels("")) if weights["stated"] else 0

    def make() -> clip.ContrastiveModel:
        image, words = (random_component(preset.components[one]) for one in names)
        assert isinstance(image, ImageEncoder)
        assert isinstance(words, TextEncoder)
        module, size = clip.ContrastiveModel(image, words, count, states), image.config.image_size
        with torch.no_grad():
            module(torch.zeros(1, 1, size, size), torch.ones(1, words.config.max_length, dtype=torch.long))
        return module

    module, k = make(), int(weights["hard_negatives"])
    side, tokens = preset.transform.size, module.text.config.max_length
    stage = _without_data(
        clip.ClipStage, name, preset, module=module, weights=weights, negatives=k, views=views, text=text
    )

    def batch(b: int) -> dict[str, Any]:
        return {
            "images": torch.zeros(b * len(views), 1, side, side),
            "ids": torch.ones(b * (1 + k), tokens, dtype=torch.long),
            "key": torch.arange(b),
            "labels": torch.zeros(b, count),
            "text_labels": torch.zeros(b, count),
            "negatives": torch.arange(b * k),
            "stated": torch.zeros(b * (1 + k), states),
            "owner": {one: torch.arange(b) for one in (*views, text)},
        }

    return Planned(stage, [], [(1.0, batch)])


def _image_batch(vae: Any, crop: float, size: int, noisy: bool) -> Batch:
    """As ``CodecStage.batch``."""
    grid = vae.config.downscale
    side = round(size * crop / grid) * grid
    shape = vae.config.latent_channels, side // grid, side // grid

    def batch(b: int) -> dict[str, Any]:
        drawn = {"noise": torch.zeros(b, *shape)}
        drawn |= {"amount": torch.zeros(b), "added": torch.zeros(b, *shape)} if noisy else {}
        return {"x": torch.zeros(b, 1, side, side), "drawn": drawn, "adversarial": 1.0}

    return batch


def _image_vae(name: str, preset: Preset) -> Planned:
    vae = _component(preset.codec(first_output(preset, is_image=True)), preset, frozen=False)
    weights = image_vae.ImageVAEStage.loss_weights(name, preset.train[name])
    del weights["prominence"]
    batch = _image_batch(vae, weights.pop("crop"), preset.transform.size, False)
    module = image_vae.Autoencoder(vae)
    stage = _without_data(image_vae.ImageVAEStage, name, preset, vae=vae, module=module, weights=weights)
    return Planned(stage, [], [(1.0, batch)])


def _image_decoder(name: str, preset: Preset) -> Planned:
    vae = _component(preset.codec(first_output(preset, is_image=True)), preset)
    weights = image_decoder.ImageDecoderStage.loss_weights(name, preset.train[name])
    for parameter in vae.decoder_parameters():
        parameter.requires_grad_(True)
    noise, on_features = weights.pop("noise"), weights.pop("on_features")
    del weights["adversarial"], weights["after"]
    features = None
    if on_features or weights["perceptual"]:
        device = torch.get_default_device()
        with torch.device("cpu"):
            features = PerceptualFeatures().to(device)
    if features is None:
        del weights["perceptual"]
    batch = _image_batch(vae, weights.pop("crop"), preset.transform.size, noise > 0)
    module = image_decoder._Judged(vae, noise, features, on_features > 0)
    stage = _without_data(
        image_decoder.ImageDecoderStage, name, preset, vae=vae, module=module, weights=weights, features=features,
        on_features=on_features,
    )  # fmt: skip
    return Planned(stage, [features] if features else [], [(1.0, batch)])


def _report_vae(name: str, preset: Preset) -> Planned:
    vae = _component(preset.codec(first_output(preset, is_image=False)), preset, frozen=False)
    weights = report_vae.ReportVAEStage.loss_weights(name, preset.train[name])
    module = report_vae._Autoencoder(vae, weights["hide"])
    stage = _without_data(report_vae.ReportVAEStage, name, preset, module=module, weights=weights)
    length = vae.config.max_length

    def batch(b: int) -> dict[str, Any]:
        drawn = {"noise": torch.zeros(b, vae.config.latent_dim), "hidden": torch.zeros(b, length)}
        return {"texts": [_WORD * length] * b, "drawn": drawn, "kl": 1.0}

    return Planned(stage, [], [(1.0, batch)])
