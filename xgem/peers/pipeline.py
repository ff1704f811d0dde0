"""A diffusers text-to-image pipeline behind xgem's own call: generate, cohorts, evaluation and replay take it as it is.

A sample depends on its prompt, its seed and its index alone: each row of a batch has a generator of its own, on the
CPU, and only pipelines whose rows do not see each other's prompts mix prompts in a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn, cast

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from xgem.checkpoints.locate import Location
from xgem.configs.preset import Preset
from xgem.modalities import get_modality
from xgem.peers.loading import load_pipeline
from xgem.peers.locate import PeerLocation, locate_peer
from xgem.peers.preset import COMPONENT, PROMPT, VIEW, peer_preset
from xgem.peers.prompts import context_tokens, truncated
from xgem.pipeline.conditioning import read_prompts
from xgem.pipeline.generation import Generation
from xgem.pipeline.metadata import describe_request
from xgem.pipeline.model import Row
from xgem.pipeline.options import CallOptions, Inputs
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.request import Request
from xgem.pipeline.sampling import Sampler
from xgem.types import CheckpointError, InputError, NotComputed, Prompt, SamplingError
from xgem.utils.progress import StepBar
from xgem.utils.random import derived_seed

logger = logging.getLogger(__name__)

ALONE: Final = frozenset({
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "PixArtAlphaPipeline",
    "PixArtSigmaPipeline", "SanaPipeline", "FluxPipeline",
})  # fmt: skip
"""Pipelines that pad every prompt to one length, so that rows of a batch may have different ones. Others (Lumina 2) pad
to the longest: a batch of theirs has samples of one prompt, so that it can be replayed."""
FIXED: Final = {"use_resolution_binning": False, "clean_caption": False}
"""Arguments by which a call would depend on what else is installed, or resize what it made."""
_STEPS: Final = "callback_on_step_end"
_OURS: Final = {
    "image": "it starts from noise alone",
    "mask_image": "it starts from noise alone",
    "strength": "it starts from noise alone",
    "joint": "it has one output",
    "guidance_start": "guidance is the pipeline's own",
    "guidance_end": "guidance is the pipeline's own",
    "guidance_rescale": "guidance is the pipeline's own",
    "controlnet_conditioning_scale": "it has no ControlNet",
    "control_guidance_end": "it has no ControlNet",
    "report_section": "it writes no report",
    "num_candidates": "it has no prompt encoders that compare images with reports",
    "privacy_gate": "it has no image encoder; measure with `xgem eval privacy` instead",
}
"""Options that a peer does not have, and why."""


class PeerPipeline(XgemPipeline):
    """A loaded peer: call it as an :class:`xgem.pipeline.pipeline.XgemPipeline`, with a report, for frontals.

    Images have the pipeline's own size, or the one that training recorded, and its own steps and guidance unless given.
    Grey levels are the mean of its three colour channels. A safety checker is not loaded: it would replace images by
    black ones.
    """

    root: Any
    preset: Any
    encodes = False

    def __init__(
        self,
        location: PeerLocation,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        """Use ``from_pretrained``."""
        if compile:
            raise InputError(f"{location.name}: compile is for xgem's own checkpoints; leave it out")
        self.location = location
        super().__init__(location, device=device, dtype=dtype)
        self.samplers = (self.preset.sampling.sampler,)

    @classmethod
    def from_pretrained(cls, model: Any = None, *, revision: str | None = None, **options: Any) -> PeerPipeline:
        """Open a peer by the names that :func:`xgem.peers.locate.locate_peer` takes; no weights are read yet.

        Raises:
            CheckpointError, InputError: as there. DeviceError: the device or dtype is not available.
        """
        return cls(locate_peer(model, revision=revision), **options)

    def _described(self, location: Location) -> tuple[Preset, str]:
        del location
        return peer_preset(self.location.folder, self.location.record), self.location.hash

    @property
    def trained(self) -> frozenset[str]:
        return frozenset({COMPONENT})

    @property
    def aligned(self) -> bool:
        return False

    def component(self, name: str) -> Any:
        """The diffusers pipeline, ``"pipeline"``, loaded at first use.

        Raises:
            CheckpointError, InputError: as :func:`xgem.peers.loading.load_pipeline`, or another name.
        """
        if name != COMPONENT:
            raise CheckpointError(f"{self.name}: has no component {name!r}; it has: {COMPONENT}")
        with self._lock:
            if name not in self._components:
                self._components[name] = load_pipeline(self.location, device=self.device, dtype=self.dtype)
            return self._components[name]

    def checked(
        self, inputs: Inputs | Sequence[Inputs] | None, outputs: str | Sequence[str], options: CallOptions
    ) -> Request:
        """As of a checkpoint; InputError too for options that only xgem's own checkpoints have."""
        own = self.preset.sampling
        for name, why in _OURS.items():
            value, default = getattr(options, name), CallOptions.model_fields[name].default
            if value not in (None, False, default, getattr(own, name, None)):
                raise InputError(f"{name}: {self.name} is a {self.preset.name}: {why}; leave it out")
        if options.sampler not in (None, own.sampler):
            raise InputError(
                f"sampler {options.sampler!r}: {self.name} is sampled with its own {own.sampler}; leave it out"
            )
        arguments = self.location.folder.defaults
        for name, given in (("guidance_scale", options.guidance_scale), (_STEPS, options.callback_on_step_end)):
            if given is not None and name not in arguments:
                raise InputError(f"{name}: a {self.preset.name} does not take it; leave it out")
        return super().checked(inputs, outputs, options)

    def _generate(
        self, inputs: Inputs | Sequence[Inputs] | None, outputs: str | Sequence[str], options: CallOptions
    ) -> list[Generation]:
        request = self.checked(inputs, outputs, options)
        self.to(options.device, options.dtype)
        prompts = [self._noted(read_prompts(self.preset, item)) for item in request.items]
        values: list[list[Any]] = [[] for _ in prompts]
        samples: list[list[dict[str, Any]]] = [[] for _ in prompts]
        rows = Sampler(self, request).rows()
        with StepBar(VIEW, len(rows), shown=options.progress) as bar:
            for batch in self._batches(rows, options.batch_size):
                made = self._sample([_text(prompts[row.item]) for row in batch], batch, request)
                for position, (row, value) in enumerate(zip(batch, made, strict=True)):
                    values[row.item].append(value)
                    samples[row.item].append(self._of_sample(request, row, len(batch), position))
                    bar.advance()
        return [
            Generation(
                {VIEW: values[item]},
                {**describe_request(self, request, item, prompt, {}, {}), "peer": self.description},
                {VIEW: samples[item]},
            )
            for item, prompt in enumerate(prompts)
        ]

    @torch.inference_mode()
    def regenerate(
        self,
        inputs: Inputs,
        metadata: Mapping[str, Any],
        *,
        image: Inputs | None = None,
        mask_image: Inputs | None = None,
        progress: bool = True,
    ) -> Any:
        """Make one sample again from its metadata, in a batch of the recorded size."""
        del image, mask_image, progress
        batch = cast(Mapping[str, Any], metadata["batch"])
        size, position = int(batch["size"]), int(batch["position"])
        scale = {VIEW: float(metadata["guidance_scale"])} if "guidance_scale" in self.location.folder.defaults else None
        options = CallOptions.recorded(metadata).replaced(
            seed=metadata["seed"], num_samples=1, guidance_scale=scale, joint=None, batch_size=size
        )
        request = self.checked(inputs, [str(metadata["output"])], options)
        text = _text(read_prompts(self.preset, inputs))
        rows = [Row(0, int(metadata["sample"]), request.seeds[0])] * size
        return self._sample([text] * size, rows, request)[position]

    @property
    def description(self) -> dict[str, Any]:
        """What metadata say of the peer, as JSON values."""
        where, (scheduler, config) = self.location, self.location.folder.scheduler
        record = where.record
        return {
            "pipeline": self.preset.name,
            "base": where.folder.hash,
            "revision": where.revision,
            "adapter": where.adapter.resolve().name if where.adapter else None,
            "training": record.model_dump(mode="json", exclude={"base"}) if record else None,
            "scheduler": {"class": scheduler, "config": config},
            "size": self.preset.transform.size,
            "options": self._extra,
            "grey": "mean of the colour channels",
            "diffusers": diffusers.__version__,
        }

    @property
    def _extra(self) -> dict[str, Any]:
        return {name: value for name, value in FIXED.items() if name in self.location.folder.defaults}

    def _noted(self, prompts: dict[str, Prompt]) -> dict[str, Prompt]:
        """Prompts with a note where a text encoder does not read all of the report; each is logged."""
        notes = truncated(self.component(COMPONENT), _text(prompts), self.location.folder.defaults) if prompts else ()
        for note in notes:
            logger.warning("%s: %s", PROMPT, note)
        return {name: replace(one, notes=(*one.notes, *notes)) for name, one in prompts.items()}

    def _batches(self, rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
        """Rows in batches; of one prompt each where rows see each other's prompts."""
        mixed = self.preset.name in ALONE
        batch: list[Row] = []
        for row in rows:
            if batch and (len(batch) == size or not (mixed or row.item == batch[0].item)):
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _of_sample(self, request: Request, row: Row, size: int, position: int) -> dict[str, Any]:
        """What metadata say of one sample alone."""
        scale = request.guidance_scale[VIEW]
        tokens = context_tokens(self.component(COMPONENT), self.location.folder.defaults)
        return {
            "output": VIEW,
            "sample": row.number,
            "guidance_scale": scale,
            "together": {VIEW: {"guidance_scale": scale, "context_tokens": tokens}},
            "batch": {"size": size, "position": position},
        }

    def _sample(self, texts: Sequence[str], rows: Sequence[Row], request: Request) -> list[Any]:
        """One batch: a value of the requested type for each of ``rows``.

        Raises:
            SamplingError: images are not finite.
        """
        pipe, options, side = self.component(COMPONENT), request.options, self.preset.transform.size
        arguments: dict[str, Any] = dict(self._extra)
        if "guidance_scale" in self.location.folder.defaults:
            arguments["guidance_scale"] = request.guidance_scale[VIEW]
        if options.callback_on_step_end is not None:
            arguments[_STEPS] = self._callback(options.callback_on_step_end, tuple(rows))
        latent = options.output_type == "latent"
        with self.sampling_lock:
            made = pipe(
                prompt=list(texts),
                height=side,
                width=side,
                num_inference_steps=request.steps,
                generator=[torch.Generator().manual_seed(derived_seed(row.seed, VIEW, row.number)) for row in rows],
                output_type="latent" if latent else "np",
                **arguments,
            ).images
        finite = np.isfinite(np.asarray(made.float().cpu() if isinstance(made, torch.Tensor) else made))
        if not finite.all():
            raise SamplingError(
                f"{VIEW}: {int((~finite.reshape(len(finite), -1)).any(axis=1).sum())} of {len(rows)} samples of "
                f"{self.name} are not finite (NaN); use dtype float32, or a smaller guidance_scale"
            )
        if latent:
            return list(made.float().cpu().unbind())
        grey = torch.from_numpy(np.asarray(made).mean(axis=3))[:, None]  # (b, 1, s, s) in [0, 1]
        return get_modality(VIEW).to_output(grey * 2 - 1, cast(Any, options.output_type))

    def _callback(self, ours: Any, rows: tuple[Row, ...]) -> Any:
        """A callback as diffusers calls it, of one as xgem's samplers call it, without an estimate."""

        def called(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            del pipe
            ours(self, step, int(timestep), {"latents": values["latents"], "output": VIEW, "rows": rows})
            return {}

        return called

    @torch.inference_mode()
    def reconstruct(self, modality: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images (n, size, size) uint8, encoded and decoded by the pipeline's autoencoder."""
        del modality
        vae = self.component(COMPONENT).vae
        made: list[NDArray[np.uint8]] = []
        for image in images:
            pixels = torch.from_numpy(image)[None, None].repeat(1, 3, 1, 1).to(self.device, self.dtype) / 127.5 - 1
            encoded = vae.encode(pixels)
            decoded = vae.decode(encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()).sample
            grey = decoded.float().clamp(-1, 1).mean(dim=1)[0]  # (h, w)
            made.append(((grey + 1) * 127.5).round().to(torch.uint8).cpu().numpy())
        return np.stack(made)

    def embed(self, modality: str, values: NDArray[np.uint8] | Sequence[str]) -> NDArray[np.float64]:
        """NotComputed: a peer has no prompt encoders that images and reports share."""
        del modality, values
        raise NotComputed(f"{self.name} has no prompt encoders that images and reports share")

    def decode(self, output: str, latents: torch.Tensor, *, output_type: str = "pil") -> list[Any]:
        """InputError: what latents become depends on the pipeline."""
        del output, latents, output_type
        self._refuse("latents are decoded within a call; ask for another output_type")

    def reconstruct_reports(self, modality: str, reports: Sequence[str]) -> list[str]:
        """InputError: it has no codec of reports."""
        del modality, reports
        self._refuse("it has no codec of reports")

    def save_pretrained(self, directory: Any) -> None:
        """InputError: it is no checkpoint of xgem."""
        del directory
        self._refuse("copy its folder, or save it with diffusers")

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """InputError: it is no checkpoint of xgem."""
        del repo_id, options
        self._refuse("upload its folder with the hub's own tools")

    def _refuse(self, why: str) -> NoReturn:
        raise InputError(f"{self.name} is a {self.preset.name} of diffusers, not a checkpoint of xgem: {why}")


def _text(prompts: Mapping[str, Prompt]) -> str:
    return prompts[PROMPT].value if PROMPT in prompts else ""
