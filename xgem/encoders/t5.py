"""ChexGen's report encoder: T5's encoder half, pretrained and frozen."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from xgem.checkpoints.pretrained import load_pretrained, load_tokenizer
from xgem.configs.components import T5EncoderConfig
from xgem.encoders.base import PromptEncoder
from xgem.types import ConfigError, DeviceError, Encoded, InputError

_ARCHITECTURE = "t5_architecture.json"


class T5Encoder(PromptEncoder):
    """b texts to T5's hidden states (b, n, c), n at most ``config.max_length``.

    T5 has no pooled output: ``pooled`` (b, c) is the mean of the unmasked states, scaled to unit length. Diffusion
    transformers do not use it.
    """

    kind = "t5_encoder"
    t5: Any

    def __init__(self, config: T5EncoderConfig, tokenizer: Any, t5: T5EncoderModel | None = None) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.t5 = t5 or T5EncoderModel(_t5_config(config, tokenizer))
        if config.quantize == "4bit":
            _quantize_on_cuda(self.t5)

    @classmethod
    def from_config(cls, config: T5EncoderConfig, assets: Path | None = None, tokenizer: Any = None) -> Self:
        """Raises CheckpointError where ``config.pretrained`` cannot be loaded, ConfigError without a tokenizer."""
        if assets is not None:
            tokenizer = AutoTokenizer.from_pretrained(str(assets / "tokenizer"), local_files_only=True)
            architecture = json.loads((assets / _ARCHITECTURE).read_text(encoding="utf-8"))
            return cls(config, tokenizer, T5EncoderModel(T5Config.from_dict(architecture)))
        if config.pretrained is not None:
            t5, tokenizer = load_pretrained(T5EncoderModel, config.pretrained), load_tokenizer(config.pretrained)
            source = t5.config
            sizes = {
                "width": source.d_model,
                "layers": source.num_layers,
                "heads": source.num_heads,
                "d_ff": source.d_ff,
                "vocab_size": source.vocab_size,
            }
            return cls(config.model_copy(update=sizes), tokenizer, t5)
        if tokenizer is None:
            raise ConfigError("T5 encoder: expected a tokenizer, got none: set pretrained to a T5 that brings its own")
        return cls(config, tokenizer)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As ``nn.Module.to``, except that ``config.on_cpu`` keeps the encoder on its device."""
        if not self.config.on_cpu:
            return super().to(*args, **kwargs)
        dtype = kwargs.get("dtype", next((value for value in args if isinstance(value, torch.dtype)), None))
        return self if dtype is None else super().to(dtype)

    def save_assets(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(str(directory / "tokenizer"))
        values = {key: value for key, value in self.t5.config.to_dict().items() if key != "_name_or_path"}
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (directory / _ARCHITECTURE).write_text(text, encoding="utf-8")

    def _cased(self, text: str) -> str:
        return text.lower() if self.config.lowercase else text

    def notes(self, value: str, limit: int | None = None) -> tuple[str, ...]:
        """A note if the text will be truncated, to the encoder's maximum length or to ``limit`` tokens."""
        return self._cut(len(self.tokenizer(self._cased(value))["input_ids"]), limit)

    def unfamiliar(self, value: str) -> tuple[str, ...]:
        return self._unfamiliar(self._cased(value), self.tokenizer)

    def encode(self, batch: list[str]) -> Encoded:
        """Padded to the longest text, at most ``max_length`` tokens; truncation keeps ``</s>``."""
        if any(not text.strip() for text in batch):
            raise InputError("report: expected text, got an empty one: leave the report out instead")
        texts = [self._cased(text) for text in batch]
        ids = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.config.max_length, return_tensors="pt"
        ).to(self.t5.device)
        tokens = self.t5(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]
        ).last_hidden_state  # (b, n, c)
        mask = ids["attention_mask"].bool()  # (b, n)
        pooled = tokens.masked_fill(~mask[..., None], 0).sum(dim=1)  # (b, c); normalised next, so the sum does
        return Encoded(F.normalize(pooled, dim=-1), tokens, mask)

    forward = encode


def _t5_config(config: T5EncoderConfig, tokenizer: Any) -> T5Config:
    """T5 v1.1's architecture."""
    return T5Config(
        vocab_size=config.vocab_size,
        d_model=config.width,
        d_kv=config.width // config.heads,
        d_ff=config.d_ff,
        num_layers=config.layers,
        num_heads=config.heads,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _quantize_on_cuda(t5: nn.Module) -> None:
    """Replace the linear layers of ``t5`` by bitsandbytes', which quantise their weights when moved to the device."""
    if not torch.cuda.is_available():
        raise DeviceError("T5 encoder: quantize 4bit needs a CUDA device, there is none: set quantize to none")
    try:
        layers: Any = importlib.import_module("bitsandbytes").nn
    except ImportError:
        raise ConfigError("T5 encoder: quantize 4bit needs bitsandbytes: pip install bitsandbytes") from None
    for parent in list(t5.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                layer = layers.Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None, quant_type="nf4"
                )
                layer.load_state_dict(child.state_dict())
                setattr(parent, name, layer)
