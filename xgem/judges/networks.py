"""Networks of the downstream tasks: published ones for greyscale images, small ones, and loading of their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from xgem.data.augment import standardised, to_input
from xgem.data.sets import Images
from xgem.judges.settings import UtilitySettings
from xgem.types import CheckpointError, InputError, NotComputed

HEADS: Final = {"resnet18": "fc", "resnet50": "fc", "densenet121": "classifier"}
"""The torchvision networks that can be chosen, with the name of their last layer."""


_LAST: Final = {"resnet18": "layer4", "resnet50": "layer4", "densenet121": "features"}


_MEAN: Final = (0.485, 0.456, 0.406)


_STD: Final = (0.229, 0.224, 0.225)


class Grey(nn.Module):
    """A network for colour images applied to greyscale ones, (b, 1, s, s) in [-1, 1], normalised as ImageNet."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.network(((x.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std)


def image_network(settings: UtilitySettings, outputs: int) -> nn.Module:
    """A network from images to ``outputs`` numbers, with the settings' weights.

    Raises:
        InputError: unknown network.
        CheckpointError: the weights do not fit it.
        NotComputed: ImageNet's weights are neither on this machine nor can be downloaded.
    """
    if settings.network == "small":
        network: nn.Module = SmallResNet(outputs, settings.width, 0.2)
        if settings.weights:
            load_weights(network, settings.weights, head="head")
        return network
    if settings.network not in HEADS:
        raise InputError(f"network {settings.network!r}; expected small, {', '.join(HEADS)}")
    import torchvision

    network = torchvision.models.get_model(settings.network, weights=None, num_classes=outputs)
    if settings.weights == "imagenet":
        load_tensors(network, _imagenet(settings.network), HEADS[settings.network], "imagenet")
    elif settings.weights:
        load_weights(network, settings.weights, head=HEADS[settings.network])
    return Grey(network)


def last_layer(settings: UtilitySettings, network: nn.Module) -> nn.Module:
    """The layer for class activation maps: the last convolutional one; the small network's penultimate stage.

    There an image of 128 pixels has 8 x 8 positions, about as many as one of 224 in a published network's last layer.
    """
    return network.get_submodule(
        "body.9" if settings.network == "small" else f"network.{_LAST[settings.network]}",
    )


def load_weights(network: nn.Module, path: str | Path, *, head: str) -> None:
    """Load a state dict from ``.safetensors`` or torch's format (tensors only, no pickled code) into a network.

    Raises:
        CheckpointError: no such file, not a state dict, or one of another network.
    """
    place = Path(path)
    try:
        if place.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: Any = load_file(place)
        else:
            tensors = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly any exception
        raise CheckpointError(f"{place}: weights cannot be read ({error!s:.100}); expected a state dict") from error
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{place}: holds a {type(tensors).__name__}, expected a state dict")
    load_tensors(network, tensors, head, str(place))


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], head: str, origin: str) -> None:
    """Load a whole state dict, except for a last layer of another size, which keeps its random weights.

    Raises:
        CheckpointError: anything else is missing, unexpected, or of another shape.
    """
    expected = network.state_dict()
    given = {
        name: value
        for name, value in ((_renamed(name), value) for name, value in tensors.items())
        if not (name.startswith(f"{head}.") and (name not in expected or value.shape != expected[name].shape))
    }
    counters = ".num_batches_tracked"  # older files lack them, and no output depends on them
    wrong = [name for name in expected if name not in given and not name.startswith(f"{head}.")]
    wrong = [name for name in wrong if not name.endswith(counters)]
    wrong += [name for name in given if name not in expected or given[name].shape != expected[name].shape]
    if wrong:
        raise CheckpointError(
            f"{origin}: {len(wrong)} tensors do not fit the network, first {wrong[0]!r}; give weights of this network"
        )
    network.load_state_dict(expected | given)


def _imagenet(name: str) -> Mapping[str, Tensor]:
    import torchvision

    weights: Any = torchvision.models.get_model_weights(name).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise NotComputed(f"torchvision's weights {weights} cannot be downloaded ({error!s:.100})") from error


def _renamed(name: str) -> str:
    """torchvision's DenseNet files still use ``norm.1`` for ``norm1``."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)


ENCODER: Final = "tu-resnet18"


DEPTH: Final = 4


def small_unet(structures: int, width: int) -> nn.Module:
    """A U-Net on a ResNet-18 of another width: ``width`` channels in the first stage in place of 64."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise InputError(
            "segmentation needs the package segmentation-models-pytorch, which is not installed: install xgem[eval]"
        ) from error
    return smp.create_model(
        "unet",
        ENCODER,
        encoder_depth=DEPTH,
        encoder_weights=None,
        in_channels=1,
        classes=structures,
        decoder_channels=(4 * width, 2 * width, width, 16),
        channels=tuple(width * 2**stage for stage in range(4)),
    )


class SmallResNet(nn.Module):
    """ResNet-18 (torchvision's blocks) of another width: ``width`` channels in the first stage in place of 64."""

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        blocks: list[nn.Module] = [
            nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        channels = width
        for stage in range(4):
            planes = width * 2**stage
            for block in range(2):
                stride = 2 if stage and not block else 1
                skip = None
                if stride != 1 or channels != planes:
                    skip = nn.Sequential(
                        nn.Conv2d(channels, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
                    )
                blocks.append(BasicBlock(channels, planes, stride, skip))
                channels = planes
        self.body = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, classes)

    def features(self, x: Tensor) -> Tensor:
        """(b, 1, s, s) in [-1, 1] -> (b, 8 * width)."""
        return self.body(standardised(x)).mean(dim=(2, 3))  # of (b, 8 * width, s / 32, s / 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(x)))


def batches(images: Images, size: int, device: torch.device, count: int = 32) -> Iterator[Tensor]:
    """Images (n, s, s) as (b, 1, size, size) in [-1, 1] on a device."""
    for start in range(0, len(images), count):
        yield to_input(torch.from_numpy(images[start : start + count]).to(device), size)
