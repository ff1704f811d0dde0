"""The sampling loop: samples in batches, decoded, and resampled where the privacy gate refuses them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from xgem.checkpoints import store
from xgem.data.sections import section_of
from xgem.encoders.fusion import stack
from xgem.generators.sampling import Output, sample_together
from xgem.modalities import get_modality
from xgem.pipeline.candidates import best_of
from xgem.pipeline.conditioning import Conditions, annotations_of, control_of, fuse
from xgem.pipeline.editing import Edit, latent_area, put_back
from xgem.pipeline.model import Row, Sample
from xgem.pipeline.options import LARGE_GUIDANCE_SCALE, CallOptions
from xgem.types import CheckpointError, Context, DeviceError, PrivacyError, Prompt, SamplingError
from xgem.utils.progress import StepBar
from xgem.utils.random import derived_seed, sample_noise

if TYPE_CHECKING:
    from xgem.alignment.model import Alignment, TransformerAlignment
    from xgem.pipeline.model import LoadedModel, SamplingModel
    from xgem.pipeline.privacy_gate import PrivacyGate
    from xgem.pipeline.request import Request

logger = logging.getLogger(__name__)


class BatchInputs(NamedTuple):
    """What one output needs for a batch of b rows.

    ``contexts``: b contexts of batch 1, padded to ``width`` tokens. ``starts``: latents (1, ...) to start from by row.
    ``annotations``: latents (1, c, h, w) of annotations by row, None for a row without. ``edits``: what of the images
    may change, by row; none where all of them may.
    """

    contexts: Sequence[Context]
    width: int
    starts: Sequence[Tensor] | None
    annotations: Sequence[Tensor | None]
    edits: Sequence[Edit] = ()


def batch_inputs(
    output: str, contexts: Sequence[Context], conditions: Sequence[Conditions], *, width: int = 0
) -> BatchInputs:
    """Of one output for a batch: a context and an item's conditions by row; ``width`` is the least to pad to."""
    return BatchInputs(
        contexts,
        max(width, *(context.tokens.shape[1] for context in contexts)),
        [item.images[output] for item in conditions] if output in conditions[0].images else None,
        [item.annotations.get(output) for item in conditions],
        [item.edits[output] for item in conditions if output in item.edits],
    )


