"""TorchXRayVision's DenseNet-121 as a judge of images, from a local file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array
from xgem.types import InputError

Images = NDArray[np.uint8]


XRV_MODELS: Final = ("all", "mimic_ch", "mimic_nb", "chex", "nih", "pc", "rsna")


class XrvJudge:
    """TorchXRayVision's DenseNet-121 (Cohen et al. 2022), calibrated so that its operating points are at 0.5."""

    def __init__(self, network: Any, columns: Sequence[int], classes: Sequence[str], name: str, device: str) -> None:
        from xgem.utils.hashing import module_hash

        self._network = network.to(device).eval()
        self._columns = list(columns)
        self._device = device
        self.classes = tuple(classes)
        self.name = f"XRV-DenseNet ({name})"
        self.weights = module_hash(network)
        self.size = 224

    def scores(self, images: Images, batch_size: int = 32) -> Array:
        """As :class:`Judge`; images are square, and resized to 224 as in the package."""
        import torch
        from torch.nn import functional as F

        side = (self.size, self.size)
        batch_scores: list[Any] = []
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                x = torch.from_numpy(np.array(images[start : start + batch_size])).to(self._device)
                x = (x.unsqueeze(1).float() / 255 * 2 - 1) * 1024  # (b, 1, h, w) in the package's range
                if x.shape[-2:] != side:
                    x = F.interpolate(x, size=side, mode="bilinear", antialias=True)
                batch_scores.append(self._network(x)[:, self._columns].cpu())
        return torch.cat(batch_scores).numpy().astype(np.float64)


def load_xrv(path: str | Path | None, model: str = "all", *, device: str = "cpu") -> XrvJudge:
    """TorchXRayVision's DenseNet from a local file; nothing is downloaded and no code in the file is run.

    Args:
        path: the published ``.pt`` (a pickled module, of which only known layer classes are built), or a state dict as
            ``.pt`` or ``.safetensors``; None looks in the package's own cache folder.
        model: which of :data:`XRV_MODELS` the file holds, as it determines the meaning of the outputs.

    Raises:
        NotComputed: no such file, or the package is missing.
        CheckpointError: the file holds something else.
        InputError: no such model.
    """
    from xgem.judges.extractors.convolutional import xrv_network

    if model not in XRV_MODELS:
        raise InputError(f"XRV model {model!r}: expected one of {', '.join(XRV_MODELS)}")
    network: Any = xrv_network(f"XRV-DenseNet ({model})", None if path is None else str(path), model)
    import torch
    from torchxrayvision import models

    published: Any = models.model_urls[f"densenet121-res224-{model}"]
    labels: list[str] = published["labels"]
    points = torch.tensor(published.get("op_threshs", [0.5] * len(labels)))
    network.op_threshs = torch.nan_to_num(points, nan=0.5)  # an operating point of 0.5 leaves the output unchanged
    named = [(k, {"Effusion": "Pleural Effusion"}.get(name, name)) for k, name in enumerate(labels) if name]
    return XrvJudge(network, [k for k, _ in named], [name for _, name in named], model, device)
