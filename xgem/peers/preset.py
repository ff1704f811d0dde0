"""What a peer takes and makes, as the rest of xgem reads it of a checkpoint."""

from __future__ import annotations

from typing import Any, Final

from xgem.configs.components import TransformConfig
from xgem.configs.preset import ModalityConfig, Preset, SamplingConfig
from xgem.peers.folder import PipelineFolder
from xgem.peers.record import PeerRecord

VIEW: Final = "frontal"
PROMPT: Final = "report"
COMPONENT: Final = "pipeline"
"""All of a peer is one component."""
_GUIDANCE: Final = 1.0


class PeerSampling(SamplingConfig):
    """A pipeline's own defaults; ``sampler`` is the class of its scheduler."""

    sampler: str = ""  # pyright: ignore[reportIncompatibleVariableOverride]


class PeerPreset(Preset):
    """Frontals from a report, by one component: a diffusers pipeline."""

    sampling: PeerSampling = PeerSampling()  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def outputs(self) -> tuple[str, ...]:
        return (VIEW,)

    def inputs(self, output: str) -> tuple[str, ...]:
        del output
        return (PROMPT,)

    def _part(self, name: str, kind: str) -> str:
        del name, kind
        return COMPONENT


def peer_preset(folder: PipelineFolder, record: PeerRecord | None) -> PeerPreset:
    """The preset of a pipeline; what training recorded decides on the resolution and the reports' sections."""
    defaults: dict[str, Any] = folder.defaults
    steps, scale = defaults["num_inference_steps"], defaults.get("guidance_scale")
    scheduler, _ = folder.scheduler
    preset = PeerPreset(
        name=folder.kind.__name__,
        transform=TransformConfig(size=record.resolution if record else folder.size),
        sampling=PeerSampling(
            num_inference_steps=int(steps),
            guidance_scale={VIEW: float(_GUIDANCE if scale is None else scale)},
            sampler=scheduler,
        ),
        components={},
        modalities={PROMPT: ModalityConfig(), VIEW: ModalityConfig()},
    )
    return preset.model_copy(update={"report_sections": record.sections}) if record else preset
