"""The report codec: Optimus (Li et al. 2020), a BERT encoder and a GPT-2 decoder around one latent vector."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel, DynamicCache, GPT2Config, GPT2LMHeadModel

from xgem.checkpoints.component import Component
from xgem.checkpoints.pretrained import load_pretrained
from xgem.configs.codecs import ReportVAEConfig
from xgem.generators.report_sentences import from_sentences, to_sentences
from xgem.types import ConfigError, InputError, ShapeError

_KNOWN = "known_sentences.safetensors"
_CHUNK = 256  # sentences encoded at once
_NEARER = 0.65
_NEAR = 0.35  # standard deviations, root mean square over the latent
_REACH = 4.0  # standard deviations
_GREEDY: Final = {"greedy": True, "generator": None, "temperature": 1.0}

# Renamed between versions of transformers
_CACHE = "cache" if "cache" in inspect.signature(GPT2LMHeadModel.forward).parameters else "past_key_values"


class ReportVAE(Component):
    """Texts to latents (b, d) and back; of a whole report, or (``config.sentences``) of each of its n sentences.

    Encoder: BERT's pooled first token, then one bias-free linear layer to mean and log variance. Decoder: GPT-2 that
    receives z twice: as extra keys and values in every layer (memory), and added to every token's embedding.
    Source: XGeM 3.2 and Optimus 3.1.
    """

    kind = "report_vae"

    def __init__(
        self,
        config: ReportVAEConfig,
        encoder_tokenizer: Any,
        decoder_tokenizer: Any,
        bert: BertModel | None = None,
        gpt2: GPT2LMHeadModel | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder_tokenizer, self.decoder_tokenizer = encoder_tokenizer, decoder_tokenizer
        self.encoder = bert or BertModel(_bert_config(config, len(encoder_tokenizer)))
        self.decoder = gpt2 or GPT2LMHeadModel(_gpt2_config(config, decoder_tokenizer))
        hidden, width, layers = self.encoder.config.hidden_size, self.decoder.config.n_embd, self.decoder.config.n_layer
        self.to_posterior = nn.Linear(hidden, 2 * config.latent_dim, bias=False)
        self.to_memory = nn.Linear(config.latent_dim, layers * width * config.memory_tokens, bias=False)
        self.to_embedding = nn.Linear(config.latent_dim, width, bias=False)
        nn.init.zeros_(
            self.to_embedding.weight
        )  # otherwise the noise of an untrained posterior drowns the token embeddings
        self.known: Tensor | None = None  # (n, d / 2) uint8, latents of sentences in 4 bits
        if config.shared_embeddings:
            self.encoder.embeddings.word_embeddings = self.decoder.transformer.wte

    @classmethod
    def from_config(cls, config: ReportVAEConfig, assets: Path | None = None, tokenizer: Any = None) -> Self:
        """``tokenizer`` (small presets) is shared by encoder and decoder; pretrained ones have their own."""
        if assets is not None:
            encoder_tokenizer, decoder_tokenizer = (
                AutoTokenizer.from_pretrained(str(assets / f"{side}_tokenizer"), local_files_only=True)
                for side in ("encoder", "decoder")
            )
            if config.pretrained_encoder is None:
                module = cls(config, encoder_tokenizer, decoder_tokenizer)
                if (file := assets / _KNOWN).is_file():
                    module.known = load_file(file)["latents"]
                return module
            # The preset does not repeat the sizes of pretrained models
            bert_config, gpt2_config = (
                json.loads((assets / f"{side}_architecture.json").read_text(encoding="utf-8"))
                for side in ("encoder", "decoder")
            )
            bert = BertModel(BertConfig.from_dict(bert_config))
            gpt2 = GPT2LMHeadModel(GPT2Config.from_dict(gpt2_config))
            return cls(config, encoder_tokenizer, decoder_tokenizer, bert, gpt2)
        if config.pretrained_encoder and config.pretrained_decoder:
            bert = load_pretrained(BertModel, config.pretrained_encoder)
            gpt2 = load_pretrained(GPT2LMHeadModel, config.pretrained_decoder)
            encoder_tokenizer, decoder_tokenizer = (
                AutoTokenizer.from_pretrained(source)
                for source in (config.pretrained_encoder, config.pretrained_decoder)
            )
            # GPT-2 has a single special token; reports need distinct ones for padding, start and end
            decoder_tokenizer.add_special_tokens({"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"})
            gpt2.resize_token_embeddings(len(decoder_tokenizer))
            return cls(config, encoder_tokenizer, decoder_tokenizer, bert, gpt2)
        if tokenizer is None:
            raise ConfigError("report VAE: expected a tokenizer, got none: train one on the training reports first")
        return cls(config, tokenizer, tokenizer)

    def save_assets(self, directory: Path) -> None:
        self.encoder_tokenizer.save_pretrained(str(directory / "encoder_tokenizer"))
        self.decoder_tokenizer.save_pretrained(str(directory / "decoder_tokenizer"))
        if self.known is not None:
            save_file({"latents": self.known.contiguous()}, directory / _KNOWN)
        if self.config.pretrained_encoder is not None:
            for side, model in (("encoder", self.encoder), ("decoder", self.decoder)):
                values = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
                text = json.dumps(values, indent=2, sort_keys=True) + "\n"
                (directory / f"{side}_architecture.json").write_text(text, encoding="utf-8")

    @torch.no_grad()
    def know(self, sentences: Sequence[str]) -> None:
        """Keep the latents of ``sentences`` that decode to themselves: others near them become these."""
        kept: list[Tensor] = []
        for start in range(0, len(sentences), _CHUNK):
            chunk = list(sentences[start : start + _CHUNK])
            latents = self._means(chunk)  # (b, d)
            stored = _packed(latents)
            decoded = self._decode_texts(_unpacked(stored).to(latents.dtype), **_GREEDY)
            kept.append(stored[[text == own for text, own in zip(decoded, chunk, strict=True)]].cpu())
        self.known = torch.cat(kept) if any(map(len, kept)) else None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        shape = self.config.latent_shape
        assert shape is not None
        return shape

    @property
    def _device(self) -> torch.device:
        return self.to_posterior.weight.device

    def _tokenize(self, tokenizer: Any, texts: list[str]) -> Any:
        return tokenizer(
            texts, padding=True, truncation=True, max_length=self.config.max_length, return_tensors="pt"
        ).to(self._device)

    def decoder_ids(self, texts: list[str]) -> Tensor:
        """Target ids (b, n) of the decoder: ``<s> text </s> <pad> ...``."""
        if self.config.pretrained_decoder is None:
            return self._tokenize(self.decoder_tokenizer, texts)["input_ids"]
        tokenizer, room = self.decoder_tokenizer, self.config.max_length - 2
        cut = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
        rows = [torch.tensor([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]) for ids in cut]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id).to(self._device)

    def posterior(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Mean and log variance (b, d), before normalisation."""
        tokens = self._tokenize(self.encoder_tokenizer, texts)
        pooled = self.encoder(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        mean, logvar = self.to_posterior(pooled).chunk(2, dim=1)  # (b, d) each
        return mean, logvar + self.config.log_variance

    def encode(self, batch: list[str]) -> Tensor:
        """Posterior means, normalised to unit variance: b reports to (b, n * d), with n = 1 for whole reports.

        Raises:
            InputError: a report is empty.
        """
        if any(not text.strip() for text in batch):
            raise InputError("report: expected text, got an empty one")
        places = self.config.sentences
        rows = [[text] for text in batch] if places is None else [to_sentences(text, places) for text in batch]
        means = self._means([text for texts in rows for text in texts])  # (b * n, d)
        return means.view(len(rows), -1)

    def _means(self, texts: list[str]) -> Tensor:
        """Normalised posterior means (b, d) of texts, each distinct one encoded once."""
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        mean, _ = self.posterior(list(distinct))  # (distinct texts, d)
        picked = torch.tensor([distinct[text] for text in texts], device=mean.device)  # (b,)
        return ((mean - self.config.latent_mean) / self.config.latent_std)[picked]

    def _memory(self, z: Tensor) -> DynamicCache:
        """z (b, d) as n = ``memory_tokens`` keys, which are values too, in every layer."""
        heads, layers = self.decoder.config.n_head, self.decoder.config.n_layer
        cache = DynamicCache(config=self.decoder.config)
        for layer, part in enumerate(self.to_memory(z).chunk(layers, dim=1)):
            tokens = part.view(len(z), self.config.memory_tokens, heads, -1)
            tokens = tokens.transpose(1, 2)  # (b, heads, n, width / heads)
            cache.update(tokens, tokens, layer)
        return cache

    def _step(self, ids: Tensor, z: Tensor, cache: DynamicCache, position: int) -> Tensor:
        """Logits (b, n, vocabulary) for ids (b, n) from ``position`` on; extends ``cache``."""
        embedded = self.decoder.transformer.wte(ids) + self.to_embedding(z)[:, None]  # (b, n, width)
        position += self.config.first_position
        positions = torch.arange(position, position + ids.shape[1], device=ids.device)[None]
        return self.decoder(inputs_embeds=embedded, position_ids=positions, use_cache=True, **{_CACHE: cache}).logits

    def logits(self, ids: Tensor, z: Tensor) -> Tensor:
        """Teacher-forced logits (b, n, vocabulary) for ids (b, n) given z (b, d) before normalisation."""
        return self._step(ids, z, self._memory(z), 0)

    def reconstruction_loss(self, ids: Tensor, z: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Negative log-likelihood (b,) of each text, summed over its tokens; ``inputs``: ``ids`` with some masked."""
        logits = self.logits((ids if inputs is None else inputs)[:, :-1], z)
        pad = self.decoder_tokenizer.pad_token_id
        # Token n of the logits predicts token n + 1 of the text
        losses = F.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none", ignore_index=pad)
        return losses.sum(dim=1)

    @torch.no_grad()
    def decode(
        self, z: Tensor, *, greedy: bool = True, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> list[str]:
        """Normalised latents (b, n * d) to b reports; greedy, or each token sampled with ``generator`` (on the CPU)."""
        if z.shape[1:] != self.latent_shape:
            raise ShapeError(f"report VAE: expected latents (b, {self.latent_shape}), got {tuple(z.shape)}")
        places = self.config.sentences
        options: dict[str, Any] = {"greedy": greedy, "generator": generator, "temperature": temperature}
        parts = z.unflatten(1, (-1, self.config.latent_dim)).flatten(0, 1)  # (b * n, d)
        texts = self._decode_texts(parts, **options)
        if self.known is not None:
            texts = self._nearer(parts, texts)
        if places is None:
            return texts
        count = sum(places.values())
        return [from_sentences(texts[i : i + count], places) for i in range(0, len(texts), count)]

    def _nearer(self, z: Tensor, texts: list[str]) -> list[str]:
        """For each latent of z (b, d) the nearest known sentence, or its decoded text where the encoding of that is
        less than 0.65 times as far away, and less than 0.35 standard deviations.

        What the decoder makes of a real sentence's latent is as a rule that sentence, at distance 0. A generator's
        latents lie beside those of real sentences, and the decoder makes of them what no one writes, not far away.
        """
        assert self.known is not None
        known = _unpacked(self.known.to(z.device))  # (n, d)
        own = torch.linalg.vector_norm(z - self._means(texts).to(z.dtype), dim=1)  # (b,)
        distance, nearest = torch.cdist(z[None].float(), known[None])[0].min(dim=1)  # (b,) each
        limits = (_NEARER * distance).clamp(max=_NEAR * z.shape[1] ** 0.5)
        beside = (own >= limits).nonzero()[:, 0].tolist()  # rows whose text does not stand
        if beside:
            rows, places = nearest[beside].unique(return_inverse=True)
            sentences = self._decode_texts(known[rows].to(z.dtype), **_GREEDY)
            for row, place in zip(beside, places.tolist(), strict=True):
                texts[row] = sentences[place]
        return texts

    def _decode_texts(
        self, z: Tensor, *, greedy: bool, generator: torch.Generator | None, temperature: float
    ) -> list[str]:
        """Normalised latents (b, d) to b texts."""
        z = z * self.config.latent_std + self.config.latent_mean
        tokenizer, cache = self.decoder_tokenizer, self._memory(z)
        ids = torch.full((len(z), 1), tokenizer.bos_token_id, device=z.device)
        done = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        for position in range(self.config.max_length - 1):
            logits = self._step(ids[:, -1:], z, cache, position)[:, -1].float()  # (b, vocabulary)
            logits[:, [tokenizer.pad_token_id, tokenizer.bos_token_id]] = float("-inf")
            if greedy:
                token = logits.argmax(dim=-1)
            else:
                weights = (logits / temperature).softmax(dim=-1).cpu()
                token = torch.multinomial(weights, 1, generator=generator)[:, 0].to(z.device)
            # Finished texts are padded until the last one ends
            token = torch.where(done, tokenizer.pad_token_id, token)
            ids = torch.cat([ids, token[:, None]], dim=1)
            done |= token == tokenizer.eos_token_id
            if done.all():
                break
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _packed(z: Tensor) -> Tensor:
    """Normalised latents (n, d) in 16 levels from -4 to 4, two in a byte: (n, d / 2) uint8."""
    levels = ((z.float().clamp(-_REACH, _REACH) + _REACH) * (15 / (2 * _REACH))).round().to(torch.uint8)
    return levels[:, ::2] * 16 + levels[:, 1::2]


def _unpacked(packed: Tensor) -> Tensor:
    """:func:`_packed` backwards: (n, d) float32."""
    levels = torch.stack([packed // 16, packed % 16], dim=2).flatten(1)  # (n, d)
    return levels.float() * (2 * _REACH / 15) - _REACH


def _bert_config(config: ReportVAEConfig, vocabulary: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=config.max_length,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
    )


def _gpt2_config(config: ReportVAEConfig, tokenizer: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=config.max_length + config.first_position,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
