"""Where a trained classifier looks: Grad-CAM (Selvaraju et al. 2017)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.types import InputError


def grad_cam(network: nn.Module, layer: nn.Module, x: Tensor, outputs: Tensor) -> NDArray[np.float32]:
    """Heat maps of one output an image, (b, s, s) in [0, 1]; all 0 where nothing speaks for the class.

    Args:
        network: (b, 1, s, s) -> (b, classes) logits, in evaluation mode.
        layer: the part of it whose output, (b, c, h, w), is looked at.
        x: images.
        outputs: (b,) which class of each.

    Channels are weighted by the gradient's mean over places (eq. 1); of their sum the positive part is kept (eq. 2),
    and each map is divided by its maximum.
    """
    held: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        held.append(output)
        return output.clone()  # what follows may change its input in place

    hook = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = network(x.detach().requires_grad_())
            if not held or held[0].ndim != 4:
                raise InputError("Grad-CAM needs a layer that the network passes through, with (b, c, h, w) out of it")
            chosen = logits.gather(1, outputs.view(-1, 1).to(logits.device)).sum()
            (gradient,) = torch.autograd.grad(chosen, held[0])
    finally:
        hook.remove()
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * held[0].detach()).sum(dim=1, keepdim=True).relu()
    heat = F.interpolate(heat, size=x.shape[-2:], mode="bilinear")
    return (heat / heat.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12))[:, 0].float().cpu().numpy()
