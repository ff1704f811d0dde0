"""A gate behind the decoder: images that are too close to a training image are not returned but sampled again.

An image is refused if either of two distances to the nearest training image is at or below its threshold: between the
vectors of the model's own image encoder, and between the pixels, allowing for small shifts and exposure differences.
Thresholds are given, or estimated from real images of patients who are not in the training set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from xgem.checkpoints.index import component_hash
from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.manifest import Manifest
from xgem.data.set_files import read_set
from xgem.data.transforms import Notes, grey_levels, read_square, resize
from xgem.metrics.privacy import ALIGNED_SIZE, aligned_distance, latent_distance
from xgem.modalities import get_modality
from xgem.pipeline.conditioning import embed
from xgem.types import InputError
from xgem.utils.files import replacing
from xgem.utils.progress import StepBar

if TYPE_CHECKING:
    from xgem.pipeline.model import LoadedModel

FORMAT: Final = "xgem-privacy-index"
MIN_HELD_OUT: Final = 20
LATENT_TOLERANCE: Final = 1e-6
"""Float32 encodings of one image in batches of other sizes differ by less: about 1e-7 in each number of a unit vector.
Without it, whether an image exactly at the threshold is refused would depend on the batch that it was encoded in."""
_BATCH: Final = 64
_SAID: Final = ("encoder", "latent_threshold", "pixel_threshold", "latent_held_out", "pixel_held_out")
Images = NDArray[np.uint8]
Files = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class Thresholds:
    """Distances at or below which an image is refused; None: estimated from held-out images.

    ``latent``: of the encoder's unit vectors, divided by the root of their dimension; ``pixel``: as
    :func:`xgem.metrics.privacy.aligned_distance` at 64 pixels, 0 to 2.
    """

    latent: float | None = None
    pixel: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Distances of an image to the nearest training image, and whether the image is refused."""

    latent: float
    pixel: float
    refused: bool


@dataclass(frozen=True)
class Index:
    """One view's training images as the gate sees them.

    ``pixels`` (m, 64, 64) uint8 (smaller where the model's images are), ``latents`` (m, d); ``encoder`` identifies
    the encoder and the preprocessing. It shows real patients: keep it where the training data may lie.
    ``latent_held_out``, ``pixel_held_out``: number of images that the threshold was estimated from, 0 where it was
    given, None where an older index does not say.
    """

    encoder: str
    pixels: Images
    latents: NDArray[np.float32]
    latent_threshold: float
    pixel_threshold: float
    latent_held_out: int | None = None
    pixel_held_out: int | None = None

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(f"{self.encoder}{self.latent_threshold}{self.pixel_threshold}".encode())
        digest.update(self.pixels.tobytes() + self.latents.tobytes())
        return digest.hexdigest()

    def verdict(self, pixels: Images, latent: NDArray[np.float32]) -> Verdict:
        """The verdict on one image (s, s) and its vector (d,).

        A latent distance within :data:`LATENT_TOLERANCE` above the threshold counts as at it.
        """
        return self.verdicts(pixels[None], latent[None])[0]

    def verdicts(self, pixels: Images, latents: NDArray[np.float32], device: str = "cpu") -> list[Verdict]:
        """Of several images (n, s, s) and their vectors (n, d), as :meth:`verdict`."""
        near = latent_distance(latents, self.latents, device=device).values
        close = aligned_distance(pixels, self.pixels, device=device).values
        refused = (near <= self.latent_threshold + LATENT_TOLERANCE) | (close <= self.pixel_threshold)
        return [Verdict(float(n), float(c), bool(r)) for n, c, r in zip(near, close, refused, strict=True)]