@dataclass(frozen=True)
class Sampler:
    """Draws the samples of one request with one model."""

    model: SamplingModel
    request: Request

    def rows(self) -> list[Row]:
        """Every sample of the request, of any one output."""
        numbers = range(self.request.options.num_samples)
        return [Row(item, number, seed) for item, seed in enumerate(self.request.seeds) for number in numbers]

    def sample_best(
        self, group: Sequence[str], rows: Sequence[Row], conditions: Sequence[Conditions]
    ) -> Iterator[tuple[Row, Sample]]:
        """As :meth:`sample_all`, the best of ``num_candidates`` for each row."""
        options = self.request.options
        if options.num_candidates == 1:
            return self.sample_all(group, rows, conditions)
        return best_of(
            self.model,
            group,
            rows,
            conditions,
            lambda drawn: self.sample_all(group, drawn, conditions),
            count=options.num_candidates,
            batch_size=options.batch_size,
        )

    def sample_all(
        self, group: Sequence[str], rows: Sequence[Row], conditions: Sequence[Conditions]
    ) -> Iterator[tuple[Row, Sample]]:
        """The samples ``rows`` of outputs that step together, batch by batch."""
        request, size = self.request, self.request.options.batch_size
        contexts = {name: [fuse(self.model, name, item.encoded) for item in conditions] for name in group}
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        steps = len(batches) * len(group) * request.steps
        with StepBar("+".join(group), steps, shown=request.options.progress) as bar:
            for batch in batches:
                items = [conditions[row.item] for row in batch]
                parts = {name: batch_inputs(name, [contexts[name][row.item] for row in batch], items) for name in group}
                values = self.sample(parts, batch, bar)
                together = {
                    name: {"guidance_scale": request.guidance_scale[name], "context_tokens": parts[name].width}
                    for name in group
                }
                for position, row in enumerate(batch):
                    sample: Sample = {}
                    for name in group:
                        described = {
                            "output": name,
                            "sample": row.number,
                            "guidance_scale": request.guidance_scale[name],
                            "together": together,
                            "batch": {"size": len(batch), "position": position},
                        }
                        sample[name] = (values[name][position], described)
                    yield row, sample

    def sample(self, parts: Mapping[str, BatchInputs], rows: Sequence[Row], bar: StepBar) -> dict[str, list[Any]]:
        """One batch: b samples by output, one for each of ``rows``.

        Raises:
            CheckpointError: joint outputs without a trained alignment. DeviceError: the model cannot be compiled here.
            SamplingError: latents or images are not finite.
        """
        model, request = self.model, self.request
        callback = request.options.callback_on_step_end

        def on_step(output: str, step: int, timestep: int, latents: Tensor, estimate: Tensor) -> None:
            bar.advance()
            if callback is not None:
                values = {"latents": latents, "estimate": estimate, "output": output, "rows": tuple(rows)}
                callback(model, step, timestep, values)

        outputs = {name: self._output(name, part, rows) for name, part in parts.items()}
        # What is attached to a generator while it samples is new at every step, and would be compiled at every step.
        eager = model.compiled and (len(parts) > 1 or any(output.control for output in outputs.values()))
        try:
            with model.sampling_lock, torch.compiler.set_stance("force_eager") if eager else nullcontext():
                latents = sample_together(
                    outputs,
                    num_inference_steps=request.steps,
                    sampler=cast(str, request.options.sampler),
                    environment=alignment_of(model) if len(parts) > 1 else None,
                    first_step=request.first_step,
                    callback=on_step,
                )
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = str(error).strip().splitlines()[0]
                raise DeviceError(f"the transformer cannot be compiled here, leave compile out: {reason}") from error
            raise
        for name, z in latents.items():
            self._check_finite(name, z, "sampled latents")
        return {name: self._decode(name, z, rows, parts[name].edits) for name, z in latents.items()}

    def _check_finite(self, output: str, values: Any, what: str) -> None:
        """SamplingError, with the likely cause, unless all ``values`` (b, ...) of an output are finite."""
        if not isinstance(values, Tensor) or bool(torch.isfinite(values).all()):
            return
        bad = int((~torch.isfinite(values)).flatten(1).any(dim=1).sum())
        scale = self.request.guidance_scale[output]
        if scale > LARGE_GUIDANCE_SCALE:
            cause = f"guidance_scale {scale:g} is probably too large: try {LARGE_GUIDANCE_SCALE} or less"
        elif self.model.dtype is torch.float16:
            cause = "numbers probably overflow in float16: use bfloat16 or float32"
        else:
            cause = f"the weights of {self.model.preset.generator(output)!r} or of a part it reads are probably damaged"
            cause += ": fetch the checkpoint again, or go back to an earlier one"
        raise SamplingError(f"{output}: the {what} of {bad} of {len(values)} samples are not finite (NaN); {cause}")

    def _output(self, name: str, part: BatchInputs, rows: Sequence[Row]) -> Output:
        """One output's generator with its context, noise (b, *latent_shape), images to start from and ControlNet."""
        model, options = self.model, self.request.options
        generator = model.component(model.preset.generator(name))

        def noise(purpose: str) -> Tensor:
            drawn = [sample_noise(row.seed, name, row.number, generator.latent_shape, purpose) for row in rows]
            return torch.stack(drawn).to(model.device, model.dtype)

        return Output(
            generator,
            stack(part.contexts, part.width),  # tokens (b, width, d)
            noise("noise"),
            self.request.guidance_scale[name],
            lambda step: noise(f"noise of step {step}"),
            None if part.starts is None else torch.cat(list(part.starts)),
            control_of(
                model, name, part.annotations, options.controlnet_conditioning_scale, options.control_guidance_end
            ),
            cast(float, options.guidance_start),
            cast(float, options.guidance_end),
            cast(float, options.guidance_rescale),
            latent_area(part.edits, generator.latent_shape).to(model.device) if part.edits else None,
        )

    def _decode(self, output: str, latents: Tensor, rows: Sequence[Row], edits: Sequence[Edit]) -> list[Any]:
        """Latents (b, ...) as users get them; reports that are not greedy by a generator of each row's own.

        Images of which a part was edited keep their pixels in the rest.
        """
        model, options, modality = self.model, self.request.options, get_modality(output)
        if options.output_type == "latent":
            return list(latents.float().cpu().unbind())
        codec = model.component(model.preset.codec(output))
        if options.greedy:
            decoded = codec.decode(latents, greedy=True)
            self._check_finite(output, decoded, "decoded images")
            decoded = put_back(decoded, edits) if edits else decoded
            return self._shown(modality.to_output(decoded, options.output_type))
        values: list[Any] = []
        for z, row in zip(latents, rows, strict=True):
            # One at a time: a generator shared by a batch would make each row depend on the others.
            source = torch.Generator().manual_seed(derived_seed(row.seed, output, row.number, "decode"))
            decoded = codec.decode(z[None], greedy=False, generator=source)
            decoded = put_back(decoded, edits[len(values) : len(values) + 1]) if edits else decoded
            values += modality.to_output(decoded, options.output_type)
        return self._shown(values)

    def _shown(self, values: list[Any]) -> list[Any]:
        """Reports with the requested section alone, where the preset writes both; images as they are."""
        section = self.request.options.report_section
        if section is None or len(self.model.preset.report_sections) == 1:
            return values
        return [section_of(value, section) if isinstance(value, str) else value for value in values]


