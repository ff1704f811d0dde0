"""Re-identification: whether two frontal radiographs show the same patient (Packhaeuser et al., Sci. Rep. 2022).

A Siamese network: ResNet to 128 features, sigmoid, absolute difference, one linear layer, sigmoid. Published weights
are read from a local file; ``xgem train reid`` trains new ones (:mod:`xgem.train.reid`). For few patients, a projection
of ImageNet's MobileNetV2 to unit vectors, compared by squared differences, stands in for the ResNet.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.checkpoints.locate import ASSETS
from xgem.judges.extractors import Extractor
from xgem.judges.mobilenet import load_mobilenet
from xgem.types import CheckpointError, ShapeError
from xgem.utils.files import one_line, replacing

WEIGHTS_NAME: Final = "reid.safetensors"
SHIPPED_NAME: Final = "xgem"
SHIPPED: Final = ASSETS / "judges" / "reid"
Preprocessing = Literal["own", "chexgenbench"]
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ReidConfig(BaseModel):
    """A network: ``block`` and ``layers`` as for torchvision's ResNet, ``size`` of its input in pixels.

    ``mobilenet-v2``: a projection of the frozen network that ships with xgem; ``layers`` says nothing then.
    ``normalise``: with ImageNet's mean and standard deviation, as in the original.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    block: Literal["basic", "bottleneck", "mobilenet-v2"] = "bottleneck"
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    features: int = Field(default=128, ge=1)
    size: int = Field(default=256, ge=16)
    normalise: bool = True

    @property
    def name(self) -> str:
        if self.block == "mobilenet-v2":
            return "siamese-mobilenet-v2"
        depth = 2 + sum(self.layers) * (3 if self.block == "bottleneck" else 2)
        return f"siamese-resnet{depth}"


PUBLISHED: Final = ReidConfig()
"""ResNet-50 at 256 pixels, 128 features."""


MOBILENET: Final = ReidConfig(block="mobilenet-v2", size=224, normalise=False)
"""A projection of MobileNetV2 at 224 pixels, 128 features."""
_BLOCKS: Final = 14  # of MobileNetV2: up to its last map of 14 x 14, with 96 channels
_GRID: Final = 7
MAP_DIM: Final = 96 * _GRID**2


class Projection(nn.Module):
    """Unit vectors of MobileNetV2's features on a grid of places; only the projection has weights of its own."""

    def __init__(self, features: int) -> None:
        super().__init__()
        # In a tuple, so that the shipped network is no part of the state dict
        self._trunk = (load_mobilenet().body[:_BLOCKS].requires_grad_(False),)
        self.project = nn.Linear(MAP_DIM, features)

    @torch.no_grad()
    def maps(self, x: Tensor) -> Tensor:
        """(b, 3, 224, 224) in [0, 1] -> (b, MAP_DIM)."""
        y = self._trunk[0].to(x.device)((x * 255 - 128) / 128)  # (b, 96, 14, 14)
        return F.adaptive_avg_pool2d(y, _GRID).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 224, 224) in [0, 1] -> (b, features) of length 1."""
        return F.normalize(self.project(self.maps(x)), dim=1)


class SiameseNetwork(nn.Module):
    """The network; its parameters have the names of the published weights (``model.*``, ``fc_end.*``)."""

    def __init__(self, config: ReidConfig) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

        self.power = 1
        if config.block == "mobilenet-v2":
            self.model, self.power = Projection(config.features), 2
        else:
            block = BasicBlock if config.block == "basic" else Bottleneck
            self.model = ResNet(block, list(config.layers), num_classes=config.features)
        self.fc_end = nn.Linear(config.features, 1)

    def embed(self, x: Tensor) -> Tensor:
        """(b, 3, s, s) -> (b, features): in (0, 1), or of length 1 by a projection."""
        y = self.model(x)
        return torch.sigmoid(y) if self.power == 1 else y

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Two (b, features) -> logits (b,) that both show the same patient."""
        return self.fc_end((first - second).abs() ** self.power)[:, 0]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two (b, 3, s, s) -> logits (b,) that both show the same patient."""
        both = self.embed(torch.cat([first, second]))  # (2 * b, features)
        return self.compare(both[: len(first)], both[len(first) :])


class Reid:
    """A trained network as a feature extractor, with the head that compares two features.

    Attributes:
        name, weights, dim: the network's name, the hash of its weights, the number of features.
        weight, bias, power: the head, (dim,) and two scalars: ``sigmoid(weight . |a - b|^power + bias)``.
    """

    def __init__(self, network: SiameseNetwork, config: ReidConfig, device: str | torch.device = "cpu") -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.config, self.device = config, torch.device(device)
        self.name, self.dim = config.name, config.features
        digest = hashlib.sha256(config.model_dump_json().encode())
        for key, value in sorted(network.state_dict().items()):
            digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        self.weights = digest.hexdigest()
        self.power = network.power
        self.weight = network.fc_end.weight[0].double().cpu().numpy()
        self.bias = float(network.fc_end.bias[0])

    @property
    def extractor(self) -> Extractor:
        """Its features as a feature space."""
        steps = f"antialiased to {self.config.size}, {'ImageNet' if self.config.normalise else 'no'} normalisation"
        return Extractor(self.name, self.weights, self.dim, self.config.size, steps, self)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(b, h, w) uint8 -> (b, dim) features.

        Raises:
            ShapeError: images of another shape.
        """
        if images.ndim != 3:
            raise ShapeError(f"images of shape {images.shape}: expected (b, h, w)")
        x = torch.from_numpy(np.array(images)).to(self.device).unsqueeze(1).float() / 255  # (b, 1, h, w)
        return self.network.embed(to_input(x, self.config)).float().cpu().numpy()


