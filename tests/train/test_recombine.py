"""Variants of sentences for the report codec."""

from __future__ import annotations

import random
import re

from xgem.train.recombine import Recombined

POOL = (
    "Small left pleural effusion with atelectasis in the left base.",
    "The heart is mildly enlarged and stable.",
    "Clear.",
)


def drawn(count: int = 600) -> list[str]:
    variants, rng = Recombined(POOL), random.Random(0)
    return [variants.draw(POOL[0], rng) for _ in range(count)]


def test_variants_change_side_size_words_clauses_and_order() -> None:
    texts = drawn()
    assert all(texts)
    assert len(set(texts)) > 100
    assert sum("right" in text for text in texts) > 20
    assert any(text.startswith(("Large", "Moderate")) for text in texts)  # and the capital stays
    assert any(text.endswith("and stable.") for text in texts)  # the end of another sentence
    known = set(re.findall(r"[a-z]+", " ".join(POOL).lower()))
    exchanged = {"right", "bilateral", "tiny", "minimal", "mild", "moderate", "large", "severe"}
    assert {word for text in texts for word in re.findall(r"[a-z]+", text.lower())} <= known | exchanged


def test_variants_follow_from_the_seed_and_short_sentences_are_taken() -> None:
    assert drawn(50) == drawn(50)
    alone = Recombined(["Clear."])
    assert all(alone.draw("Clear.", random.Random(seed)) for seed in range(30))
