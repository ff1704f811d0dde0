"""Metrics of generated reports: BLEU, ROUGE-L and METEOR, with matched and shuffled prompts; words and non-words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.metadata import version
from itertools import permutations as permuted
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Sampled, derangements
from xgem.types import InputError

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

MAX_ORDER = 4
_WORD = re.compile(r"[^\W\d_]{2,}")
_TOKEN = re.compile(r"[^\W_]+")
_CANDIDATES = 300  # reports among which the most typical one is sought, and to which they are compared


def _bleu() -> BLEU:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise InputError("BLEU needs the package sacrebleu, which is not installed: install xgem[eval]") from error
    # effective_order keeps the counts of short sentences; the corpus score below is never smoothed
    return BLEU(lowercase=True, tokenize="13a", smooth_method="none", effective_order=True)


def bleu_signature() -> str:
    """How BLEU is computed, in sacrebleu's notation, with its version."""
    import sacrebleu

    return f"corpus BLEU-1..4, cumulative, case:lc, tok:13a, smooth:none, sacrebleu {sacrebleu.__version__}"


def bleu_statistics(outputs: Sequence[str], references: Sequence[str]) -> Array:
    """Sufficient statistics of BLEU for each of n pairs.

    Returns:
        (n, 10): four counts of matching n-grams, four counts of the output's n-grams, output length, reference length.
    """
    metric = _bleu()
    cache: dict[tuple[str, str], list[float]] = {}
    rows: list[list[float]] = []
    for output, reference in zip(outputs, references, strict=True):
        key = (output, reference)
        if key not in cache:
            score = metric.sentence_score(output, [reference])
            cache[key] = [*score.counts, *score.totals, score.sys_len, score.ref_len]
        rows.append(cache[key])
    return np.array(rows, dtype=np.float64).reshape(len(rows), 2 * MAX_ORDER + 2)


