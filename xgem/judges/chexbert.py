"""CheXbert (Smit et al. 2020): report labels from a BERT with 14 linear heads, loaded from its published checkpoint.

xgem does not ship its weights. The checkpoint is a file written by ``torch.save`` with a ``model_state_dict`` whose
keys are ``module.bert.*`` and ``module.linear_heads.N.{weight,bias}``; the vocabulary is BERT's own ``vocab.txt``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING
from xgem.metrics.bootstrap import Array
from xgem.types import CheckpointError, NotComputed

HEADS: Final[tuple[str, ...]] = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    NO_FINDING,
)
"""The order of the heads in the checkpoint, which differs from ``CHEXPERT_CLASSES``."""
_LABELS: Final = (float("nan"), 1.0, 0.0, -1.0)  # a head's classes: blank, positive, negative, uncertain
_HEAD_WIDTH: Final = 64  # of one attention head, in BERT of any size
_POSITIONS: Final = "embeddings.position_ids"  # 0, 1, 2, ...: a buffer that only older checkpoints have


class CheXbert:
    """A labeller; see :class:`xgem.judges.report_labellers.ReportLabeller`. ``version`` is the weights' SHA-256."""

    name: str = "CheXbert"

    def __init__(self, network: _Network, tokenizer: Any, version: str, device: torch.device) -> None:
        self._network = network.to(device).eval()
        self._tokenizer = tokenizer
        self.version = version
        self.device = device

    @torch.inference_mode()
    def label(self, reports: Sequence[str], batch_size: int = 16) -> Array:
        """n reports to (n, 14) of 1, 0, -1 (uncertain), NaN (blank), columns as ``CHEXPERT_CLASSES``.

        White space is collapsed; a report longer than the model's positions (512 tokens) is truncated, as its authors
        do.
        """
        # Each distinct text once, in batches of similar length
        unique = sorted({" ".join(text.split()) for text in reports}, key=len)
        labels_by_text: dict[str, list[float]] = {}
        for start in range(0, len(unique), batch_size):
            texts = unique[start : start + batch_size]
            tokens = self._tokenizer(
                texts, padding=True, truncation=True, max_length=self._network.positions, return_tensors="pt"
            )
            heads = self._network(tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device))
            chosen = torch.stack([head.argmax(dim=1) for head in heads], dim=1).tolist()  # (b, 14)
            for text, row in zip(texts, chosen, strict=True):
                by_class: dict[str, int] = dict(zip(HEADS, row, strict=True))
                labels_by_text[text] = [_LABELS[by_class[name]] for name in CHEXPERT_CLASSES]
        rows = [labels_by_text[" ".join(text.split())] for text in reports]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(HEADS))


def load_chexbert(checkpoint: str | Path | None, vocab: str | Path | None, *, device: str = "cpu") -> CheXbert:
    """CheXbert from local files.

    Args:
        checkpoint: ``chexbert.pth`` as published; nothing in it is executed (``weights_only``).
        vocab: ``vocab.txt`` of BERT base, uncased, one word piece per line.

    Raises:
        NotComputed: a file is not given or does not exist.
        CheckpointError: the file has another format; the message names the tensor.
    """
    # The network, with the sizes that the tensors have
    for path, what in ((checkpoint, "CheXbert's checkpoint"), (vocab, "BERT's vocab.txt")):
        if path is None or not Path(path).is_file():
            raise NotComputed(f"{what} is not {'given' if path is None else f'at {path}'}")
    place = Path(str(checkpoint))
    state = _state(place)
    network = _Network.of(state, place)
    # The tokenizer, whose vocabulary must fit the embedding
    words = Path(str(vocab)).read_text(encoding="utf-8").splitlines()
    rows = network.bert.config.vocab_size
    if len(words) != rows or not {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} <= set(words):
        raise CheckpointError(f"{vocab}: {len(words)} word pieces; expected the {rows} of {place.name}")
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab={word: row for row, word in enumerate(words)}, do_lower_case=True)
    return CheXbert(network, tokenizer, hashlib.sha256(place.read_bytes()).hexdigest(), torch.device(device))


def _state(path: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors by name, without the prefix of data-parallel training."""
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly any exception
        reason = str(error).split("\n", 1)[0][:120]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint without running code ({reason})") from None
    state = loaded.get("model_state_dict") if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: no model_state_dict of tensors; expected CheXbert's published checkpoint")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


class _Network(nn.Module):
    def __init__(self, bert: Any, hidden: int) -> None:
        super().__init__()
        self.bert = bert
        self.linear_heads = nn.ModuleList(nn.Linear(hidden, 2 if name == NO_FINDING else 4) for name in HEADS)

    @property
    def positions(self) -> int:
        return int(self.bert.config.max_position_embeddings)

    def forward(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        """(b, n) token ids and mask -> 14 logits of (b, 4), the last (b, 2)."""
        cls_token = self.bert(tokens, attention_mask=mask).last_hidden_state[:, 0]  # (b, n, hidden) -> (b, hidden)
        return [head(cls_token) for head in self.linear_heads]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], path: Path) -> _Network:
        """The network with the sizes of the tensors; every tensor must be present, with its shape, and no other."""
        from transformers import BertConfig, BertModel

        def shape(key: str) -> tuple[int, ...]:
            if key not in state:
                raise CheckpointError(f"{path}: no tensor {key}; expected CheXbert's published checkpoint")
            return tuple(state[key].shape)

        # Sizes from the tensors
        words, hidden = shape("bert.embeddings.word_embeddings.weight")
        layers = [int(match[1]) for key in state if (match := re.match(r"bert\.encoder\.layer\.(\d+)\.", key))]
        config = BertConfig(
            vocab_size=words,
            hidden_size=hidden,
            num_hidden_layers=1 + max(layers, default=0),
            num_attention_heads=max(1, hidden // _HEAD_WIDTH),
            intermediate_size=shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
            max_position_embeddings=shape("bert.embeddings.position_embeddings.weight")[0],
            type_vocab_size=shape("bert.embeddings.token_type_embeddings.weight")[0],
        )
        network = cls(BertModel(config), hidden)
        # A strict load that names what does not fit
        expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        for key, size in expected.items():
            if shape(key) != size:
                raise CheckpointError(f"{path}: tensor {key} has shape {shape(key)}, expected {size}")
        extra = sorted(key for key in state if key not in expected and not key.endswith(_POSITIONS))
        if extra:
            raise CheckpointError(f"{path}: unknown tensor {extra[0]}; expected CheXbert's published checkpoint")
        network.load_state_dict({key: state[key] for key in expected})
        return network
