"""MobileNetV2 with ImageNet's weights: features that no training on radiographs has touched.

Howard et al. publish the network quantised to 8 bits; xgem ships those 8 bits, and computes with them as floats
(Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, Table 2). Its use here is to be
independent: neither a generator nor a judge of findings has been fitted in its space.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.checkpoints.locate import ASSETS
from xgem.types import CheckpointError
from xgem.utils.files import one_line

SHIPPED: Final = ASSETS / "judges" / "mobilenet" / "model.safetensors"
SIZE: Final = 224
DIM: Final = 1280
BLOCKS: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2 of the paper: expansion, channels, number of blocks, stride of the first."""
QUANTISATION: Final = "quantisation"
"""Name of the tensor (layers, 2) float64 of scale and zero point of each layer's weights."""


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: with stride 2, one pixel more at the bottom and the right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        total = max(kernel - stride, 0)
        before = total // 2
        self.margins = (before, total - before, before, total - before)

    def forward(self, input: Tensor) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, h / stride, w / stride), for sides divisible by the stride."""
        return super().forward(F.pad(input, self.margins))


class Bottleneck(nn.Module):
    """Expansion, depthwise convolution, linear projection; added to its input where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [SameConv(inputs, width, 1), nn.ReLU6()]
        layers += [SameConv(width, width, 3, stride, groups=width), nn.ReLU6(), SameConv(width, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """The network up to its last feature map; ``body`` holds the first convolution and the 17 bottlenecks."""

    def __init__(self) -> None:
        super().__init__()
        body: list[nn.Module] = [nn.Sequential(SameConv(3, 32, 3, 2), nn.ReLU6())]
        channels = 32
        for expansion, outputs, count, stride in BLOCKS:
            for block in range(count):
                body.append(Bottleneck(channels, outputs, expansion, 1 if block else stride))
                channels = outputs
        self.body = nn.Sequential(*body)
        self.last = nn.Sequential(SameConv(channels, DIM, 1), nn.ReLU6())

    def maps(self, x: Tensor) -> Tensor:
        """(b, 3, 224, 224) in [-1, 1] -> (b, 1280, 7, 7), each in [0, 6]."""
        return self.last(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 224, 224) in [-1, 1] -> (b, 1280): the mean over the map."""
        return self.maps(x).mean(dim=(2, 3))

    def convolutions(self) -> list[SameConv]:
        """All 52 convolutions, in the order of computation."""
        return [module for module in self.modules() if isinstance(module, SameConv)]


def load_mobilenet(file: Path = SHIPPED) -> MobileNet:
    """The network with the weights of a file that ``benchmarks/mobilenet.py`` wrote, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, or does not hold the network.
    """
    network = MobileNet()
    try:
        state = load_file(file)
        scales = state.pop(QUANTISATION)
        for k, (layer, (scale, zero)) in enumerate(zip(network.convolutions(), scales.tolist(), strict=True)):
            weight = (state.pop(f"{k}.weight").double() - zero) * scale
            layer.load_state_dict({"weight": weight.float(), "bias": state.pop(f"{k}.bias")})
        if state:
            raise KeyError(f"unexpected tensor {next(iter(state))}")
    except (KeyError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file}: not MobileNetV2's weights ({one_line(error)}); see benchmarks/mobilenet.py"
        ) from None
    return network.eval()


def as_input(images: Tensor) -> Tensor:
    """(b, h, w) uint8 -> (b, 3, 224, 224) in [-1, 1]: area to a smaller size, bilinear to a larger one."""
    x = images.unsqueeze(1).float()
    if x.shape[-2:] != (SIZE, SIZE):
        x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    return ((x - 128) / 128).expand(-1, 3, -1, -1)
