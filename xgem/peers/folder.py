"""The folder of a diffusers pipeline: its class, its files and their hash, and what may be read from it."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

from xgem.checkpoints.index import listed_files
from xgem.data.file_hashes import FileHashes
from xgem.types import CheckpointError
from xgem.utils.cache import cache_folder
from xgem.utils.files import read_json
from xgem.utils.hashing import canonical

INDEX_NAME: Final = "model_index.json"
LEFT_OUT: Final = ("safety_checker",)
"""Components that are not loaded: a safety checker replaces images by black ones, and takes chests for nudity."""
_READ: Final = (".safetensors", ".json", ".txt", ".model")
_PICKLED: Final = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_VARIANT: Final = re.compile(r"\.(fp16|bf16|fp32|non_ema|ema_only)\b")
"""In names of weights in other number formats, which lie beside those that are loaded."""
_NEEDED: Final = ("prompt", "height", "width", "num_inference_steps", "generator", "output_type")
_FOREIGN: Final = ("image", "mask_image", "control_image", "ip_adapter_scale", "num_frames", "audio_length_in_s")
"""Arguments of pipelines that start from an image, or make no image."""
_SAMPLE_SIZE: Final = 128
"""Side of the latents where a denoiser states none, as of Flux."""
_SCALE: Final = 8


class PipelineFolder:
    """A folder that ``DiffusionPipeline.save_pretrained`` wrote, checked without reading weights.

    Raises:
        CheckpointError: it is none, its class is unknown, it makes no images from text alone, or weights are pickled.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not (root / INDEX_NAME).is_file():
            raise CheckpointError(
                f"{root}: has no {INDEX_NAME}; expected the folder of a diffusers pipeline (save_pretrained)"
            )
        self.index = read_json(root / INDEX_NAME)
        self.kind = _pipeline_class(root, self.index.get("_class_name"))
        for name in self.components:
            self._check_weights(name)

    @cached_property
    def components(self) -> tuple[str, ...]:
        """Names of the components that are loaded, in alphabetical order."""
        given = {name: value for name, value in self.index.items() if not name.startswith("_")}
        there = {name for name, value in given.items() if isinstance(value, list) and value and value[0] is not None}
        return tuple(sorted(there - set(LEFT_OUT)))

    def _check_weights(self, name: str) -> None:
        folder = self.root / name
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: missing; fetch the pipeline again")
        suffixes = {Path(file).suffix: file for file in listed_files(folder)}
        pickled = next((suffixes[suffix] for suffix in _PICKLED if suffix in suffixes), None)
        if pickled is not None and ".safetensors" not in suffixes:
            raise CheckpointError(
                f"{folder / pickled}: pickled weights can run code and are never read; expected safetensors: convert "
                "them where they come from"
            )

    @property
    def files(self) -> list[str]:
        """What decides what it generates: relative names of weights, configurations and tokenizers."""
        found = (f"{name}/{file}" for name in self.components for file in listed_files(self.root / name))
        return [INDEX_NAME, *(file for file in found if file.endswith(_READ) and not _VARIANT.search(file))]

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits for the names and contents of :attr:`files`; large ones are read once."""
        files = self.files
        contents = FileHashes(cache_folder() / "files.sqlite").content_hash(str(self.root / file) for file in files)
        return hashlib.sha256(canonical({"files": files, "contents": contents}).encode()).hexdigest()[:16]

    def config(self, component: str) -> dict[str, Any]:
        """The configuration of a component; empty where there is none."""
        for name in ("config.json", f"{component}_config.json"):
            if (self.root / component / name).is_file():
                return read_json(self.root / component / name)
        return {}

    @property
    def denoiser(self) -> str:
        """The component that denoises: ``unet`` or ``transformer``.

        Raises:
            CheckpointError: there is none.
        """
        found = next((name for name in ("transformer", "unet") if name in self.components), None)
        if found is None:
            raise CheckpointError(
                f"{self.root}: {self.kind.__name__} has neither a unet nor a transformer, only "
                f"{', '.join(self.components)}"
            )
        return found

    @cached_property
    def scale(self) -> int:
        """Pixels a latent position, in each direction."""
        config = self.config("vae")
        blocks = config.get("encoder_block_out_channels") or config.get("block_out_channels")
        return 2 ** (len(blocks) - 1) if blocks else (_SCALE if config else 1)

    @property
    def size(self) -> int:
        """Side in pixels of the images that it makes by default."""
        side = self.config(self.denoiser).get("sample_size") or _SAMPLE_SIZE
        return int(side[0] if isinstance(side, list) else side) * self.scale

    @property
    def defaults(self) -> dict[str, Any]:
        """Arguments of a call with the pipeline's own defaults."""
        return {name: one.default for name, one in inspect.signature(self.kind.__call__).parameters.items()}

    def parameters(self) -> dict[str, Any]:
        """Parameters as its files store them, component by component, in the form of ``xgem params``."""
        components: dict[str, Any] = {}
        for name in self.components:
            stored = [file for file in self.files if file.startswith(f"{name}/") and file.endswith(".safetensors")]
            total = 0
            for file in stored:
                with safe_open(str(self.root / file), "np") as stream:
                    total += sum(math.prod(stream.get_slice(key).get_shape()) for key in stream.keys())  # noqa: SIM118
            if stored:
                components[name] = {"kind": str(self.index[name][1]), "parameters": total}
        total = sum(entry["parameters"] for entry in components.values())
        stated: dict[str, Any] = {"deviations": [], "assumptions": []}
        return {"preset": self.kind.__name__, "components": components, "total": total} | stated

    @property
    def scheduler(self) -> tuple[str, dict[str, Any]]:
        """Class and configuration of its scheduler."""
        values = {name: value for name, value in self.config("scheduler").items() if not name.startswith("_")}
        return str(self.index["scheduler"][1]) if "scheduler" in self.components else "none", values


def _pipeline_class(root: Path, name: Any) -> type[Any]:
    import diffusers

    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise CheckpointError(
            f"{root}: its pipeline is {name!r}, which this version of diffusers ({diffusers.__version__}) does not "
            "have; no code of a model's own is run"
        )
    arguments = inspect.signature(kind.__call__).parameters
    lacking = [one for one in _NEEDED if one not in arguments]
    foreign = [one for one in _FOREIGN if one in arguments]
    if lacking or foreign:
        what = f"takes {foreign[0]}" if foreign else f"takes no {lacking[0]}"
        raise CheckpointError(f"{root}: {name} {what}; expected a pipeline that makes images from text alone")
    return kind
