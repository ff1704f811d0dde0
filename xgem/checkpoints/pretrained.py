"""Pretrained diffusers and transformers modules: safetensors only, with xgem's own errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from xgem.types import CheckpointError


def load_pretrained(build: Any, source: str) -> Any:
    """``build.from_pretrained`` of a directory, a hub id ``org/name``, or a folder of a hub id, ``org/name/unet``.

    Raises:
        CheckpointError: it cannot be reached, does not fit, or has only pickled weights, which can run code.
    """
    return _load(build, source, "config.json and safetensors weights", use_safetensors=True)


def load_tokenizer(source: str) -> Any:
    """The tokenizer stored with a pretrained transformers model; CheckpointError if there is none."""
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, source, "a tokenizer's files")
    # If the files are missing, transformers builds a tokenizer without a vocabulary
    if tokenizer.unk_token_id in tokenizer("chest")["input_ids"]:
        raise CheckpointError(f"tokenizer from {source!r}: no vocabulary: expected the tokenizer's files as well")
    return tokenizer


def _load(build: Any, source: str, wanted: str, **options: Any) -> Any:
    place, parts = source, source.split("/")
    if not Path(source).is_dir() and len(parts) > 2:
        place, options["subfolder"] = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        return build.from_pretrained(place, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{build.__name__} from {source!r}: cannot be loaded ({reason}): give a hub id or a directory with {wanted}"
        ) from None
