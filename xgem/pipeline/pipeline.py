"""A loaded checkpoint that generates: read, encode, sample, decode, with only the components that a request needs.

A sample depends on its own inputs, its seed, its output's name and its index, and on nothing else: the noise is drawn
from them on the CPU, and every prompt is encoded by itself. What remains of a batch is the order in which a kernel
adds numbers up, which its size decides; the size is recorded, and ``XgemPipeline.regenerate`` uses it again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray

from xgem.checkpoints import store
from xgem.checkpoints.locate import Location, locate
from xgem.configs.preset import Preset
from xgem.configs.reading import ReadOptions
from xgem.generators.latent_diffusion import DiTLatentDiffusion, LatentDiffusion
from xgem.generators.onnx_denoiser import OnnxDenoiser
from xgem.generators.sampling import FORMER_SAMPLERS, SAMPLERS
from xgem.modalities import MODALITIES
from xgem.pipeline import conditioning
from xgem.pipeline.compiling import check_compiled
from xgem.pipeline.conditioning import annotations_of, encode_conditions, files_of, read_prompts
from xgem.pipeline.editing import read_areas
from xgem.pipeline.generation import Generation
from xgem.pipeline.kinds import other_pipeline
from xgem.pipeline.metadata import describe_request
from xgem.pipeline.model import Row, Sample
from xgem.pipeline.options import CallKeywords, CallOptions, Inputs, documented, renamed
from xgem.pipeline.request import Request, make_request
from xgem.pipeline.sampling import Sampler, accepted, batch_inputs, has_alignment, warn_of_unused
from xgem.types import CheckpointError, ConfigError, InputError
from xgem.utils.devices import dtype_name, resolve_device, resolve_dtype
from xgem.utils.progress import StepBar
from xgem.utils.random import draw_seeds

if TYPE_CHECKING:
    from xgem.checkpoints.component import Component

logger = logging.getLogger(__name__)


class XgemPipeline:
    """A loaded checkpoint: call it with inputs and the names of the wanted outputs.

    Components are read, with their hashes checked, when a request first needs them, and kept.

    Attributes:
        preset: the checkpoint's configuration.
        name: the checkpoint's name, as metadata gives it.
        hash: stands for all of the checkpoint's files (``xgem.checkpoints.store.checkpoint_hash``).
        device, dtype: where and in which number format requests run.
        compiled: whether its denoisers are compiled.
        samplers: names of the samplers that a request may ask for. ``encodes``: whether ``embed`` has prompt encoders.
    """

    samplers: tuple[str, ...] = tuple(SAMPLERS)
    encodes: bool = True

    def __init__(
        self,
        location: Location,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        """Use ``from_pretrained``; the device is the first CUDA device or the CPU, and float32, unless given."""
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.root = location.root
        self.name = location.name
        self.preset, self.hash = self._described(location)
        self.compiled = compile
        check_compiled(self, self.device, self.dtype)
        self._components: dict[str, Component] = {}
        self._lock = threading.Lock()
        # Generators keep their projected context while they sample: one at a time, threads wait for each other.
        self.sampling_lock = threading.RLock()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool = False,
    ) -> XgemPipeline:
        """Open a checkpoint: an embedded one by name (None: the default), a folder, or a hub id with a revision.

        ``compile`` makes denoisers faster, for many requests. UNets are run by ONNX Runtime (the extra ``onnx``; on the
        CPU in float32 only), which takes some seconds once. A diffusion transformer is compiled by PyTorch, which
        makes the first request of each shape (batch size, and without guidance the length of captions) much slower;
        samples that annotations steer are made as without it.

        Raises:
            CheckpointError: there is none, or its index is not valid.
            DeviceError: the device or dtype is not available, or UNets cannot be compiled for it.
            InputError: a package that compiling takes is missing.
        """
        kind = other_pipeline(model)
        if kind is not None:
            return kind.from_pretrained(model, revision=revision, device=device, dtype=dtype, compile=compile)
        return cls(locate(model, revision=revision), device=device, dtype=dtype, compile=compile)

    def _described(self, location: Location) -> tuple[Preset, str]:
        """The configuration and the hash of what lies at ``location``."""
        root = location.root
        try:
            preset = Preset.parse(dict(store.read_index(root).preset), str(root / store.INDEX_NAME))
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        return preset, store.checkpoint_hash(root)

    def save_pretrained(self, directory: str | Path) -> None:
        """Copy the checkpoint, verified, with its card, to a new or empty folder.

        Raises:
            CheckpointError: the checkpoint is not whole. OutputError: the folder is used or cannot be written.
        """
        store.copy_checkpoint(self.root, directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        revision: str | None = None,
        commit_message: str = "Upload of an xgem checkpoint",
        token: str | None = None,
    ) -> str:
        """Upload the checkpoint, verified, with its card, to the Hugging Face hub; returns the commit's address.

        A repository that is made is private unless ``private`` is false. Arguments and errors are those of
        :func:`xgem.checkpoints.hub.push_checkpoint`.
        """
        from xgem.checkpoints.hub import push_checkpoint

        return push_checkpoint(
            self.root, repo_id, private=private, revision=revision, commit_message=commit_message, token=token
        )

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> XgemPipeline:
        """Move to another device or number format; None leaves it as it is. Returns the pipeline itself.

        A new number format reads the components anew: what was rounded once is not rounded twice.
        """
        new_device = self.device if device is None else resolve_device(device)
        new_dtype = resolve_dtype(self.dtype if dtype is None else dtype, new_device)
        check_compiled(self, new_device, new_dtype)
        with self._lock:
            if new_dtype != self.dtype:
                self._components.clear()
            for component in self._components.values():
                component.to(new_device)
            self.device, self.dtype = new_device, new_dtype
        return self

    def component(self, name: str) -> Component:
        """A component by its name in the preset, read at first use.

        Raises:
            CheckpointError: it is missing, altered or does not fit its configuration.
        """
        with self._lock:
            if name not in self._components:
                component = store.load_component(self.root, name, device=self.device, dtype=self.dtype)
                if self.compiled and isinstance(component, DiTLatentDiffusion):
                    # With shapes of its own, what is made depends on no other.
                    component.net.compile(fullgraph=True, dynamic=False)
                elif self.compiled and isinstance(component, LatentDiffusion):
                    component.net = OnnxDenoiser(component.net)
                self._components[name] = component
            return self._components[name]

    @overload
    def __call__(
        self, inputs: Inputs | None, outputs: str | Sequence[str], **options: Unpack[CallKeywords]
    ) -> Generation: ...
    @overload
    def __call__(
        self, inputs: Sequence[Inputs], outputs: str | Sequence[str], **options: Unpack[CallKeywords]
    ) -> list[Generation]: ...

    @documented
    def __call__(
        self,
        inputs: Inputs | Sequence[Inputs] | None,
        outputs: str | Sequence[str],
        **options: Unpack[CallKeywords],
    ) -> Generation | list[Generation]:
        """Generate ``outputs`` from ``inputs``; several outputs jointly, so that they agree, where the model can.

        A sample is the same whatever else is requested or batched with it. So one seed gives all items of a batch the
        same noise, and a list of seeds gives each its own.

        Args:
            inputs: from modality to value (a file, PIL image, array or tensor; text for reports). Empty or None
                generates without any prompt. A list of mappings is a batch and gives a list of generations.
            outputs: one or more modalities, none of them an input.
            options: the fields of :class:`xgem.pipeline.options.CallOptions`. ``image`` is a mapping from output to a
                value as in ``inputs``, or one mapping per item. ``joint`` outputs see each other at every step, in one
                batch and with the same number of steps. Where neither is given and the checkpoint has no trained
                alignment, outputs are sampled independently, with a warning; the metadata say which.

        Raises:
            InputError: an input or option that cannot be used.
            CheckpointError, DeviceError: as ``component`` and ``to``; or the model cannot be compiled here.
            PrivacyError: the gate refused every try of a sample.
            SamplingError: a sample is not finite; says of which output, and the likely cause.
        """
        given = CallOptions.parse(renamed(options))
        with torch.inference_mode():
            generations = self._generate(inputs, outputs, given)
        single = inputs is None or isinstance(inputs, Mapping)
        return generations[0] if single else generations

    def _generate(
        self, inputs: Inputs | Sequence[Inputs] | None, outputs: str | Sequence[str], options: CallOptions
    ) -> list[Generation]:
        # Check the request before anything is loaded.
        request = self.checked(inputs, outputs, options)
        if options.privacy_gate is not None and options.output_type == "latent":
            raise InputError("privacy_gate compares images, expected another output_type than 'latent'")
        if options.num_candidates > 1 and options.output_type == "latent":
            raise InputError("num_candidates compares decoded outputs, expected another output_type than 'latent'")
        self.to(options.device, options.dtype)
        # Read all inputs before a component is loaded: a file that cannot be read is reported at once.
        prompts = [
            read_prompts(self.preset, item, options.reading, start)
            for item, start in zip(request.items, request.images, strict=True)
        ]
        images = [read_prompts(self.preset, item, options.reading) for item in request.images]
        areas = [read_areas(self.preset, *item) for item in zip(request.areas, request.images, strict=True)]
        warn_of_unused(options, prompts)
        prompts = [conditioning.with_notes(self, item, request.outputs) for item in prompts]
        gate = None if options.privacy_gate is None else options.privacy_gate.indexed(self, request.outputs)
        # Encode each item by itself.
        conditions = [
            encode_conditions(self, *item, request.outputs) for item in zip(prompts, images, areas, strict=True)
        ]
        # Sample and decode, one group of joint outputs after the other.
        sampler = Sampler(self, request)
        values: list[dict[str, list[Any]]] = [{} for _ in prompts]
        samples: list[dict[str, list[dict[str, Any]]]] = [{} for _ in prompts]
        for group in request.groups:

            def draw(rows: Sequence[Row], group: Sequence[str] = group) -> Iterator[tuple[Row, Sample]]:
                return sampler.sample_best(group, rows, conditions)

            drawn = draw(sampler.rows()) if gate is None else accepted(self, gate, sampler.rows(), draw)
            for row, sample in sorted(drawn, key=lambda drawn_row: drawn_row[0][:2]):
                for name, (value, described) in sample.items():
                    values[row.item].setdefault(name, []).append(value)
                    samples[row.item].setdefault(name, []).append(described)
        # Say of each sample where it comes from.
        return [
            Generation(
                values[item],
                describe_request(self, request, item, prompts[item], images[item], areas[item]),
                samples[item],
                annotations_of(prompts[item]),
                files_of(request.images[item], images[item]) | files_of(request.items[item], prompts[item]),
            )
            for item in range(len(prompts))
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
        """Make one sample again, identically on the same machine, from its metadata (``replay`` checks those).

        The batch is filled up to its recorded size with copies, so that every kernel runs in the same shape; outputs
        that were sampled jointly with it are sampled again too.
        """
        output, batch = str(metadata["output"]), cast(Mapping[str, Any], metadata["batch"])
        size, position = int(batch["size"]), int(batch["position"])
        together = cast(Mapping[str, Mapping[str, Any]], metadata["together"])
        # The request for this sample alone, with the outputs that were sampled together.
        options = CallOptions.recorded(metadata)
        images = {name: value for name, value in (image or {}).items() if name in together}
        masks = {name: value for name, value in (mask_image or {}).items() if name in together}
        options = options.replaced(
            seed=metadata["seed"],
            num_samples=1,
            guidance_scale={name: float(settings["guidance_scale"]) for name, settings in together.items()},
            joint=len(together) > 1,
            image=images or None,
            mask_image=masks or None,
            strength=options.strength if images else None,
            batch_size=size,
        )
        request = self.checked(inputs, list(together), options)
        # Its inputs, repeated for every row of the batch.
        reading = ReadOptions(allow_any=True).over(options.reading)
        prompts = read_prompts(self.preset, inputs, reading, images)
        start = read_prompts(self.preset, images, reading)
        conditions = encode_conditions(self, prompts, start, read_areas(self.preset, masks, images), request.outputs)
        parts = {
            name: batch_inputs(
                name,
                [conditioning.fuse(self, name, conditions.encoded)] * size,
                [conditions] * size,
                width=int(settings["context_tokens"]),
            )
            for name, settings in together.items()
        }
        rows = [Row(0, int(metadata["sample"]), request.seeds[0])] * size
        with StepBar("+".join(together), request.steps, shown=progress) as bar:
            return Sampler(self, request).sample(parts, rows, bar)[output][position]

    def checked(
        self,
        inputs: Inputs | Sequence[Inputs] | None,
        outputs: str | Sequence[str],
        options: CallOptions,
    ) -> Request:
        """A request as it would be sampled: checked, with its defaults; nothing is loaded, and no input is read.

        Raises:
            InputError: an input, output or option that cannot be used.
        """
        if options.generator is not None:
            if options.seed is not None:
                raise InputError("seed and generator were both given, expected one of them")
            seeds = draw_seeds(options.generator)
            options = options.replaced(seed=seeds if isinstance(seeds, int) else tuple(seeds))
        joint = self.aligned if options.joint is None else options.joint
        samplers = (*self.samplers, *FORMER_SAMPLERS)
        request = make_request(self.preset, list(MODALITIES), samplers, inputs, outputs, options.replaced(joint=joint))
        if options.joint is None and not joint and len(request.outputs) > 1:
            logger.warning("%s has no trained alignment: outputs are sampled independently", self.name)
        return request

    @property
    def trained(self) -> frozenset[str]:
        """Names of the components that the checkpoint has, which may be fewer than its preset's."""
        return frozenset(store.read_index(self.root).components)

    @property
    def aligned(self) -> bool:
        """Whether the checkpoint has what sampling several outputs jointly takes."""
        return has_alignment(self)

    @torch.inference_mode()
    def decode(self, output: str, latents: torch.Tensor, *, output_type: str = "pil") -> list[Any]:
        """Samples from latents (n, *latent_shape) of ``output_type="latent"``, or of a callback: a preview.

        Raises:
            InputError: an output or output type that is not known. ShapeError: latents of another shape.
        """
        if output not in self.preset.outputs:
            raise InputError(f"output {output!r} is not known, expected one of: {', '.join(self.preset.outputs)}")
        kind = CallOptions.parse({"output_type": output_type}).output_type
        if kind == "latent":
            raise InputError("output_type 'latent' is what is decoded, expected 'pil', 'np' or 'pt'")
        codec: Any = self.component(self.preset.codec(output))
        return MODALITIES[output].to_output(codec.decode(latents.to(self.device, self.dtype)), kind)

    def __repr__(self) -> str:
        takes, makes = (", ".join(names) for names in (self.preset.modalities, self.preset.outputs))
        return f"XgemPipeline({self.name} {self.hash}, {self.device} {dtype_name(self.dtype)}: {takes} -> {makes})"

    def _repr_html_(self) -> str:
        """For notebooks: what it generates from what."""
        rows = [(name, ", ".join(self.preset.inputs(name))) for name in self.preset.outputs]
        cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(takes)}</td></tr>" for name, takes in rows)
        return f"<p>{escape(repr(self))}</p><table><tr><th>output</th><th>from any of</th></tr>{cells}</table>"

    def embed(self, modality: str, values: NDArray[np.uint8] | Sequence[str]) -> NDArray[np.float64]:
        """Pooled vectors (n, d) of images (n, size, size) uint8, or of n reports, by the modality's prompt encoder.

        Images and reports share one space; ``size`` is ``preset.transform.size``.
        """
        return conditioning.embed(self, modality, values)

    def reconstruct(self, modality: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images (n, size, size) uint8, encoded and decoded by the modality's codec."""
        return conditioning.reconstruct(self, modality, images)

    def reconstruct_reports(self, modality: str, reports: Sequence[str]) -> list[str]:
        """Reports, encoded and decoded by the modality's codec."""
        return conditioning.reconstruct_reports(self, modality, reports)
