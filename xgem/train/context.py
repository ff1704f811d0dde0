"""What stages are built from: preset, data, the checkpoint folder with its trained components, the seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from pydantic import BaseModel
from torch import Tensor, nn

from xgem.checkpoints import store
from xgem.checkpoints.component import Component, component_class
from xgem.configs.codecs import ReportVAEConfig
from xgem.configs.components import TextEncoderConfig
from xgem.configs.preset import Preset, StageConfig
from xgem.data.cache import ArrayCache
from xgem.encoders.tokenizer import read_tokenizer, train_tokenizer
from xgem.modalities import get_modality
from xgem.train.corpus import Corpus
from xgem.train.encoded import EncodedStudies
from xgem.train.processes import Processes
from xgem.train.source import InMemory, Source
from xgem.train.stage import Stage
from xgem.types import CheckpointError, ConfigError
from xgem.utils.hashing import module_hash
from xgem.utils.random import mix

log = logging.getLogger(__name__)

_TOKENIZED = 50_000
"""Most studies whose texts a tokenizer is trained on."""


@dataclass(frozen=True)
class StageContext:
    """All that the stages of one run have in common.

    ``root`` is the checkpoint folder; ``init`` a checkpoint whose weights training starts from, None for random ones.
    ``encoded``: shards that generators read in place of ``train`` and ``val``, which are then empty. ``divided``: each
    process trains a part of every weight, and gets it from the first one.
    """

    preset: Preset
    train: Corpus
    val: Corpus
    root: Path
    seed: int
    init: Path | None = None
    encoded: EncodedStudies | None = None
    divided: bool = False

    def config(self, stage: str) -> StageConfig:
        """The settings of a stage; ConfigError where the preset does not train it."""
        if stage not in self.preset.train:
            raise ConfigError(f"preset {self.preset.name!r} has no training settings for stage {stage!r}")
        return self.preset.train[stage]

    @property
    def cache(self) -> ArrayCache:
        return ArrayCache(self.root / "cache")

    @property
    def device(self) -> torch.device:
        device = PartialState().device
        assert device is not None
        return device

    @property
    def view(self) -> str:
        """The preset's first image modality; others share its encoder and codec."""
        return first_output(self.preset, is_image=True)

    @property
    def text(self) -> str:
        """The preset's first text modality."""
        return first_output(self.preset, is_image=False)

    def source(self, split: str) -> Source:
        """What generators are trained on: shards where there are some, or ``train`` and ``val``, encoded."""
        if self.encoded is not None:
            return self.encoded.split(split)
        return InMemory(self.train if split == "train" else self.val, self.cache, self.device)

    def parts(self, names: Iterable[str], stage: str, encoders: Iterable[str] = ()) -> dict[str, Any]:
        """Frozen components of ``root`` by name, in alphabetical order; ``encoders`` only where there are no shards.

        Raises:
            CheckpointError: one has not been trained yet.
        """
        wanted = {*names, *(encoders if self.encoded is None else ())}
        return {name: self._part(name, stage) for name in sorted(wanted)}

    def _part(self, name: str, stage: str) -> Any:
        if is_pretrained(name, self.preset):
            save_pretrained(name, self.preset, self.root)
        try:
            loaded = store.load_component(self.root, name, device="cpu", dtype=torch.float32)
        except CheckpointError as error:
            raise CheckpointError(
                f"stage {stage!r} needs component {name!r}: train it first, or take it by --init "
                f"from a checkpoint that has it ({error})"
            ) from None
        return loaded.eval().requires_grad_(False)

    def build(self, component: str, make: Callable[[], Component] | None = None) -> Any:
        """A component with fresh weights, by ``make`` or its configuration, that a stage trains.

        Where weights are divided, it is on the meta device on all processes but the first.
        """
        config = self.preset.components[component]
        fresh: Any = component_class(config.kind).from_config
        if not self.divided or Processes.current().main:
            return make() if make else fresh(config)
        sources = dict.fromkeys(name for name in type(config).model_fields if name.startswith("pretrained"))
        with torch.device("meta"):
            return fresh(config.model_copy(update=sources))  # reads no pretrained weights

    def tokenizer(self, component: str) -> Any:
        """That of ``init``, or one from the training split's texts; None where a pretrained tower brings its own."""
        config = self.preset.components[component]
        reads = isinstance(config, TextEncoderConfig)
        if self.init is not None:
            source: Any = store.load_component(self.init, component)
            return source.tokenizer if reads else source.decoder_tokenizer
        assert isinstance(config, TextEncoderConfig | ReportVAEConfig)
        if (config.pretrained if isinstance(config, TextEncoderConfig) else config.pretrained_encoder) is not None:
            return None
        # Evenly spaced ones where there are more, as every distinct word is kept in memory
        spaced = range(0, len(self.train.studies), 1 + len(self.train.studies) // _TOKENIZED)
        texts = (text for index in spaced for text in self.train.texts(index))
        make = partial(train_tokenizer, texts, config.vocab_size, lowercase=reads)
        if self.train.kept is None:
            return make()
        key = {"texts": self.train.fingerprint(), "vocab_size": config.vocab_size, "lowercase": reads}
        found = self.train.kept[0].get_or_make("tokenizers", key, lambda: {"json": _bytes(make())})
        return read_tokenizer(found["json"].numpy().tobytes().decode())

    def seed_weights(self, stage: str) -> None:
        """Seed torch's generator with what fresh weights of a stage are drawn from."""
        torch.manual_seed(mix(self.seed, stage, "initialise"))


def _bytes(tokenizer: Any) -> Tensor:
    return torch.frombuffer(bytearray(tokenizer.backend_tokenizer.to_str().encode()), dtype=torch.uint8)


def first_output(preset: Preset, *, is_image: bool) -> str:
    """The preset's first image or text modality; ConfigError where it has none."""
    known = [get_modality(name) for name in preset.modalities]
    found = next((one.name for one in known if one.is_output and one.is_image == is_image), None)
    if found is None:
        raise ConfigError(f"preset {preset.name!r} has no {'image' if is_image else 'text'} modality")
    return found


def is_pretrained(component: str, preset: Preset) -> bool:
    """Whether a component is pretrained and frozen: T5, and a codec (XGeM 3.2.2: AutoKL) that no stage trains."""
    config = preset.components[component]
    frozen = config.kind == "t5_encoder" or (config.kind == "image_vae" and "image-vae" not in preset.train)
    return frozen and getattr(config, "pretrained", None) is not None


def save_pretrained(component: str, preset: Preset, root: Path) -> None:
    """Put a pretrained, frozen component into ``root``, where it lacks it."""
    processes = Processes.current()
    with processes.in_agreement():
        if processes.main and component not in store.read_index(root).components:
            log.info("%s: pretrained, taken as it is", component)
            config = preset.components[component]
            store.save_component(root, component, component_class(config.kind).from_config(config))


class DependentStage(Stage):
    """Trains one component on frozen ones of earlier stages, which are part of what the run is."""

    component: str
    model: Any
    hash: str

    def identify(self, settings: BaseModel, parts: Mapping[str, Any], context: StageContext) -> None:
        """Record what the run depends on: configurations and weights of all components, and the data."""
        self.settings = (settings, *(part.config for part in parts.values()))
        self.hash = context.source("train").fingerprint() + "".join(map(module_hash, parts.values()))

    @property
    def fresh(self) -> dict[str, nn.Module]:
        return {self.component: self.model}

    def fingerprint(self) -> str:
        return super().fingerprint() + self.hash
