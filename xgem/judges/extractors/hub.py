"""RAD-DINO and CLIP: networks in the hub's layout, with the preprocessing stored with their weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from xgem.checkpoints.locate import HUB_ID
from xgem.judges.extractors import Extractor, Images
from xgem.types import NotComputed
from xgem.utils.hashing import module_hash

_FILES: Final = ("*.json", "*.safetensors")
_TIMEOUT_S: Final = 10


def rad_dino(source: str | None, device: str) -> Extractor:
    """RAD-DINO (Perez-Garcia et al. 2024), ``pooler_output``, 768-d, as in CheXGenBench."""
    from transformers import AutoModel

    model, prepare, size, steps = _load("rad-dino", source, "microsoft/rad-dino", AutoModel)
    if model.config.model_type != "dinov2":
        raise NotComputed(f"rad-dino: the weights are of a {model.config.model_type} network, expected dinov2")
    model.to(device)

    @torch.inference_mode()
    def encode(images: Images) -> NDArray[Any]:
        return model(pixel_values=prepare(images).to(device)).pooler_output.float().cpu().numpy()

    return Extractor("rad-dino", module_hash(model)[:16], model.config.hidden_size, size, steps, encode)


def clip(source: str | None, device: str) -> Extractor:
    """CLIP's ViT-L/14 (Radford et al. 2021), projected image embedding, 768-d, as in ChexGen."""
    from transformers import CLIPVisionModelWithProjection

    model, prepare, size, steps = _load(
        "clip-vit-l-14", source, "openai/clip-vit-large-patch14", CLIPVisionModelWithProjection
    )
    model.to(device)

    @torch.inference_mode()
    def encode(images: Images) -> NDArray[Any]:
        return model(pixel_values=prepare(images).to(device)).image_embeds.float().cpu().numpy()

    return Extractor("clip-vit-l-14", module_hash(model)[:16], model.config.projection_dim, size, steps, encode)


def folder_of(name: str, source: str | None, default: str, files: Sequence[str] = _FILES) -> Path:
    """The network's local folder; a hub id given by the user is fetched, the default one only looked up in the cache.

    Raises:
        NotComputed: it cannot be found.
    """
    if source and Path(source).is_dir():
        return Path(source)
    if source and not HUB_ID.fullmatch(source):
        raise NotComputed(f"{name}: {source} is neither a folder nor a hub id")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source or default,
            allow_patterns=list(files),
            etag_timeout=_TIMEOUT_S,
            local_files_only=source is None,
        )
    except Exception as error:  # the hub client raises many exceptions; all mean that it cannot be reached
        why = "the hub did not provide it" if source else "it is not in the local cache"
        raise NotComputed(
            f"{name}: no weights ({source or default}: {why}, {type(error).__name__}); "
            f"give {name}=FOLDER, or {name}={source or default} to fetch it"
        ) from error
    return Path(folder)


def _load(name: str, source: str | None, default: str, kind: Any) -> tuple[Any, Any, int, str]:
    """The model, its function of images (b, h, w) to pixel values, its input's side, the preprocessing in words."""
    from transformers import AutoImageProcessor

    # The network and its processor, from local files
    folder = folder_of(name, source, default)
    try:
        model, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise NotComputed(f"{name}: {folder} cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    absent = sorted(info["missing_keys"])
    if absent:
        raise NotComputed(f"{name}: {folder} lacks {len(absent)} of the network's weights, first {absent[0]}")
    # The processor's settings as the description of the preprocessing
    settings = json.loads(json.dumps(processor.to_dict(), default=str))
    steps = ", ".join(
        f"{key} {settings[key]}" for key in sorted(settings) if key in _STEPS and settings[key] is not None
    )

    def prepare(images: Images) -> torch.Tensor:
        colour_images = [np.repeat(image[:, :, None], 3, axis=2) for image in images]  # (h, w, 3) each
        return processor(images=colour_images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    side = prepare(np.zeros((1, 64, 64), dtype=np.uint8)).shape[-1]
    return model.eval(), prepare, int(side), steps


_STEPS: Final = frozenset(
    {"do_resize", "size", "resample", "do_center_crop", "crop_size", "do_normalize", "image_mean", "image_std"}
    | {"do_rescale", "rescale_factor"}
)
