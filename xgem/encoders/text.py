"""The report encoder: a transformer whose attention mask hides padding (XGeM 3.2.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer

from xgem.configs.components import TextEncoderConfig
from xgem.encoders.base import PromptEncoder
from xgem.encoders.pretrained import Towers, load_towers, open_clip_part, saved_architecture
from xgem.types import ConfigError, Encoded, InputError


class TextEncoder(PromptEncoder):
    """An open_clip text transformer: b texts to a unit vector (b, d) and token states (b, n, c).

    Attention is causal, as in CLIP, so that no token attends to padding; the vector is the state at ``</s>``.
    """

    kind = "text_encoder"
    text: Any
    _towers: Any

    def __init__(self, config: TextEncoderConfig, tokenizer: Any, text: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.text = text or open_clip_part("transformer").TextTransformer(
            context_length=config.max_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=config.embed_dim,
            pad_id=tokenizer.pad_token_id,
            eos_id=tokenizer.eos_token_id,
            pool_type="eos",
            output_tokens=True,
        )

    @classmethod
    def from_config(cls, config: TextEncoderConfig, assets: Path | None = None, tokenizer: Any = None) -> Self:
        if config.pretrained is not None:
            towers = load_towers(config.pretrained) if assets is None else saved_architecture(assets)
            return cls.of_towers(config, towers)
        if assets is not None:
            tokenizer = AutoTokenizer.from_pretrained(str(assets / "tokenizer"), local_files_only=True)
        if tokenizer is None:
            raise ConfigError("text encoder: expected a tokenizer, got none: train one on the training reports first")
        return cls(config, tokenizer)

    @classmethod
    def of_towers(cls, config: TextEncoderConfig, towers: Towers) -> Self:
        """An encoder around the text tower of ``towers``."""
        text = towers.text
        text.output_tokens = True
        config = config.model_copy(update={"max_length": towers.context_length, "embed_dim": towers.embed_dim})
        module = cls(config, towers.tokenizer, text)
        module._towers = towers.described()
        return module

    def save_assets(self, directory: Path) -> None:
        if self.config.pretrained is not None:
            self._towers.save_architecture(directory)
        else:
            self.tokenizer.save_pretrained(str(directory / "tokenizer"))

    def notes(self, value: str, limit: int | None = None) -> tuple[str, ...]:
        """A note if the text will be truncated, to the encoder's maximum length or to ``limit`` tokens."""
        if self.config.pretrained is not None:
            return ()  # open_clip's tokenizers truncate without reporting the original length
        return self._cut(len(self.tokenizer(value)["input_ids"]), limit)

    def unfamiliar(self, value: str) -> tuple[str, ...]:
        return () if self.config.pretrained is not None else self._unfamiliar(value, self.tokenizer)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (b, n), padded to the longest text, at most ``max_length``; truncation keeps ``</s>``."""
        if any(not text.strip() for text in texts):
            raise InputError("report: expected text, got an empty one: leave the report out instead")
        if self.config.pretrained is not None:
            return self.tokenizer(texts)
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.config.max_length, return_tensors="pt"
        )
        return batch["input_ids"]

    def encode(self, batch: list[str]) -> Encoded:
        return self.encode_ids(self.tokenize(batch).to(next(self.parameters()).device))

    def encode_ids(self, ids: Tensor) -> Encoded:
        """As ``encode``, from token ids (b, n)."""
        pooled, tokens = self.text(ids) if self.config.pretrained is not None else self._short(ids)  # (b, d), (b, n, c)
        eos = self.text.eos_id if self.config.pretrained is None else None
        # In CLIP's own vocabulary, the end of the text has the largest id
        ends = torch.eq(ids, eos).int().argmax(dim=1) if eos is not None else ids.argmax(dim=1)  # (b,)
        mask = torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]  # (b, n), True up to the end
        return Encoded(F.normalize(pooled, dim=-1), tokens, mask)

    def _short(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """open_clip's forward pass of ids (b, n), n below its context length, without padding: (b, d), (b, n, c)."""
        n, text = ids.shape[1], self.text
        x = text.token_embedding(ids) + text.positional_embedding[:n]  # (b, n, c)
        tokens = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:n, :n]))
        pool = open_clip_part("transformer").text_global_pool
        pooled = pool(tokens, ids, pool_type=text.pool_type, eos_token_id=text.eos_id)
        return pooled @ text.text_projection, tokens

    forward = encode_ids