@dataclass(frozen=True)
class PrivacyGate:
    """Training images (and held-out ones) by view, or indexes made from them earlier; see :meth:`open`.

    Estimated thresholds would refuse a fraction ``quantile`` of the held-out real images by either distance. The
    request fails after ``tries`` refused draws of a sample. ``reading``: how images are read, by file, where a manifest
    says so.
    """

    training: Files = field(default_factory=dict[str, Sequence[Path]])
    held_out: Files = field(default_factory=dict[str, Sequence[Path]])
    indexes: Mapping[str, Index] = field(default_factory=dict[str, Index])
    thresholds: Thresholds = Thresholds()
    quantile: float = 0.01
    tries: int = 10
    reading: Mapping[Path, ReadOptions] = field(default_factory=dict[Path, ReadOptions], repr=False)
    _made: dict[tuple[str, str], Index] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = [value for value in (self.thresholds.latent, self.thresholds.pixel) if value is not None]
        if any(not 0 <= value < np.inf for value in given) or not 0 < self.quantile < 1 or self.tries < 1:
            raise InputError(
                f"privacy gate: {self.thresholds}, quantile {self.quantile}, {self.tries} tries; expected distances of "
                "0 or more, a quantile between 0 and 1, and at least one try"
            )

    @classmethod
    def open(cls, path: str | Path, **options: Any) -> PrivacyGate:
        """A manifest (:meth:`from_manifest`), an index (:meth:`from_index`), or a folder or CSV of training images.

        Args:
            options: ``thresholds``, ``quantile``, ``tries``.

        Raises:
            InputError: not an index. DataError, ManifestError: images or a manifest that cannot be read.
        """
        ending = Path(path).suffix
        if ending == ".safetensors":
            return cls.from_index(path, **options)
        return (cls.from_manifest if ending in {".parquet", ".jsonl"} else cls.from_images)(path, **options)

    @classmethod
    def from_manifest(cls, path: str | Path, **options: Any) -> Self:
        """Training images of the split ``train``, held-out ones of ``val`` and ``test``, all views."""
        manifest = Manifest.read(path)
        manifest.check(files=False)
        found: dict[str, dict[str, list[Path]]] = {"train": {}, "val": {}, "test": {}}
        reading: dict[Path, ReadOptions] = {}
        for study in manifest.studies():
            for view, files in study.images.items():
                reading |= {file: study.reading_of(file) for file in files}
                found[study.split].setdefault(view, []).extend(files)
        views = found["val"].keys() | found["test"].keys()
        held_out = {view: [*found["val"].get(view, []), *found["test"].get(view, [])] for view in sorted(views)}
        return cls(found["train"], held_out, reading=reading, **options)

    @classmethod
    def from_images(cls, path: str | Path, view: str = "frontal", **options: Any) -> Self:
        """A folder or CSV of training images of one view; without held-out ones, so give both thresholds."""
        items = read_set(path, labels="file").with_images().items
        return cls({view: [item.file for item in items if item.file is not None]}, **options)

    @classmethod
    def from_index(cls, path: str | Path, **options: Any) -> Self:
        """What :meth:`save` wrote; given thresholds replace the stored ones."""
        from safetensors import SafetensorError, safe_open

        if "quantile" in options:
            raise InputError(f"{path}: an index has no held-out images for a quantile; give distances, or images")
        try:
            with safe_open(str(path), framework="np") as stream:
                said = json.loads((stream.metadata() or {}).get(FORMAT, "null"))
                indexes = {
                    view: Index(
                        pixels=stream.get_tensor(f"{view}.pixels"),
                        latents=stream.get_tensor(f"{view}.latents"),
                        **values,
                    )
                    for view, values in said.items()
                }
        except (SafetensorError, OSError, ValueError, AttributeError, TypeError) as error:
            line = " ".join(str(error).split())[:120]
            raise InputError(
                f"{path}: not the index of a privacy gate ({line}); make one with --save-privacy-index"
            ) from None
        gate = cls(indexes=indexes, **options)
        changes: dict[str, Any] = {}
        if gate.thresholds.latent is not None:
            changes |= {"latent_threshold": gate.thresholds.latent, "latent_held_out": 0}
        if gate.thresholds.pixel is not None:
            changes |= {"pixel_threshold": gate.thresholds.pixel, "pixel_held_out": 0}
        return replace(gate, indexes={view: replace(index, **changes) for view, index in indexes.items()})

    def indexed(self, model: LoadedModel, outputs: Sequence[str]) -> PrivacyGate:
        """The gate with the indexes that ``outputs`` need, by ``model``'s encoder; all images are read once.

        Raises:
            InputError: no output is an image; no training images of a view; an index of another encoder; no
                thresholds and too few held-out images.
            ImageError: an image cannot be read; names the file.
        """
        views = [name for name in outputs if get_modality(name).is_image]
        if not views:
            raise InputError(f"privacy gate: no output is an image ({', '.join(outputs)}); leave the gate out")
        return replace(self, indexes={**self.indexes, **{view: self._index(model, view) for view in views}})

    def save(self, path: str | Path) -> None:
        """Write the indexes as one file, atomically.

        Raises:
            InputError: there are none yet (:meth:`indexed`). OutputError: the file cannot be written.
        """
        from safetensors.numpy import save_file

        if not self.indexes:
            raise InputError("privacy gate: no index yet; call indexed(model, outputs) first")
        file = Path(path)
        tensors: dict[str, NDArray[Any]] = {}
        said: dict[str, dict[str, Any]] = {}
        for view, index in self.indexes.items():
            tensors |= {f"{view}.pixels": index.pixels, f"{view}.latents": index.latents}
            said[view] = {name: getattr(index, name) for name in _SAID}
        with replacing(file) as partial:
            save_file(tensors, partial, metadata={FORMAT: json.dumps(said)})

    def check(self, model: LoadedModel, view: str, value: Any) -> Verdict:
        """The verdict on one output as the pipeline returns it (PIL image, array or tensor), by the view's index."""
        image = _grey(value)[None]
        pixels, latents = _features(model, view, image)
        return self.indexes[view].verdict(pixels[0], latents[0])

    def compare(
        self, model: LoadedModel, view: str, files: Sequence[Path], reading: Mapping[Path, ReadOptions] | None = None
    ) -> list[Verdict]:
        """The verdicts on image files of one view, by its index (:meth:`indexed`); on the device of the model.

        Raises:
            ImageError: an image cannot be read; names the file.
        """
        pixels, latents = _read(model, view, files, reading or {})
        return self.indexes[view].verdicts(pixels, latents, str(model.device))

    def describe(self, view: str, verdict: Verdict) -> dict[str, Any]:
        """A verdict as a sample's metadata hold it, as JSON values."""
        index = self.indexes[view]
        return {
            "index": index.sha256[:16],
            "training_images": len(index.pixels),
            "latent_distance": verdict.latent,
            "latent_threshold": index.latent_threshold,
            "pixel_distance": verdict.pixel,
            "pixel_threshold": index.pixel_threshold,
        }

    def _index(self, model: LoadedModel, view: str) -> Index:
        encoder = _encoder_hash(model, view)
        if view in self.indexes:
            if self.indexes[view].encoder != encoder:
                raise InputError(
                    f"privacy gate: its index of {view} is of a different encoder or image size than {model.name!r}; "
                    "make it again from the images"
                )
            return self.indexes[view]
        if (view, encoder) not in self._made:
            self._made[view, encoder] = self._make(model, view, encoder)
        return self._made[view, encoder]

    def _make(self, model: LoadedModel, view: str, encoder: str) -> Index:
        if not self.training.get(view):
            known = ", ".join(sorted({*self.training, *self.indexes})) or "nothing"
            raise InputError(f"privacy gate: no training images of {view}, only of {known}; {view} cannot be checked")
        pixels, latents = _read(model, view, self.training[view], self.reading)
        index = Index(encoder, pixels, latents, 0.0, 0.0)
        latent, pixel = self.thresholds.latent, self.thresholds.pixel
        counts = {"latent_held_out": 0, "pixel_held_out": 0}
        if latent is None or pixel is None:
            seen = self.held_out.get(view, ())
            if len(seen) < MIN_HELD_OUT:
                raise InputError(
                    f"privacy gate: {len(seen)} held-out images of {view}, expected at least {MIN_HELD_OUT} to "
                    "estimate thresholds; give a manifest with more in val, or both thresholds (--privacy-threshold)"
                )
            counts = {
                "latent_held_out": len(seen) if latent is None else 0,
                "pixel_held_out": len(seen) if pixel is None else 0,
            }
            there, vectors = _read(model, view, seen, self.reading)
            latent = _quantile(latent_distance(vectors, latents).values, self.quantile) if latent is None else latent
            pixel = _quantile(aligned_distance(there, pixels).values, self.quantile) if pixel is None else pixel
        return replace(index, latent_threshold=latent, pixel_threshold=pixel, **counts)