def alignment_of(model: SamplingModel) -> Alignment | TransformerAlignment:
    """The checkpoint's alignment, which joint outputs need.

    Raises:
        CheckpointError: there is no trained one.
    """
    name = model.preset.alignment
    if name is None or not has_alignment(model):
        raise CheckpointError(
            f"{model.name}: has no trained alignment, so outputs cannot be sampled jointly: use joint=False "
            "(--independent), or train one with `xgem train joint`"
        )
    return model.component(name)


def has_alignment(model: LoadedModel) -> bool:
    """Whether the checkpoint has what sampling several outputs jointly takes."""
    return model.preset.alignment in store.read_index(model.root).components


def accepted(
    model: SamplingModel,
    gate: PrivacyGate,
    rows: Sequence[Row],
    draw: Callable[[Sequence[Row]], Iterator[tuple[Row, Sample]]],
) -> Iterator[tuple[Row, Sample]]:
    """The samples that the gate accepts; a refused one is drawn again from a seed derived from its own.

    Raises:
        PrivacyError: a sample was refused in every try.
    """
    for attempt in range(1, gate.tries + 1):
        refused: list[Row] = []
        for row, sample in draw(rows):
            verdicts = {name: gate.check(model, name, sample[name][0]) for name in sample if name in gate.indexes}
            if any(verdict.refused for verdict in verdicts.values()):
                # Derived, not the next number: that may be requested as well, and be the same image twice.
                seed = derived_seed(row.seed, "+".join(sample), row.number, "redraw")
                refused.append(row._replace(seed=seed))
                logger.info("privacy gate: try %d of sample %d refused (%s)", attempt, row.number, verdicts)
                continue
            for name, (_, described) in sample.items() if verdicts else ():
                verdict = gate.describe(name, verdicts[name]) if name in verdicts else {}
                described |= {"seed": row.seed, "privacy_gate": {"tries": attempt, **verdict}}
            yield row, sample
        if not refused:
            return
        rows = refused
    raise PrivacyError(
        f"privacy gate: {len(rows)} samples were too close to a training image in each of {gate.tries} tries; "
        "change the request, or lower the thresholds (--privacy-threshold)"
    )


def warn_of_unused(options: CallOptions, prompts: Sequence[Mapping[str, Prompt]]) -> None:
    """Say which options change nothing in this request."""
    steered = (options.controlnet_conditioning_scale, options.control_guidance_end) != (1, 1)
    if steered and not any(map(annotations_of, prompts)):
        logger.warning("controlnet_conditioning_scale and control_guidance_end have no effect: no annotation was given")