def to_input(images: Tensor, config: ReidConfig) -> Tensor:
    """(b, 1, h, w) in [0, 1] -> (b, 3, size, size): antialiased resize, three identical channels, normalised."""
    side = (config.size, config.size)
    if images.shape[-2:] != side:
        images = F.interpolate(images, side, mode="bilinear", antialias=True, align_corners=False)
    x = images.expand(-1, 3, -1, -1)
    if not config.normalise:
        return x
    mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (x - mean) / std


def save_reid(file: Path, network: SiameseNetwork, config: ReidConfig) -> None:
    """Write weights and configuration to one safetensors file, atomically; a projection in half precision."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    if config.block == "mobilenet-v2":
        tensors = {key: value.half() for key, value in tensors.items()}
    with replacing(file) as partial:
        save_file(tensors, partial, metadata={"config": config.model_dump_json()})


def load_reid(path: str | Path, *, preprocessing: Preprocessing = "own", device: str | torch.device = "cpu") -> Reid:
    """Read a network: a folder written by ``xgem train reid``, its ``.safetensors``, or published weights.

    Args:
        path: ``xgem`` is the network that ships with xgem; published weights are a state dict of the ResNet-50 network
            as torch saves it (``.pth``, ``.pt``), or the same under the key ``state_dict``. Only tensors are unpickled.
        preprocessing: ``own`` as the network was trained; ``chexgenbench`` as that benchmark's code preprocesses, 224
            pixels without normalisation, which is not how the published weights were trained.

    Raises:
        CheckpointError: no such file, not readable, or weights that do not fit; the message names the first keys.
    """
    place = SHIPPED if str(path) == SHIPPED_NAME else Path(path)
    file = place / WEIGHTS_NAME if place.is_dir() else place
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; train one with `xgem train reid`, or give published weights")
    config, state = _read(file)
    network = SiameseNetwork(config)
    _fill(network, state, file)
    if preprocessing == "chexgenbench":
        config = config.model_copy(update={"size": 224, "normalise": False})
    return Reid(network, config, device)


def _read(file: Path) -> tuple[ReidConfig, Mapping[str, Tensor]]:
    """Configuration and state dict of a weights file; files without a configuration are the published network."""
    from safetensors import SafetensorError, safe_open

    if file.suffix == ".safetensors":
        try:
            with safe_open(str(file), framework="pt") as stream:
                text = (stream.metadata() or {}).get("config")
                state = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
            return (PUBLISHED if text is None else ReidConfig.model_validate(json.loads(text))), state
        except (SafetensorError, OSError, ValueError, ValidationError) as error:
            raise CheckpointError(f"{file}: not a readable re-identification network ({one_line(error)})") from None
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable weights, expected tensors only ({one_line(error)})") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{file}: expected a state dict (names to tensors), got {type(loaded).__name__}")
    return PUBLISHED, cast(Mapping[str, Tensor], loaded)


def _fill(network: SiameseNetwork, state: Mapping[str, Tensor], file: Path) -> None:
    """Strict load; CheckpointError names the first keys that do not fit."""
    expected = network.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{file}: {len(missing)} weights are missing (first: {', '.join(missing[:2]) or 'none'}), {len(unknown)} "
            f"unknown (first: {', '.join(unknown[:2]) or 'none'}); expected a Siamese network's model.* and fc_end.*"
        )
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"{file}: weight {key} of shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
            )
    network.load_state_dict(dict(state))
