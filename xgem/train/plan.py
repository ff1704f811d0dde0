"""What training a preset takes, before anything is rented: memory, FLOPs, time and disk of every stage.

Memory and FLOPs are measured on the meta device (:mod:`xgem.train.footprint`). Speed is a share of a GPU's peak, which
the reader states; communication between GPUs, reading data and validation are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from xgem.configs.preset import Preset
from xgem.generators.checkpointing import recomputes
from xgem.modalities import get_modality
from xgem.train.footprint import Footprint, footprint
from xgem.train.passes import shares_of
from xgem.train.planned import Batch, Planned, planned, tokens_of
from xgem.train.sharding import layers
from xgem.train.stages import stages
from xgem.types import InputError

GIB = 2**30
HALF = 2  # bytes of a float16


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """GPUs, and how they are used. ``peak``: TFLOP/s of one; ``share`` of it that training reaches; ``memory``: GiB of
    one, of which ``reserved`` is CUDA's own (context and libraries' workspaces). ``gpus`` are those of all ``nodes``.

    Raises:
        InputError: a number that is not above 0, or GPUs that nodes cannot have evenly.
    """

    gpus: int
    memory: float
    peak: float = 989.0
    share: float = 0.4
    reserved: float = 1.0
    sharding: Literal["no", "full", "hybrid"] = "no"
    nodes: int = 1
    precision: str = "bf16"
    micro_batch_size: int | None = None
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        for name in ("gpus", "nodes", "memory", "peak", "share"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name} {getattr(self, name):g}: expected more than 0")
        if self.gpus % self.nodes:
            raise InputError(f"--gpus {self.gpus}: not divisible by --nodes {self.nodes}: give the GPUs of all nodes")
        if self.share > 1:
            raise InputError(f"--share {self.share:g}: expected at most 1, a share of the peak")
        if self.memory <= self.reserved:
            raise InputError(f"--memory {self.memory:g}: expected more than the {self.reserved:g} GiB that CUDA takes")

    @property
    def room(self) -> float:
        """Bytes of a GPU for training."""
        return (self.memory - self.reserved) * GIB

    @property
    def parts(self) -> int:
        """In how many parts weights are: over all GPUs, those of a node, or 1."""
        return {"no": 1, "full": self.gpus, "hybrid": self.gpus // self.nodes}[self.sharding]


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes. ``memory``: bytes of a GPU by what they hold, ``peak`` the most at once; FLOPs of a sample;
    ``disk``: bytes of encoded shards of a million studies by what they hold.

    ``greatest_micro_batch``: the most samples at once that fit, None where not even one does; ``least``: bytes that one
    at a time takes.
    """

    stage: str
    samples: int
    batch_size: int
    micro_batch_size: int
    memory: dict[str, int]
    flops: int
    recomputed: int
    samples_per_second: float
    hours: float
    disk: dict[str, int]
    fits: bool
    greatest_micro_batch: int | None
    least: int = field(default=0)

    @property
    def peak(self) -> int:
        return self.memory["peak"]


class Planner:
    """Plans the stages of a preset; stages of the same shapes are measured once.

    ``text_tokens``: mean number of tokens of a text, which disk depends on; memory and FLOPs are those of the longest.
    """

    def __init__(self, preset: Preset, hardware: Hardware, *, text_tokens: float = 60.0) -> None:
        self.preset, self.hardware, self.text_tokens = preset, hardware, text_tokens
        self._measured: dict[Any, Footprint] = {}

    def plans(self) -> Iterator[StagePlan]:
        """A plan for each stage that the preset trains, in their order."""
        for name in stages():
            if name in self.preset.train:
                yield self.plan(name)

    def plan(self, name: str) -> StagePlan:
        """The plan of one stage; ConfigError where its batch cannot be divided among the GPUs."""
        one, hardware = planned(name, self.preset), self.hardware
        if hardware.checkpoint_activations:
            one.stage.checkpoint_activations()
        config, gpus = one.stage.config, hardware.gpus
        used = shares_of(one.stage, 0, gpus, hardware.micro_batch_size)[0].size
        own = config.batch_size // gpus
        sizes = [n for n in range(1, own + 1) if own % n == 0]
        found = [self._measure(one, make, used) for _, make in one.batches]
        worst = max(range(len(found)), key=lambda number: found[number].peak)
        weights = [weight for weight, _ in one.batches]
        flops = sum(weight * each.flops / own for weight, each in zip(weights, found, strict=True))
        plain = sum(w * self._plain(one, make) for w, make in one.batches) if _recomputes(one, used, own) else flops
        rate = gpus * hardware.peak * 1e12 * hardware.share / flops
        samples = config.steps * config.batch_size

        def peak(size: int) -> int:
            return self._measure(one, one.batches[worst][1], size).peak

        greatest = _greatest(sizes, peak, hardware.room, used)
        memory = {name: value for name, value in vars(found[worst]).items() if name != "flops"}
        return StagePlan(
            name, samples, config.batch_size, used, memory, round(flops), round(flops - plain), rate,
            samples / rate / 3600, disk(name, self.preset, self.text_tokens),
            found[worst].peak <= hardware.room, greatest, peak(1) if greatest is None else 0,
        )  # fmt: skip

    def _measure(self, one: Planned, make: Batch, size: int) -> Footprint:
        hardware, stage = self.hardware, one.using(make)
        count, key = hardware.gpus, (_shapes(one, make), size)
        if key not in self._measured:
            found = footprint(
                stage, one.frozen, processes=count, most=size, precision=hardware.precision, parts=hardware.parts
            )
            self._measured[key] = found.with_gathered(round(gathered_bytes(stage.module) * (1 - 1 / hardware.parts)))
        return self._measured[key]

    def _plain(self, one: Planned, make: Batch) -> float:
        """FLOPs of a sample where nothing is computed twice."""
        again = _checkpoints(one)
        one.stage.checkpoint_activations(False)
        own = one.stage.config.batch_size // self.hardware.gpus
        found = footprint(
            one.using(make), one.frozen, processes=self.hardware.gpus, most=own, precision=self.hardware.precision
        )
        one.stage.checkpoint_activations(again)
        return found.flops / own