def bleu_from_statistics(statistics: Array, order: int) -> Array:
    """Cumulative corpus BLEU of orders 1 to ``order`` (Papineni et al. 2002) in [0, 1] of summed counts (..., 10)."""
    matches, totals = statistics[..., :order], statistics[..., MAX_ORDER : MAX_ORDER + order]
    output_length, reference_length = statistics[..., -2], statistics[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.log(matches / totals).mean(axis=-1)
        brevity = np.minimum(0.0, 1 - reference_length / output_length)
        score = np.exp(precision + brevity)
    return np.where((matches > 0).all(axis=-1) & (output_length > 0), np.nan_to_num(score, nan=0.0), 0.0)


def compare_bleu(
    outputs: Sequence[str], references: Sequence[str], bootstrap: Bootstrap, *, seed: int = 0, permutations: int = 10
) -> dict[str, Comparison]:
    """BLEU-1..4 of matched pairs, and of outputs randomly reassigned across studies (mean over derangements)."""
    statistics = bleu_statistics(outputs, references)  # (n, 10)
    weights = bootstrap.weights
    reassigned = [
        weights @ bleu_statistics([outputs[int(j)] for j in order], references)
        for order in derangements(len(outputs), permutations, seed)
    ]
    result: dict[str, Comparison] = {}
    for order in range(1, MAX_ORDER + 1):
        matched = bootstrap.sampled(bleu_from_statistics(weights @ statistics, order))
        shuffled = bootstrap.sampled(np.mean([bleu_from_statistics(d, order) for d in reassigned], axis=0))
        result[f"bleu_{order}"] = Comparison(matched, shuffled)
    return result


def rouge_signature() -> str:
    """How ROUGE-L is computed, with the package's version."""
    return f"ROUGE-L F1 of words, case:lc, letters and digits only, no stemmer, rouge-score {version('rouge-score')}"


def rouge_l(outputs: Sequence[str], references: Sequence[str]) -> Array:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, (n,) in [0, 1], 0 for an empty output.

    Each report is one sequence, not split into sentences; lower case, words of letters and digits, no stemming.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError("ROUGE-L needs the package rouge-score, which is not installed: install xgem[eval]") from error
    scorer: Any = RougeScorer(["rougeL"], use_stemmer=False)
    return _each_pair(lambda made, real: scorer.score(real, made)["rougeL"].fmeasure, outputs, references)


def _each_pair(score: Callable[[str, str], float], outputs: Sequence[str], references: Sequence[str]) -> Array:
    """Scores (n,) of outputs against their references, each distinct pair scored once."""
    pairs = list(zip(outputs, references, strict=True))
    scores = {pair: float(score(*pair)) for pair in dict.fromkeys(pairs)}
    return np.array([scores[pair] for pair in pairs], dtype=np.float64)


class _NoSynonyms:
    """In place of WordNet, which does not ship with nltk."""

    @staticmethod
    def synsets(word: str) -> list[Any]:
        del word
        return []


def meteor_signature() -> str:
    """How METEOR is computed, with the package's version."""
    return (
        "METEOR, exact and Porter-stem matches, no synonyms, alpha 0.9, beta 3, gamma 0.5; case:lc, words of letters "
        f"and digits; nltk {version('nltk')}"
    )


def meteor(outputs: Sequence[str], references: Sequence[str]) -> Array:
    """METEOR (Banerjee and Lavie 2005), (n,) in [0, 1], 0 for an empty output: recall-weighted F of matched words.

    Without the synonyms of WordNet, so a little below what published tables give for the same reports.
    """
    try:
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError as error:
        raise InputError("METEOR needs the package nltk, which is not installed: install xgem[eval]") from error
    synonyms: Any = _NoSynonyms()
    split = {report: _TOKEN.findall(report.lower()) for report in {*outputs, *references}}

    def score(made: str, real: str) -> float:
        return single_meteor_score(split[real], split[made], wordnet=synonyms) if split[made] else 0.0

    return _each_pair(score, outputs, references)


def compare_mean(
    score: Callable[[Sequence[str], Sequence[str]], Array],
    outputs: Sequence[str],
    references: Sequence[str],
    bootstrap: Bootstrap,
    *,
    seed: int = 0,
    permutations: int = 10,
) -> Comparison:
    """The mean over studies of a score per pair, and that of outputs randomly reassigned (derangements).

    Args:
        score: n outputs and n references to (n,), such as :func:`rouge_l`.
    """
    reassigned = [
        score([outputs[int(j)] for j in order], references) for order in derangements(len(outputs), permutations, seed)
    ]
    return Comparison(bootstrap.mean(score(outputs, references)), bootstrap.mean(np.mean(reassigned, axis=0)))


def intra_study_bleu(studies: Sequence[Sequence[str]], bootstrap: Bootstrap) -> dict[str, Sampled]:
    """BLEU-1..4 between several generated reports of one study (XGeM, Table A2).

    Every ordered pair of a study's reports serves as output and reference; the n-gram counts of all pairs are summed,
    and whole studies are resampled. Brevity penalty and tokens as in :func:`compare_bleu`; the paper states neither.

    Args:
        studies: n studies of at least two reports each.

    Raises:
        InputError: a study with fewer than two reports.
    """
    short = [row for row, reports in enumerate(studies) if len(reports) < 2]
    if short:
        raise InputError(f"study {short[0]} has {len(studies[short[0]])} reports: BLEU within a study needs at least 2")
    rows: list[Array] = []
    for reports in studies:
        pairs = list(permuted(reports, 2))
        rows.append(bleu_statistics([a for a, _ in pairs], [b for _, b in pairs]).sum(axis=0))
    total = bootstrap.weights @ np.array(rows)
    return {f"bleu_{order}": bootstrap.sampled(bleu_from_statistics(total, order)) for order in range(1, MAX_ORDER + 1)}


def words(text: str) -> list[str]:
    """The words of a report in lower case: runs of two or more letters."""
    return _WORD.findall(text.lower())


def word_f1(outputs: Sequence[str], references: Sequence[str]) -> Array:
    """F1 (n,) of the words of each output, with their counts, against those of its reference; 0 where one is empty."""
    scores = np.zeros(len(outputs))
    for row, pair in enumerate(zip(outputs, references, strict=True)):
        made, real = (Counter(words(text)) for text in pair)
        if made and real:
            scores[row] = 2 * (made & real).total() / (made.total() + real.total())
    return scores


def vocabulary(reports: Iterable[str]) -> frozenset[str]:
    """All words of reports."""
    return frozenset(word for report in reports for word in words(report))


def unknown_words(reports: Sequence[str], known: Collection[str]) -> list[list[str]]:
    """The words of each report that are not among the ``known`` ones."""
    return [[word for word in words(report) if word not in known] for report in reports]


def compare_unknown(
    outputs: Sequence[str], references: Sequence[str], known: Collection[str], bootstrap: Bootstrap
) -> tuple[Sampled, Sampled]:
    """Shares of outputs and of their references with a word that is not among the ``known`` ones."""
    outside, real = (
        bootstrap.mean(np.array([bool(found) for found in unknown_words(texts, known)], dtype=np.float64))
        for texts in (outputs, references)
    )
    return outside, real


def most_frequent(reports: Sequence[str]) -> str:
    """The most frequent report (ties: the first one); the constant baseline."""
    counts = Counter(report for report in reports if report.strip())
    if not counts:
        raise InputError("no reports: the constant baseline needs training impressions")
    return counts.most_common(1)[0][0]


def most_typical(reports: Sequence[str]) -> str:
    """The report whose words agree best, by mean F1, with those of all: the fixed template as a baseline.

    Sought among the most frequent reports, compared to reports evenly spread over all: 300 of each at most.
    """
    given = [report for report in reports if words(report)]
    if not given:
        raise InputError("no reports: the template baseline needs training reports")
    candidates = [report for report, _ in Counter(given).most_common(_CANDIDATES)]
    others = given[:: -(-len(given) // _CANDIDATES)]
    return max(candidates, key=lambda report: word_f1([report] * len(others), others).mean())


def distinct(reports: Sequence[str]) -> int:
    """Number of distinct reports, ignoring case and white space."""
    return len({" ".join(report.lower().split()) for report in reports})
