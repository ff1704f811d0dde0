"""Perplexity against what is known of it: a proper distribution, a count by hand, and text in the wrong order."""

from __future__ import annotations

import numpy as np
import pytest

from xgem.metrics.bootstrap import Bootstrap
from xgem.metrics.language import TrigramModel, compare_perplexity, language_signature, tokens
from xgem.types import InputError

SENTENCES = ("the heart is normal in size .", "no focal consolidation .", "no pleural effusion or pneumothorax .")
END = "</s>"


def reports(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(SENTENCES[k] for k in rng.permutation(3)[: rng.integers(1, 4)]) for _ in range(n)]


def test_words_numbers_and_marks_are_tokens() -> None:
    assert tokens("No X-ray of 12/3: isn't  here.") == ["no", "x-ray", "of", "12", "/", "3", ":", "isn't", "here", "."]


@pytest.mark.parametrize(
    "context", [(), ("no",), ("no", "focal"), ("focal", "effusion"), ("<s>", "<s>"), ("zzz", "no")]
)
def test_probabilities_after_any_context_sum_to_one(context: tuple[str, ...]) -> None:
    model = TrigramModel([*reports(50), "rare scoliosis of spine ."])
    assert model.rare == 4
    assert "scoliosis" not in model.vocabulary
    assert "effusion" in model.vocabulary
    # As many unknown words as there are rare ones share one probability
    words = [*model.vocabulary, END, "scoliosis", "of", "qwert", "asdfg"]
    assert sum(np.exp(model.log_probability(word, context)) for word in words) == pytest.approx(1)


def test_probabilities_by_hand() -> None:
    """Two reports "a b": vocabulary a, b, end and the unknown word."""
    model = TrigramModel(["a b", "a b"])
    uniform = 1 / 4
    single = dict.fromkeys(("a", "b", END), (2 + 3 * uniform) / (6 + 3))  # 3 types, 6 tokens
    pair = (2 + 1 * single["b"]) / (2 + 1)  # after a: b, twice
    triple = (2 + 1 * pair) / (2 + 1)  # after the begin and a: b, twice
    assert np.exp(model.log_probability("b")) == pytest.approx(single["b"])
    assert np.exp(model.log_probability("b", ["a"])) == pytest.approx(pair)
    assert np.exp(model.log_probability("b", ["<s>", "a"])) == pytest.approx(triple)
    assert np.exp(model.log_probability("c")) == pytest.approx(3 * uniform / 9)  # no rare word taught it
    nats, count = model.surprise(["a b", ""])
    assert count.tolist() == [3, 1]
    assert nats[1] == pytest.approx(-model.log_probability(END, ["<s>", "<s>"]))


def test_words_in_the_wrong_order_and_words_that_do_not_exist_are_surprising() -> None:
    model, real, bootstrap = TrigramModel(reports(200)), reports(40, seed=1), Bootstrap(40, draws=200)
    rng = np.random.default_rng(2)
    shuffled = [" ".join(rng.permutation(text.split())) for text in real]
    nonsense = [text.replace("effusion", "effurion").replace("heart", "haert") for text in real]
    same, of_real, one = compare_perplexity(real, real, model, bootstrap)
    assert same.value == of_real.value >= 1
    assert (one.value, one.draws.tolist()) == (1, [1] * 200)
    for worse in (shuffled, nonsense):
        value, _, ratio = compare_perplexity(worse, real, model, bootstrap)
        assert value.value > 1.5 * of_real.value
        assert ratio.value == pytest.approx(value.value / of_real.value)
        assert ratio.estimate().low > 1


def test_perplexity_of_reports_is_that_of_their_tokens_together() -> None:
    model, two = TrigramModel(reports(30)), [SENTENCES[0], SENTENCES[1]]
    nats, count = model.surprise(two)
    value, *_ = compare_perplexity(two, two, model, Bootstrap(2, draws=10))
    assert value.value == pytest.approx(np.exp(nats.sum() / count.sum()))


def test_reports_without_words_are_refused() -> None:
    with pytest.raises(InputError, match="no training report has a word"):
        TrigramModel(["", " "])
    assert "nltk" in language_signature()
