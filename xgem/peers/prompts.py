"""How much of a prompt a pipeline's text encoders read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_UNLIMITED: Final = 10**6
"""Tokenizers without a limit state a huge one."""
_NAMES: Final = ("tokenizer", "tokenizer_2", "tokenizer_3")


def token_limits(pipe: Any, defaults: Mapping[str, Any]) -> dict[str, int]:
    """The most tokens of a prompt that each tokenizer of a pipeline passes on, by its component's name.

    Of CLIP's it is the tokenizer's own; of others the call's ``max_sequence_length``, where it has one.
    """
    stated = defaults.get("max_sequence_length")
    limits: dict[str, int] = {}
    for name in _NAMES:
        tokenizer = getattr(pipe, name, None)
        if tokenizer is None:
            continue
        own, clip = int(tokenizer.model_max_length), "CLIP" in type(tokenizer).__name__
        limit = own if clip or not isinstance(stated, int) else stated
        if limit < _UNLIMITED:
            limits[name] = limit
    return limits


def context_tokens(pipe: Any, defaults: Mapping[str, Any]) -> int:
    """The greatest of the limits: the width that metadata say; 1 where there is none."""
    return max(token_limits(pipe, defaults).values(), default=1)


def truncated(pipe: Any, text: str, defaults: Mapping[str, Any]) -> tuple[str, ...]:
    """A note for each tokenizer that cuts ``text``: how many tokens it has, and how many are read."""
    notes: list[str] = []
    for name, limit in token_limits(pipe, defaults).items():
        tokenizer = getattr(pipe, name)
        count = len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if count > limit:
            notes.append(f"truncated: {name} ({type(tokenizer).__name__}) reads {limit} of {count} tokens")
    return tuple(notes)
