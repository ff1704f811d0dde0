"""Sentences that no report has, from sentences that reports have: what a codec must be able to say too."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Final

_CLAUSE: Final = re.compile(
    r",? (?:and|with|without|in the|of the|or|is|are|which|at|compatible with|consistent with|suggestive of|likely) "
)
_EXCHANGED: Final = (
    ("left", "right", "bilateral"),
    ("upper", "middle", "lower"),
    ("tiny", "minimal", "small", "mild", "moderate", "large", "severe"),
    ("new", "stable", "unchanged", "improved", "increased"),
)
_WORD: Final = re.compile(r"[a-z]{2,}", re.IGNORECASE)
_EXCHANGE, _LEFT_OUT = 0.5, 0.04
_OTHER_WORDS: Final = (0.05, 0.4)
"""Least and greatest share of a sentence's words that become any other one."""


class Recombined:
    """Draws sentences that differ from those of ``pool`` in clauses, side, size, place, single words or their order."""

    def __init__(self, pool: Sequence[str]) -> None:
        self.pool = list(pool)
        self.words = sorted({word for text in pool for word in _WORD.findall(text) if word.islower()})
        self.others = {word: [one for one in group if one != word] for group in _EXCHANGED for word in group}

    def draw(self, sentence: str, rng: random.Random) -> str:
        """A variant of ``sentence``, never empty."""
        kind = rng.random()
        if kind < 0.35:
            return self._spliced(sentence, rng.choice(self.pool), rng)
        words = sentence.split(" ")
        if kind < 0.8:
            share = rng.uniform(*_OTHER_WORDS)
            changed = (_WORD.sub(lambda match: self._exchanged(match[0], share, rng), word) for word in words)
            return " ".join(word for word in changed if rng.random() >= _LEFT_OUT) or sentence
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        words[i], words[j] = words[j], words[i]
        return " ".join(words)

    def _spliced(self, one: str, other: str, rng: random.Random) -> str:
        """The beginning of one sentence and the end of another, cut between clauses."""
        ends, starts = ([match.start() for match in _CLAUSE.finditer(text)] for text in (one, other))
        return one[: rng.choice(ends)] + other[rng.choice(starts) :] if ends and starts else one

    def _exchanged(self, word: str, share: float, rng: random.Random) -> str:
        """Another word of the same kind, or (with probability ``share``) any other one, or the word itself."""
        others = self.others.get(word.lower())
        if others is not None:
            new = rng.choice(others) if rng.random() < _EXCHANGE else word.lower()
        else:
            new = rng.choice(self.words) if self.words and word.islower() and rng.random() < share else word
        return new.capitalize() if word[0].isupper() and new.islower() else new