def _quantile(values: NDArray[np.float64], share: float) -> float:
    return float(np.quantile(values, share, method="lower"))


def _encoder_hash(model: LoadedModel, view: str) -> str:
    own = component_hash(model.root, model.preset.encoder(view))
    return f"{own}-{hashlib.sha256(model.preset.transform.model_dump_json().encode()).hexdigest()[:16]}"


def _read(
    model: LoadedModel, view: str, files: Sequence[Path], reading: Mapping[Path, ReadOptions]
) -> tuple[Images, NDArray[np.float32]]:
    noted = Notes()

    def pixels_of(file: Path) -> Images:
        square = read_square(file, model.preset.transform, reading.get(file, AS_STATED), noted=noted)
        return grey_levels(square)

    batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
    parts: list[tuple[Images, NDArray[np.float32]]] = []
    with ThreadPoolExecutor(4) as pool, StepBar(f"index of {view} images", len(files)) as bar:
        for batch in batches:
            parts.append(_features(model, view, np.stack(list(pool.map(pixels_of, batch)))))
            bar.advance(len(batch))
    noted.log("privacy gate")
    return np.concatenate([pixels for pixels, _ in parts]), np.concatenate([vectors for _, vectors in parts])


def _features(model: LoadedModel, view: str, images: Images) -> tuple[Images, NDArray[np.float32]]:
    """Images (b, s, s) as thumbnails (b, 64, 64), smaller where s is, and as vectors (b, d)."""
    latents = embed(model, view, images).astype(np.float32)
    side = min(ALIGNED_SIZE, images.shape[-1])
    small = [resize(image.astype(np.float32) / 255, (side, side), "area") for image in images]
    return np.rint(np.stack(small) * 255).astype(np.uint8), latents


def _grey(value: Any) -> Images:
    """An image of any output type as it is written: (s, s) uint8."""
    if isinstance(value, torch.Tensor):
        value = value[0].cpu().numpy()
    array = np.asarray(value)
    return array if array.dtype == np.uint8 else np.rint(array * 255).astype(np.uint8)
