"""Perplexity of reports under a trigram model of real training reports: does generated text read like a real report?

Source: interpolated Witten-Bell smoothing (Witten & Bell 1991, method C; Chen & Goodman 1999), by nltk.lm. Its
Kneser-Ney model walks through all contexts for every word that is scored, too slow for a large corpus.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np

from xgem.metrics.bootstrap import Array, Bootstrap, Sampled
from xgem.types import InputError

ORDER: Final = 3
FEWEST: Final = 2
"""A word that fewer times occurs in training reports is an unknown one."""
_BEGIN, _END = "<s>", "</s>"
_TOKEN: Final = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]")


def tokens(report: str) -> list[str]:
    """Words, numbers and punctuation marks in lower case; hyphens and apostrophes inside a word belong to it."""
    return _TOKEN.findall(report.lower())


def language_signature() -> str:
    """How perplexity is computed, with the package's version."""
    import nltk

    return (
        "per token with end of text; words and punctuation, case:lc; trigrams, interpolated Witten-Bell down to the "
        f"uniform distribution; words of fewer than {FEWEST} training occurrences share one probability; "
        f"nltk {nltk.__version__}"
    )


class TrigramModel:
    """A trigram model of reports.

    The probability of a word is interpolated between trigrams, bigrams, single words and the uniform distribution over
    the vocabulary, so that none is zero. The vocabulary is the words that training reports have at least twice, the end
    of the text, and one unknown word. Rare training words teach the probability of the latter, which is then divided by
    their number: what is not in the vocabulary is as probable as one rare word, not as all of them together. Without
    the division, text of nonsense words would be cheap.

    Args:
        reports: real training reports.

    Raises:
        InputError: no report has a word, or the package nltk is missing.
    """

    def __init__(self, reports: Sequence[str]) -> None:
        texts = [found for report in reports if (found := tokens(report))]
        if not texts:
            raise InputError("no training report has a word: a language model needs some")
        counts = Counter(word for text in texts for word in text)
        self.rare = sum(count < FEWEST for count in counts.values())
        self._model = _witten_bell(counts)
        self._model.fit([list(_ngrams(text)) for text in texts])
        self._known: dict[tuple[str, ...], float] = {}

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """The words that the model knows, without the unknown word and the end of the text."""
        return frozenset(self._model.vocab) - {_BEGIN, _END, self._model.vocab.unk_label}

    def log_probability(self, word: str, context: Sequence[str] = ()) -> float:
        """Natural logarithm of the probability of a token after up to two others, oldest first; ``</s>`` is the end."""
        *before, last = self._model.vocab.lookup((*context[-(ORDER - 1) :], word))
        key = (*before, last)
        if key not in self._known:
            share = max(self.rare, 1) if last == self._model.vocab.unk_label else 1
            self._known[key] = float(np.log(self._model.unmasked_score(last, tuple(before)) / share))
        return self._known[key]

    def surprise(self, reports: Sequence[str]) -> tuple[Array, Array]:
        """Negative log-probability (n,) in nats of each report, and its number (n,) of tokens, both with the end."""
        rows = [[-self.log_probability(last, before) for *before, last in _longest(tokens(text))] for text in reports]
        return np.array([sum(row) for row in rows]), np.array([len(row) for row in rows], dtype=np.float64)


@lru_cache(maxsize=4)
def trigram_model(reports: tuple[str, ...]) -> TrigramModel:
    """As :class:`TrigramModel`; the last few are kept, as samples of one model are measured one after the other."""
    return TrigramModel(reports)


def compare_perplexity(
    outputs: Sequence[str], references: Sequence[str], model: TrigramModel, bootstrap: Bootstrap
) -> tuple[Sampled, Sampled, Sampled]:
    """Perplexity of outputs and of their references, each at least 1, and the first divided by the second.

    Perplexity is the exponential of the mean surprise per token over all reports together. Whole studies are resampled.
    """
    made, real = (bootstrap.ratio(*model.surprise(texts)) for texts in (outputs, references))
    return _exp(made), _exp(real), _exp(made - real)


def _exp(nats: Sampled) -> Sampled:
    return Sampled(float(np.exp(nats.value)), np.exp(nats.draws), nats.n)


def _longest(text: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The trigram that ends with each token of a text, and with its end."""
    padded = [*[_BEGIN] * (ORDER - 1), *text, _END]
    return (tuple(padded[k : k + ORDER]) for k in range(len(padded) - ORDER + 1))


def _ngrams(text: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All n-grams up to trigrams that end with a token, or with the end; the padding itself is never predicted."""
    return (gram[start:] for gram in _longest(text) for start in range(ORDER))


def _witten_bell(counts: Counter[str]) -> Any:
    try:
        from nltk.lm import Vocabulary
        from nltk.lm.models import InterpolatedLanguageModel
        from nltk.lm.smoothing import WittenBell
    except ImportError as error:
        raise InputError("perplexity needs the package nltk, which is not installed: install xgem[eval]") from error

    class ToUniform(WittenBell):
        """nltk's recursion ends at the frequencies of words, of which that of the unknown word may be 0."""

        def unigram_score(self, word: str) -> float:
            single: Any = self.counts.unigrams
            predicted = len(self.vocab) - 1  # without the begin of the text
            return (single[word] + len(single) / predicted) / (single.N() + len(single))

    vocabulary: Any = Vocabulary(counts + Counter({_BEGIN: FEWEST, _END: FEWEST}), unk_cutoff=FEWEST)
    return InterpolatedLanguageModel(ToUniform, ORDER, vocabulary=vocabulary)
