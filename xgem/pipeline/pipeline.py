"""From prompts to samples: encode -> fuse -> sample -> decode, with only the components that a request needs.

A sample depends on its own inputs, its seed, its output's name and its index, and on nothing else: the noise is drawn
from them on the CPU, and every prompt is encoded by itself. What remains of a batch is the order in which a kernel
adds numbers up, which its size decides; the size is recorded, and ``XgemPipeline.regenerate`` uses it again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack, cast, overload

import torch
from torch import Tensor

from xgem._version import __version__
from xgem.checkpoints import store
from xgem.checkpoints.locate import Location, locate
from xgem.configs.components import ControlNetConfig, DiTGeneratorConfig
from xgem.configs.preset import Preset
from xgem.data.annotations import Annotation, render
from xgem.data.captions import preface
from xgem.encoders.fusion import stack
from xgem.generators.latent_diffusion import DiTLatentDiffusion
from xgem.generators.sampling import SAMPLERS, Control, Output, sample_together
from xgem.modalities import MODALITIES, get_modality
from xgem.pipeline.generation import Generation
from xgem.pipeline.request import CallOptions, Inputs, Request, StepCallback, make_request
from xgem.types import CheckpointError, ConfigError, Context, DeviceError, Encoded, InputError, PrivacyError, Prompt
from xgem.utils.devices import dtype_name, resolve_device, resolve_dtype
from xgem.utils.progress import StepBar
from xgem.utils.random import derived_seed, draw_seeds, sample_noise

if TYPE_CHECKING:
    from xgem.alignment.model import Alignment
    from xgem.checkpoints.component import Component
    from xgem.generators.controlnet import ControlNet
    from xgem.pipeline.privacy_gate import PrivacyGate


logger = logging.getLogger(__name__)


DEFAULT_BATCH_SIZE = 16


class _Row(NamedTuple):
    """One sample to make: of which item of the request, which of the item's samples, and from which seed."""

    item: int
    number: int
    seed: int


_Made = dict[str, tuple[Any, dict[str, Any]]]
"""One sample by output: its value, and what its metadata say of it alone."""


class _Chunk(NamedTuple):
    """What one output needs for a batch: contexts of batch 1, the width to pad them to, latents to start from, and
    latents (1, ...) of the annotations that steer it, None for a row without."""

    contexts: Sequence[Context]
    width: int
    starts: Sequence[Tensor] | None
    steered: Sequence[Tensor | None]


class _Conditions(NamedTuple):
    """An item's inputs, made ready: encoded prompts, and the latents (1, ...) of its annotation image by output."""

    encoded: Mapping[str, Encoded]
    steered: Mapping[str, Tensor]


