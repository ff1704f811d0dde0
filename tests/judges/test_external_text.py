from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from xgem.judges.external_text import RADGRAPH, RATESCORE, SCORES, ExternalMetric
from xgem.types import InputError, NotComputed

# Plays the package's part: overlap of words; ``{answer}`` is the form in which F1 comes back
FAKE_RADGRAPH = """
class F1RadGraph:
    def __init__(self, reward_level, model_type):
        assert reward_level == "all" and model_type == "radgraph"
        print("RadGraph initialized with device: cpu")

    def __call__(self, refs, hyps):
        def f1(hyp, ref):
            a, b = set(hyp.split()), set(ref.split())
            return 2 * len(a & b) / (len(a) + len(b))
        simple = [f1(h, r) for h, r in zip(hyps, refs)]
        partial, complete = [one / 2 for one in simple], [one / 4 for one in simple]
        return None, {answer}, [], []
"""
EARLIER = "(simple, partial, complete)"
LATER = "[((0, 1, a), (0, 1, b), (0, 1, c)) for a, b, c in zip(simple, partial, complete)]"
FAKE_RATESCORE = """
class RaTEScore:
    def __init__(self, use_gpu, bert_model="hub"):
        assert not use_gpu and bert_model == "/models/ner"
    def compute_score(self, candidate_list, reference_list):
        return [{score}] * len(candidate_list)
"""


def _metric(folder: Path, metric: str, source: str, **options) -> ExternalMetric:
    package = {RADGRAPH: "radgraph", RATESCORE: "RaTEScore"}[metric]
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return ExternalMetric(metric, sys.executable, options, environment, timeout=60)


@pytest.mark.parametrize("answer", [EARLIER, LATER])
def test_radgraph_of_earlier_and_later_versions(tmp_path: Path, answer: str) -> None:
    metric = _metric(tmp_path, RADGRAPH, FAKE_RADGRAPH.replace("{answer}", answer))
    outputs = ["large heart", "no effusion", 'é \n quoted "lungs"']
    scores, version = metric.score(outputs, ["large heart", "small effusion", "clear"])
    assert tuple(scores) == SCORES[RADGRAPH]
    assert scores["radgraph_simple"].tolist() == [1, 0.5, 0]
    assert scores["radgraph_partial"].tolist() == [0.5, 0.25, 0]
    assert scores["radgraph_complete"].tolist() == [0.25, 0.125, 0]
    assert version == "radgraph of unknown version"
    assert metric.settings == {"model_type": "radgraph"}


def test_an_empty_output_scores_zero_and_is_not_sent(tmp_path: Path) -> None:
    metric = _metric(tmp_path, RATESCORE, FAKE_RATESCORE.replace("{score}", "0.5"), bert_model="/models/ner")
    assert metric.score(["", "large heart"], ["a", "b"])[0]["ratescore"].tolist() == [0, 0.5]


def test_the_package_version_is_reported(tmp_path: Path) -> None:
    metric = _metric(tmp_path, RADGRAPH, FAKE_RADGRAPH.replace("{answer}", EARLIER))
    (tmp_path / "radgraph-0.1.18.dist-info").mkdir()
    (tmp_path / "radgraph-0.1.18.dist-info" / "METADATA").write_text("Name: radgraph\nVersion: 0.1.18\n")
    assert metric.score(["a"], ["a"])[1] == "radgraph 0.1.18"


def test_what_went_wrong_there_is_the_reason_here(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    hidden = ExternalMetric(RADGRAPH, sys.executable, environment={"PYTHONPATH": str(tmp_path / "empty")})
    with pytest.raises(NotComputed, match="radgraph"):
        hidden.score(["a"], ["b"])
    with pytest.raises(NotComputed, match="cannot be run"):
        ExternalMetric(RADGRAPH, tmp_path / "python").score(["a"], ["b"])


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ("[1.5, 0]", "outside"),
        ("[float('nan'), 0]", "outside"),
        ("[{}, 0]", "failed"),
        ("[0.5] * 3", "3 answers"),
    ],
)
def test_answers_that_cannot_be_scores_are_refused(tmp_path: Path, scores: str, said: str) -> None:
    source = FAKE_RATESCORE.replace("[{score}] * len(candidate_list)", scores)
    metric = _metric(tmp_path, RATESCORE, source, bert_model="/models/ner")
    with pytest.raises(NotComputed, match=said):
        metric.score(["a", "b"], ["c", "d"])


def test_a_package_that_hangs_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "radgraph.py").write_text("import time\ntime.sleep(60)\n")
    metric = ExternalMetric(RADGRAPH, sys.executable, {}, {**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=1)
    with pytest.raises(NotComputed, match="no answer in 1 s"):
        metric.score(["a"], ["b"])


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(InputError, match="expected one of radgraph, ratescore"):
        ExternalMetric("meteor", sys.executable)
