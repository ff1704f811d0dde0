"""The Inception of the FID and TorchXRayVision's DenseNets, from their published weight files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.judges.extractors import Extractor, Images
from xgem.types import CheckpointError, NotComputed
from xgem.utils.hashing import module_hash

_INCEPTION_FILES: Final = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
_DENSENETS: Final = {"all": "all", "mimic": "mimic_ch"}
XRV_SIZE: Final = 224


def inception(source: str | None, device: str) -> Extractor:
    """The FID's Inception-v3 (Heusel et al. 2017), pooled features, 2048-d.

    Images are stretched to 299 x 299 as by TensorFlow 1 (bilinear, no antialiasing), which published FIDs are based
    on. Torchvision's ImageNet Inception is another network: its weights are refused.

    Args:
        source: the weights file of torch-fidelity or pytorch-fid (both are the same), or a folder that contains it; by
            default the folder of torch.hub.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise NotComputed("inception-v3 needs the package torch-fidelity, which is not installed") from error
    file = _file("inception-v3", source, Path(torch.hub.get_dir()) / "checkpoints", _INCEPTION_FILES)
    # The package unpickles its weights, so it gets a buffer written here from tensors that were loaded safely.
    buffer = io.BytesIO()
    torch.save(read_state(file), buffer)
    buffer.seek(0)
    try:
        network = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        raise CheckpointError(
            f"inception-v3: {file} does not hold the FID's Inception ({_short(error)}); "
            f"get {_INCEPTION_FILES[0]} from torch-fidelity"
        ) from error
    module: Any = network.to(device).eval()

    def encode(x: Tensor) -> Tensor:
        return module(x.expand(-1, 3, -1, -1).contiguous())[0]

    return Extractor(
        "inception-v3",
        module_hash(network)[:16],
        2048,
        299,
        "stretched to 299 as by TensorFlow 1",
        _runner(encode, device),
    )


def densenet(which: str, source: str | None, device: str) -> Extractor:
    """TorchXRayVision's DenseNet-121 (Cohen et al. 2022), pooled features, 1024-d (not 512, as ChexGen states).

    The image's central square is resized to 224 (bilinear, antialiased) and scaled to [-1024, 1024].

    Args:
        which: ``all`` or ``mimic`` (the one trained on CheXpert's labels, ``mimic_ch``).
        source: the package's weights file, its state dict (also as safetensors), or the package's cache folder;
            by default its own folder in the home directory. Modules in torch's format before 1.6 cannot be read
            without running code from the file; the error says how to convert them to a state dict.
    """
    name = f"xrv-densenet-{which}"
    network: Any = xrv_network(name, source, _DENSENETS[which]).to(device)

    def encode(x: Tensor) -> Tensor:
        x = F.interpolate(
            _central_square(x.float()), size=(XRV_SIZE, XRV_SIZE), mode="bilinear", align_corners=False, antialias=True
        )
        return network.features2((x / 255 * 2 - 1) * 1024)

    return Extractor(
        name,
        module_hash(network)[:16],
        1024,
        XRV_SIZE,
        "central square, bilinear to 224, scaled to [-1024, 1024]",
        _runner(encode, device),
    )


def xrv_network(name: str, source: str | None, model: str) -> nn.Module:
    """TorchXRayVision's DenseNet-121 in evaluation mode, without operating points.

    Args:
        name: for messages.
        source: as :func:`densenet`.
        model: the package's name for it after ``densenet121-res224-``.

    Raises:
        NotComputed: the package or the weights are missing.
        CheckpointError: the file holds something else.
    """
    # The weights file
    with warnings.catch_warnings():  # importing the package switches all warnings off
        try:
            from torchxrayvision import models
        except ImportError as error:
            raise NotComputed(f"{name} needs the package torchxrayvision, which is not installed") from error
    published = f"densenet121-res224-{model}"
    file_name = models.model_urls[published]["weights_url"].rpartition("/")[2]
    file = _file(name, source, Path.home() / ".torchxrayvision" / "models_data", (file_name,))
    try:
        state = read_state(file, _layers(models))
    except CheckpointError as error:
        form = f'torchxrayvision.models.DenseNet(weights="{published}")'
        raise CheckpointError(f"{error}; if you trust it, torch.save({form}.state_dict(), FILE) makes one") from error
    # A strict load; the operating points are not weights
    state.pop("op_threshs", None)
    network = models.DenseNet(num_classes=18, in_channels=1)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{name}: {file} holds other weights than {published}'s ({_short(error)})") from error
    return network.eval()


def _layers(models: Any) -> list[Any]:
    """The classes that a pickled DenseNet may consist of; nothing else is built from the file."""
    package_layers = [models.DenseNet, models._DenseBlock, models._DenseLayer, models._Transition]
    layers = [nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Linear]
    return [*package_layers, *layers, set]


def read_state(file: Path, classes: list[Any] | None = None) -> dict[str, Tensor]:
    """A state dict from safetensors, or from torch's format without running code from the file.

    The file may hold a whole module if that consists of ``classes``.

    Raises:
        CheckpointError: the file holds neither.
    """
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals(classes or []):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        return dict(loaded.state_dict() if isinstance(loaded, nn.Module) else loaded)
    except Exception as error:  # a foreign file can raise nearly any exception
        raise CheckpointError(f"{file}: weights cannot be loaded without running the file's code") from error


def _file(name: str, source: str | None, default: Path, names: tuple[str, ...]) -> Path:
    """The weights' file: ``source`` itself, or one of ``names`` in it or in the ``default`` folder."""
    place = Path(source) if source else default
    if place.is_file():
        return place
    for folder in (place, place / "models_data"):
        for file_name in names:
            if (folder / file_name).is_file():
                return folder / file_name
    where = f"{source} holds none" if source else "none in the library's cache"
    raise NotComputed(f"{name}: no weights ({where}); get {names[0]} and give its path")


def _central_square(x: Tensor) -> Tensor:
    """(..., h, w) -> (..., side, side)."""
    h, w = x.shape[-2:]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    return x[..., top : top + side, left : left + side]


def _runner(encode: Callable[[Tensor], Tensor], device: str) -> Callable[[Images], NDArray[Any]]:
    """(b, h, w) uint8 -> (b, dim) features, by a function of (b, 1, h, w) uint8 tensors."""

    @torch.inference_mode()
    def run(images: Images) -> NDArray[Any]:
        return encode(torch.from_numpy(np.array(images)).unsqueeze(1).to(device)).float().cpu().numpy()

    return run


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
