"""What is stored of the tokens that pages and APIs are entered with."""

from __future__ import annotations

import hashlib


def token_hash(token: str) -> str:
    """SHA-256 of a token: tokens are random, so a plain hash cannot be searched for."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
