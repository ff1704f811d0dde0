"""Checkpoints with random weights, for tests, benchmarks and parameter counts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from xgem.checkpoints.component import Component, component_class
from xgem.checkpoints.store import init_checkpoint, save_component
from xgem.configs.components import ComponentConfig
from xgem.configs.preset import Preset

_SENTENCES = (
    "No acute cardiopulmonary abnormality.",
    "Large left pleural effusion. Cardiomegaly.",
    "Clear lungs bilaterally. Heart size is normal.",
)


def random_component(config: ComponentConfig, *, texts: Iterable[str] = _SENTENCES) -> Component:
    """A component with random weights; if it needs a tokenizer, one is trained on ``texts``.

    Zero-initialised weights get small random values: otherwise the layers before them would not affect the output.
    """
    build: Any = component_class(config.kind).from_config
    # Without their sources, pretrained weights are neither downloaded nor read.
    fresh = dict.fromkeys(name for name in type(config).model_fields if name.startswith("pretrained"))
    config = config.model_copy(update=fresh)
    options: dict[str, Any] = {}
    if "tokenizer" in inspect.signature(build).parameters:
        from xgem.encoders.tokenizer import train_tokenizer

        size = int(getattr(config, "vocab_size", 512))
        tokenizer = train_tokenizer(texts, size)
        # A few sentences give few merges: pad the vocabulary, so that embeddings are as large as after real training.
        tokenizer.add_tokens([f"<unused{number}>" for number in range(size - len(tokenizer))])
        options["tokenizer"] = tokenizer
    component: Component = build(config, **options)
    with torch.no_grad():
        for parameter in component.parameters():
            if not parameter.is_meta and not bool(parameter.any()):
                parameter.normal_(std=0.02)
    return component.eval()


def random_checkpoint(root: str | Path, preset: Preset, *, seed: int = 0, texts: Iterable[str] = _SENTENCES) -> None:
    """Write a complete checkpoint with random weights for ``preset`` to the folder ``root``.

    Raises:
        OutputError: the folder cannot be written.
    """
    texts = list(texts)
    init_checkpoint(root, preset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, config in preset.components.items():
            save_component(root, name, random_component(config, texts=texts))
