"""How a peer is trained, and the settings of CheXGenBench (Dutt et al. 2025)."""

from __future__ import annotations

import math
from typing import Final, Literal, get_args

from pydantic import Field

from xgem.configs.base import Section
from xgem.configs.preset import StageConfig
from xgem.types import ConfigError, InputError

Kind = Literal["lora", "full"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class PeerTraining(StageConfig):
    """Settings of both kinds.

    Attributes:
        resolution: of the images, in pixels; None: the pipeline's own.
        sections: of a report that make its prompt; a study without them has a caption of its labels.
        null_probability: of a prompt that is left empty, for classifier-free guidance (Ho & Salimans 2022).
        guidance: what Flux's guidance embedding is told.
        logit_mean, logit_std: of the density of times in flow matching (Esser et al. 2024).
    """

    resolution: int | None = Field(default=None, ge=16)
    sections: tuple[Section, ...] = Field(default=("impression",), min_length=1)
    null_probability: float = Field(default=0.1, ge=0, le=1)
    guidance: float = Field(default=1.0, ge=0)
    logit_mean: float = 0.0
    logit_std: float = Field(default=1.0, gt=0)


class LoraTraining(PeerTraining):
    """A LoRA (Hu et al. 2022): rank, alpha (None: the rank), and the layers that get one, by the ends of their names.

    By default those of query, key and value, of images and of texts.
    """

    rank: int = Field(default=32, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"), min_length=1
    )


BENCHMARK: Final[dict[str, tuple[Kind, float]]] = {
    "StableDiffusionPipeline": ("full", 5e-6),
    "PixArtSigmaPipeline": ("full", 2e-5),
    "SanaPipeline": ("full", 1e-4),
    "StableDiffusion3Pipeline": ("lora", 1e-4),
    "Lumina2Pipeline": ("lora", 1e-4),
    "FluxPipeline": ("lora", 1e-4),
}
"""What CheXGenBench trains by pipeline, and its learning rate (appendix, table of hyperparameters)."""
BENCHMARK_EPOCHS: Final = 20
BENCHMARK_BATCH: Final = 128
SETTINGS: Final = ("default", "chexgenbench", "debug")


def settings_of(kind: Kind, name: str, pipeline: str, studies: int) -> PeerTraining:
    """The settings called ``name`` for a pipeline's class and a training split of so many ``studies``.

    ``chexgenbench``: 20 epochs in batches of 128, rank 32 on query, key and value. The paper leaves the optimizer to
    each model's official recipe: AdamW with a constant rate and a weight decay of 0.01 here, without averaged weights.

    Raises:
        InputError: unknown settings. ConfigError: the benchmark trains the pipeline otherwise, or not at all.
    """
    make = LoraTraining if kind == "lora" else PeerTraining
    if name == "default":
        rate = 1e-4 if kind == "lora" else 1e-5
        return make(steps=2000, batch_size=16, learning_rate=rate, weight_decay=1e-2)
    if name == "debug":
        return make(
            steps=20, batch_size=2, learning_rate=1e-3, warmup_steps=1, ema_decay=0, validate_every=10,
            checkpoint_every=10,
        )  # fmt: skip
    if name != "chexgenbench":
        raise InputError(f"--settings {name}: expected one of {', '.join(SETTINGS)}")
    if pipeline not in BENCHMARK:
        raise ConfigError(f"settings chexgenbench: the benchmark trains no {pipeline}, only {', '.join(BENCHMARK)}")
    published, rate = BENCHMARK[pipeline]
    if kind != published:
        raise ConfigError(f"settings chexgenbench: the benchmark trains a {pipeline} by `{published}`, not `{kind}`")
    return make(
        steps=max(1, math.ceil(BENCHMARK_EPOCHS * studies / BENCHMARK_BATCH)),
        batch_size=BENCHMARK_BATCH,
        learning_rate=rate,
        weight_decay=1e-2,
        warmup_steps=0,
        final_lr_fraction=1.0,
        ema_decay=0,
    )