class XgemPipeline:
    """A loaded checkpoint: call it with inputs and the names of the wanted outputs.

    Components are read, with their hashes checked, when a request first needs them, and kept.

    Attributes:
        preset: the checkpoint's configuration.
        name: the checkpoint's name, as metadata gives it.
        hash: stands for all of the checkpoint's files (``xgem.checkpoints.store.checkpoint_hash``).
        device, dtype: where and in which number format requests run.
        compiled: whether its diffusion transformer is compiled.
    """

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
        self.preset = _read_preset(location.root)
        self.hash = store.checkpoint_hash(location.root)
        self.compiled = compile
        if compile and not any(isinstance(part, DiTGeneratorConfig) for part in self.preset.components.values()):
            raise InputError(f"{self.name}: has no diffusion transformer, which is what compile is for; leave it out")
        self._components: dict[str, Component] = {}
        self._lock = threading.Lock()
        # Generators keep their projected context while they sample: one at a time, threads wait for each other.
        self._sampling = threading.RLock()

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

        ``compile`` makes its diffusion transformer faster and the first request of each shape (batch size, and without
        guidance the length of captions) much slower: it is for many requests of few shapes. Samples that annotations
        steer are made as without it.

        Raises:
            CheckpointError: there is none, or its index is not valid.
            DeviceError: the device or dtype is not available. InputError: there is nothing to compile.
        """
        return cls(locate(model, revision=revision), device=device, dtype=dtype, compile=compile)

    def save_pretrained(self, directory: str | Path) -> None:
        """Copy the checkpoint, verified, with its card, to a new or empty folder.

        Raises:
            CheckpointError: the checkpoint is not whole. OutputError: the folder is used or cannot be written.
        """
        store.copy_checkpoint(self.root, directory)

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> XgemPipeline:
        """Move to another device or number format; None leaves it as it is. Returns the pipeline itself.

        A new number format reads the components anew: what was rounded once is not rounded twice.
        """
        new_device = self.device if device is None else resolve_device(device)
        new_dtype = resolve_dtype(self.dtype if dtype is None else dtype, new_device)
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
                self._components[name] = store.load_component(self.root, name, device=self.device, dtype=self.dtype)
                if self.compiled and isinstance(component := self._components[name], DiTLatentDiffusion):
                    # With shapes of its own, what is made depends on no other.
                    component.net.compile(fullgraph=True, dynamic=False)
            return self._components[name]

    @overload
    def __call__(
        self, inputs: Inputs | None, outputs: str | Sequence[str], **options: Unpack[CallOptions]
    ) -> Generation: ...
    @overload
    def __call__(
        self, inputs: Sequence[Inputs], outputs: str | Sequence[str], **options: Unpack[CallOptions]
    ) -> list[Generation]: ...

    @torch.inference_mode()
    def __call__(
        self,
        inputs: Inputs | Sequence[Inputs] | None,
        outputs: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_samples: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        sampler: str | None = None,
        joint: bool | None = None,
        keep: Inputs | Sequence[Inputs] | None = None,
        strength: float | None = None,
        control_scale: float = 1.0,
        control_end: float = 1.0,
        greedy: bool = True,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        progress: bool = True,
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "pil",
        batch_size: int = DEFAULT_BATCH_SIZE,
        allow_any: bool = False,
        privacy_gate: PrivacyGate | None = None,
    ) -> Generation | list[Generation]:
        """Generate ``outputs`` from ``inputs``; several outputs jointly, so that they agree, where the model can.

        Args:
            inputs: from modality to value (a file, PIL image, array or tensor; text for reports). Empty or None
                generates without any prompt. A list of mappings is a batch and gives a list of generations.
            outputs: one or more modalities, none of them an input.
            seed: 0 to 2**63 - 1. A sample is the same whatever else is asked for or batched with it; so one seed
                gives all items of a batch the same noise, and a list of seeds gives each its own. None: random,
                and recorded in the metadata.
            generator: alternatively, a source (or one an item) from which the seed is drawn.
            num_samples: samples of each output for each item.
            num_inference_steps, guidance_scale, sampler: the preset's unless given; ``guidance_scale`` is one
                number, or one for each output (classifier-free guidance; 1 is none).
            joint: several outputs see each other at every step (XGeM 2.3), in one batch and with the same number of
                steps; False samples each by itself, as if it were the only one. None: jointly where the checkpoint has
                a trained alignment, and with a warning where not; the metadata say which.
            keep: from output to a value (as in ``inputs``) that it starts from, instead of from noise alone (SDEdit):
                the same chest, changed towards the inputs. One mapping, or one an item.
            strength: how much of the way a kept output goes anew, above 0 and up to 1 (nothing is kept); default 0.5.
            control_scale, control_end: how strongly annotations steer (1 as trained, 0 not at all), and until which
                share of the steps.
            greedy: reports take the likeliest token; otherwise tokens are drawn, seeded.
            device, dtype: move the pipeline there first (``to``).
            progress: show progress bars.
            callback_on_step_end: called as ``f(pipeline, step, timestep, {"latents": ..., "output": ...})``.
            output_type: images as ``"pil"``, ``"np"`` (h, w) float32 in [0, 1], or ``"pt"`` (1, h, w) in [0, 1].
            batch_size: most samples that are computed together.
            allow_any: accept DICOM files of another modality, body part or view.
            privacy_gate: what comes too close to a training image is drawn again, with all outputs that were
                sampled jointly with it, from another seed; the metadata say which, after how many tries, and how close
                the accepted image comes.

        Raises:
            InputError: anything of the above that cannot be used.
            CheckpointError, DeviceError: as ``component`` and ``to``; nor can it be compiled here.
            PrivacyError: the gate refused every draw of a sample.
        """
        if seed is not None and generator is not None:
            raise InputError("seed and generator were both given, expected one of them")
        if generator is not None:
            seed = draw_seeds(generator)
        request = make_request(
            self.preset,
            list(MODALITIES),
            list(SAMPLERS),
            inputs,
            outputs,
            seed=seed,
            num_samples=num_samples,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            joint=self.aligned if joint is None else joint,
            keep=keep,
            strength=strength,
            control_scale=control_scale,
            control_end=control_end,
            greedy=greedy,
            output_type=output_type,
            batch_size=batch_size,
        )
        if joint is None and not request.joint and len(request.outputs) > 1:
            logger.warning("%s has no trained alignment: outputs are sampled independently", self.name)
        self.to(device, dtype)
        # All inputs are read before a component is: what is wrong with the last is said at once.
        prompts = [self._read(item, allow_any) for item in request.items]
        kept = [self._read(item, allow_any) for item in request.keep]
        if (control_scale, control_end) != (1, 1) and not any(map(annotations_of, prompts)):
            logger.warning("control_scale and control_end change nothing: no annotation was given")
        prompts = [self._annotate(item, request.outputs) for item in prompts]
        gate = None if privacy_gate is None else privacy_gate.indexed(self, request.outputs)
        conditions = [self._conditions(item, request.outputs) for item in prompts]
        starts = [self._start(item) for item in kept]
        made = [Generation({}, self._metadata(request, i, prompts[i], kept[i])) for i in range(len(prompts))]
        values: list[dict[str, list[Any]]] = [{} for _ in made]
        samples: list[dict[str, list[dict[str, Any]]]] = [{} for _ in made]
        for group in request.groups:
            rows = [_Row(item, n, request.seeds[item]) for item in range(len(made)) for n in range(request.num_samples)]

            def draw(rows: Sequence[_Row], group: Sequence[str] = group) -> Iterator[tuple[_Row, _Made]]:
                return self._sample_all(group, rows, conditions, starts, request, progress, callback_on_step_end)

            drawn = draw(rows) if gate is None else self._accepted(gate, rows, draw)
            for row, sample in sorted(drawn, key=lambda one: one[0][:2]):
                for name, (value, own) in sample.items():
                    values[row.item].setdefault(name, []).append(value)
                    samples[row.item].setdefault(name, []).append(own)
        generations = [
            Generation(v, g.metadata, s, annotations_of(p))
            for v, g, s, p in zip(values, made, samples, prompts, strict=True)
        ]
        single = inputs is None or isinstance(inputs, Mapping)
        return generations[0] if single else generations

    @torch.inference_mode()
    def regenerate(
        self, inputs: Inputs, metadata: Mapping[str, Any], *, keep: Inputs | None = None, progress: bool = True
    ) -> Any:
        """Make one sample again, identically on the same machine, from its metadata (``replay`` checks those).

        The batch is filled up to its recorded size with copies, so that every kernel runs in the same shape; outputs
        that were sampled jointly with it are sampled again too.
        """
        name, batch = str(metadata["output"]), cast(Mapping[str, Any], metadata["batch"])
        size, position = int(batch["size"]), int(batch["position"])
        together = cast(Mapping[str, Mapping[str, Any]], metadata["together"])
        kept = {one: value for one, value in (keep or {}).items() if one in together}
        request = make_request(
            self.preset,
            list(MODALITIES),
            list(SAMPLERS),
            inputs,
            list(together),
            seed=metadata["seed"],
            num_samples=1,
            num_inference_steps=metadata["num_inference_steps"],
            guidance_scale={one: settings["guidance_scale"] for one, settings in together.items()},
            sampler=metadata["sampler"],
            joint=len(together) > 1,
            keep=kept or None,
            strength=metadata["strength"] if kept else None,
            control_scale=metadata["control_scale"],
            control_end=metadata["control_end"],
            greedy=metadata["greedy"],
            output_type="pil",
            batch_size=size,
        )
        conditions = self._conditions(self._read(inputs, allow_any=True), list(together))
        start = self._start(self._read(kept, allow_any=True))
        chunk: dict[str, _Chunk] = {}
        for one, settings in together.items():
            context = self._fuse(one, conditions.encoded)
            width = max(int(settings["context_tokens"]), context.tokens.shape[1])
            starts = [start[one]] * size if one in start else None
            chunk[one] = _Chunk([context] * size, width, starts, [conditions.steered.get(one)] * size)
        keys = [(request.seeds[0], int(metadata["sample"]))] * size
        with StepBar("+".join(together), request.num_inference_steps, shown=progress) as bar:
            return self._sample(chunk, keys, request, bar, None)[name][position]

    # ------------------------------------------------------------------------------------------------ steps

    def _read(self, item: Inputs, allow_any: bool) -> dict[str, Prompt]:
        """The item's inputs in the preset's order: the order in which a caller lists them changes nothing."""
        names = [name for name in self.preset.modalities if name in item]
        return {name: get_modality(name).read(item[name], self.preset, allow_any=allow_any) for name in names}

    def _annotate(self, prompts: Mapping[str, Prompt], outputs: Sequence[str]) -> dict[str, Prompt]:
        """Prompts with their encoder's notes (that a report is too long for it, say), each said as a warning."""
        annotated: dict[str, Prompt] = dict(prompts)
        generators = [self.preset.components[self.preset.generator(name)] for name in outputs]
        limits = [part.caption_tokens for part in generators if isinstance(part, DiTGeneratorConfig)]
        for name, value in self._encoded_values(prompts).items():
            encoder: Any = self.component(self.preset.encoder(name))
            notes = encoder.notes(value, min(limits, default=None))
            # Where there is no such prompt itself, what joins it is all of the text.
            joining = [one for one in prompts if self.preset.modalities[one].joins == name]
            said = name if name in prompts else joining[0]
            annotated[said] = replace(prompts[said], notes=(*prompts[said].notes, *notes))
        for name, prompt in annotated.items():
            for note in prompt.notes:
                logger.warning("%s: %s", name, note)
        return annotated

    def _encoded_values(self, prompts: Mapping[str, Prompt]) -> dict[str, Any]:
        """What encoders read, by modality: the prompts that have one, with what joins them written in front."""
        values = {name: prompt.value for name, prompt in prompts.items() if self.preset.modalities[name].encoder}
        known: dict[str, dict[str, Any]] = {}
        for name, prompt in prompts.items():
            target = self.preset.modalities[name].joins
            if target is not None:
                known.setdefault(target, {}).update(get_modality(name).preface(prompt.value))
        for target, fields in known.items():
            values[target] = f"{preface(**fields)} {values.get(target, '')}".strip()
        return values

    def _conditions(self, prompts: Mapping[str, Prompt], outputs: Sequence[str]) -> _Conditions:
        """Each item by itself, a batch of one: what else is in a request cannot change it."""
        encoded: dict[str, Encoded] = {}
        for name, value in self._encoded_values(prompts).items():
            encoder: Any = self.component(self.preset.encoder(name))
            batch = get_modality(name).collate([value])
            batch = batch.to(self.device, self.dtype) if isinstance(batch, Tensor) else batch
            encoded[name] = encoder.encode(batch).to(self.device)
        annotations = list(annotations_of(prompts).values())
        steered: dict[str, Tensor] = {}
        for name in outputs:
            control = self.preset.modalities[name].control
            if annotations and control is not None:
                settings = cast(ControlNetConfig, self.preset.components[control])
                united = annotations[0].united(*annotations[1:])
                image = render(united, self.preset.transform.size, filled=settings.filled_boxes)
                codec: Any = self.component(self.preset.codec(name))
                steered[name] = codec.encode(torch.tensor(image)[None, None].to(self.device, self.dtype))
        return _Conditions(encoded, steered)

    def _fuse(self, output: str, encoded: Mapping[str, Encoded]) -> Context:
        generator: Any = self.component(self.preset.generator(output))
        return generator.fuse(encoded) if encoded else generator.null(1)

    def _start(self, kept: Mapping[str, Prompt]) -> dict[str, Tensor]:
        """The latents (1, ...) of what outputs are to keep, each encoded by itself."""
        starts: dict[str, Tensor] = {}
        for name, prompt in kept.items():
            codec: Any = self.component(self.preset.codec(name))
            batch = get_modality(name).collate([prompt.value])
            starts[name] = codec.encode(batch.to(self.device, self.dtype) if isinstance(batch, Tensor) else batch)
        return starts

    @property
    def aligned(self) -> bool:
        """Whether the checkpoint has what sampling several outputs jointly takes."""
        return self.preset.alignment in store.read_index(self.root).components

    def _environment(self) -> Alignment:
        """The checkpoint's alignment, which a request for joint outputs needs."""
        name = self.preset.alignment
        if name is None or not self.aligned:
            raise CheckpointError(
                f"{self.name}: has no trained alignment, so outputs cannot be sampled jointly: use joint=False "
                "(--independent), or train one with `xgem train joint`"
            )
        return cast("Alignment", self.component(name))

    def _control(self, output: str, steered: Sequence[Tensor | None], request: Request) -> Control | None:
        """What steers the rows of a batch; rows without annotation are not steered."""
        blank = next((latents for latents in steered if latents is not None), None)
        if blank is None:
            return None
        name = str(self.preset.modalities[output].control)
        if name not in store.read_index(self.root).components:
            raise CheckpointError(
                f"{self.name}: has no trained control, so annotations cannot steer: leave them out, or train it with "
                "`xgem train control`"
            )
        net = cast("ControlNet", self.component(name))
        scale = torch.tensor([0.0 if latents is None else request.control_scale for latents in steered])
        annotation = torch.cat([torch.zeros_like(blank) if latents is None else latents for latents in steered])
        return Control(net, annotation, scale.to(self.device, self.dtype), request.control_end)

    def _accepted(
        self, gate: PrivacyGate, rows: Sequence[_Row], draw: Callable[[Sequence[_Row]], Iterator[tuple[_Row, _Made]]]
    ) -> Iterator[tuple[_Row, _Made]]:
        """What the gate lets through; a sample that it refuses is drawn again from its next seed."""
        for attempt in range(1, gate.tries + 1):
            refused: list[_Row] = []
            for row, sample in draw(rows):
                verdicts = {name: gate.check(self, name, sample[name][0]) for name in sample if name in gate.indexes}
                if any(verdict.refused for verdict in verdicts.values()):
                    # Derived, not the next number: that may be asked for as well, and be the same image twice.
                    seed = derived_seed(row.seed, "+".join(sample), row.number, "redraw")
                    refused.append(row._replace(seed=seed))
                    logger.info("privacy gate: try %d of sample %d refused (%s)", attempt, row.number, verdicts)
                    continue
                for name, (_, own) in sample.items() if verdicts else ():
                    said = gate.describe(name, verdicts[name]) if name in verdicts else {}
                    own |= {"seed": row.seed, "privacy_gate": {"tries": attempt, **said}}
                yield row, sample
            if not refused:
                return
            rows = refused
        raise PrivacyError(
            f"privacy gate: {len(rows)} samples came too close to a training image in each of {gate.tries} tries; "
            "ask for something else, or lower the thresholds (--privacy-threshold)"
        )

    def _sample_all(
        self,
        group: Sequence[str],
        rows: Sequence[_Row],
        conditions: Sequence[_Conditions],
        starts: Sequence[Mapping[str, Tensor]],
        request: Request,
        progress: bool,
        callback: StepCallback | None,
    ) -> Iterator[tuple[_Row, _Made]]:
        """Every sample of outputs that step together, batch by batch."""
        contexts = {name: [self._fuse(name, item.encoded) for item in conditions] for name in group}
        chunks = [rows[start : start + request.batch_size] for start in range(0, len(rows), request.batch_size)]
        steps = len(chunks) * len(group) * request.num_inference_steps
        with StepBar("+".join(group), steps, shown=progress) as bar:
            for chunk in chunks:
                own_contexts = {name: [contexts[name][row.item] for row in chunk] for name in group}
                parts = {
                    name: _Chunk(
                        own_contexts[name],
                        max(context.tokens.shape[1] for context in own_contexts[name]),
                        [starts[row.item][name] for row in chunk] if name in starts[0] else None,
                        [conditions[row.item].steered.get(name) for row in chunk],
                    )
                    for name in group
                }
                together = {
                    name: {"guidance_scale": request.guidance_scale[name], "context_tokens": parts[name].width}
                    for name in group
                }
                keys = [(row.seed, row.number) for row in chunk]
                made = self._sample(parts, keys, request, bar, callback)
                for position, row in enumerate(chunk):
                    sample: _Made = {}
                    for name in group:
                        own = {
                            "output": name,
                            "sample": row.number,
                            "guidance_scale": request.guidance_scale[name],
                            "together": together,
                            "batch": {"size": len(chunk), "position": position},
                        }
                        sample[name] = (made[name][position], own)
                    yield row, sample

    def _sample(
        self,
        chunk: Mapping[str, _Chunk],
        keys: Sequence[tuple[int, int]],
        request: Request,
        bar: StepBar,
        callback: StepCallback | None,
    ) -> dict[str, list[Any]]:
        """Samples, by output, for one batch of contexts (each of batch 1), one key (seed, index) each."""

        def noise(output: str, purpose: str) -> Tensor:
            shape = model_of(output).latent_shape
            rows = [sample_noise(seed, output, index, shape, purpose) for seed, index in keys]
            return torch.stack(rows).to(self.device, self.dtype)

        def model_of(output: str) -> Any:
            return self.component(self.preset.generator(output))

        def on_step(output: str, step: int, timestep: int, latents: Tensor) -> None:
            bar.advance()
            if callback is not None:
                callback(self, step, timestep, {"latents": latents, "output": output})

        outputs = {
            name: Output(
                model_of(name),
                stack(part.contexts, part.width),
                noise(name, "noise"),
                request.guidance_scale[name],
                lambda step, name=name: noise(name, f"noise of step {step}"),
                None if part.starts is None else torch.cat(list(part.starts)),
                self._control(name, part.steered, request),
            )
            for name, part in chunk.items()
        }
        # What is attached while it samples is new at every step, and would be compiled at every step.
        eager = self.compiled and (len(chunk) > 1 or any(output.control for output in outputs.values()))
        try:
            with self._sampling, torch.compiler.set_stance("force_eager") if eager else nullcontext():
                latents = sample_together(
                    outputs,
                    num_inference_steps=request.num_inference_steps,
                    sampler=request.sampler,
                    environment=self._environment() if len(chunk) > 1 else None,
                    first_step=request.first_step,
                    callback=on_step,
                )
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = str(error).strip().splitlines()[0]
                raise DeviceError(f"the transformer cannot be compiled here, leave compile out: {reason}") from error
            raise
        return {name: self._decode(name, z, keys, request) for name, z in latents.items()}

    def _decode(self, output: str, latents: Tensor, keys: Sequence[tuple[int, int]], request: Request) -> list[Any]:
        modality = get_modality(output)
        codec: Any = self.component(self.preset.codec(output))
        if request.greedy:
            return modality.to_output(codec.decode(latents, greedy=True), request.output_type)
        outs: list[Any] = []
        for row, (seed, index) in zip(latents, keys, strict=True):
            # One at a time: a generator shared by a batch would make each row depend on the others.
            source = torch.Generator().manual_seed(derived_seed(seed, output, index, "decode"))
            outs += modality.to_output(codec.decode(row[None], greedy=False, generator=source), request.output_type)
        return outs

    def _metadata(
        self, request: Request, item: int, prompts: Mapping[str, Prompt], kept: Mapping[str, Prompt]
    ) -> dict[str, Any]:
        return {
            "synthetic": True,
            "xgem": __version__,
            "checkpoint": {"name": self.name, "hash": self.hash},
            "preset": self.preset.name,
            "inputs": {name: _describe(prompt) for name, prompt in prompts.items()},
            "outputs": list(request.outputs),
            "joint": request.joint,
            "keep": {name: _describe(prompt) for name, prompt in kept.items()},
            "strength": request.strength if kept else None,
            "control_scale": request.control_scale,
            "control_end": request.control_end,
            "seed": request.seeds[item],
            "num_samples": request.num_samples,
            "sampler": request.sampler,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": dict(request.guidance_scale),
            "greedy": request.greedy,
            "torch": torch.__version__,
            "device": str(self.device),
            "dtype": dtype_name(self.dtype),
            "compiled": self.compiled,
            "threads": torch.get_num_threads(),
        }


def annotations_of(prompts: Mapping[str, Prompt]) -> dict[str, Annotation]:
    """The prompts that steer, by modality."""
    drawn = {name: get_modality(name).annotation(prompt.value) for name, prompt in prompts.items()}
    return {name: annotation for name, annotation in drawn.items() if annotation is not None}


def _describe(prompt: Prompt) -> dict[str, Any]:
    described: dict[str, Any] = {"sha256": prompt.sha256, "origin": prompt.origin, "notes": list(prompt.notes)}
    if prompt.text is not None:
        described["text"] = prompt.text
    if isinstance(prompt.value, Annotation):
        described["sha256_on_grid"] = prompt.value.sha256  # of what is written beside the images
    if any("truncated" in note for note in prompt.notes):
        described["truncated"] = True
    return described


def _read_preset(root: Path) -> Preset:
    try:
        return Preset.parse(dict(store.read_index(root).preset), str(root / store.INDEX_NAME))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