def _checkpoints(one: Planned) -> bool:
    return any(map(recomputes, [*one.frozen, one.stage.module]))


def _recomputes(one: Planned, used: int, own: int) -> bool:
    return (used < own and one.compares) or _checkpoints(one)


def _shapes(one: Planned, make: Batch) -> Any:
    """What a footprint depends on, beside the size of a batch."""
    batch = one.using(make).batch(shares_of(one.stage, 0, one.stage.config.batch_size, None)[0])
    parts = [type(one.stage), *(type(part) for part in one.stage.module.modules())]
    networks = [one.stage.module, *one.frozen]
    weights = [(tuple(p.shape), p.requires_grad) for network in networks for p in network.parameters()]
    drawn = [tuple(x.shape) if isinstance(x, Tensor) else str(x) for x in tree_leaves(batch)]
    return tuple(parts), tuple(weights), tuple(drawn), one.stage.config.batch_size


def _greatest(sizes: Sequence[int], peak: Callable[[int], int], room: float, used: int) -> int | None:
    """The greatest of ``sizes`` (increasing) whose peak is within ``room``; ``used`` has been measured."""
    low, high = (sizes.index(used), len(sizes)) if peak(used) <= room else (-1, sizes.index(used))
    while high - low > 1:  # sizes[low] fits, sizes[high] does not
        middle = (low + high) // 2
        low, high = (middle, high) if peak(sizes[middle]) <= room else (low, middle)
    return sizes[low] if low >= 0 else None


def gathered_bytes(module: nn.Module) -> int:
    """What ``fully_shard`` gathers at once: what is in no block, a block, and the next one."""
    every = sum(p.numel() * p.element_size() for p in module.parameters())
    blocks = [sum(p.numel() * p.element_size() for p in block.parameters()) for block in layers(module)]
    return every - sum(blocks) + 2 * max(blocks, default=0)


def disk(name: str, preset: Preset, text_tokens: float) -> dict[str, int]:
    """Bytes of what stage ``name`` reads of a million studies with every modality, one image a view.

    Images are bytes; latents and prompts float16, of a prompt's tokens those that exist: all of an image, of a text
    ``text_tokens`` in the mean.
    """
    read: dict[str, float] = {}
    pixels = preset.transform.size**2
    views = [one for one in preset.outputs if get_modality(one).is_image]
    if name in ("clip", "image-vae", "image-decoder"):
        read["images"] = pixels * len(views)
    prompts: Sequence[str] = ()
    targets: Sequence[str] = ()
    if name in preset.outputs:
        targets, prompts = [name], getattr(preset.components[preset.generator(name)], "prompts", ())
    elif name == "joint":
        targets = prompts = tuple(getattr(preset.components[str(preset.alignment)], "outputs", ()))
    elif name == "control":
        targets = [one for one in preset.outputs if preset.modalities[one].control is not None]
        prompts = getattr(preset.components[preset.generator(targets[0])], "prompts", ())
        read["annotations"] = HALF * _latent(targets[0], preset)
    for target in targets:
        read[f"latents of {target}"] = HALF * _latent(target, preset)
    for prompt in prompts:
        most, width, pooled = tokens_of(prompt, preset)
        count = most if get_modality(prompt).is_image else min(most, text_tokens)
        read[f"prompt {prompt}"] = HALF * (count * width + pooled)
    return {what: round(1e6 * size) for what, size in read.items()}


def _latent(target: str, preset: Preset) -> int:
    return math.prod(getattr(preset.components[preset.generator(target)], "latent_shape", ()))
