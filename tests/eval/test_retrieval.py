"""Retrieval of training reports by images whose nearest neighbours are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.data.sets import EvalSet, Item
from xgem.eval.families.text import evaluate
from xgem.eval.retrieval import Retrieval, retrieve
from xgem.judges.extractors import Extractor
from xgem.types import DataError, NotComputed

SPACE = Extractor("corners", "0", 4, 32, "none", lambda images: images[:, ::16, ::16].reshape(-1, 4).astype(np.float32))


def made(
    folder: Path, name: str, corners: dict[str, tuple[int, ...]], reports: dict[str, str] | None = None
) -> EvalSet:
    """Images with four grey quadrants, one per study."""
    (folder / name).mkdir()
    items: list[Item] = []
    for study, greys in corners.items():
        file = folder / name / f"{study}.png"
        Image.fromarray(np.array(greys, np.uint8).reshape(2, 2).repeat(16, 0).repeat(16, 1)).save(file)
        items.append(Item(study, file, report=(reports or {}).get(study, "")))
    return EvalSet(name, tuple(items))


def texts(reports: dict[str, str]) -> EvalSet:
    return EvalSet("reports", tuple(Item(study, report=report) for study, report in reports.items()))


def test_the_same_picture_in_training_gives_its_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = {f"t{i}": tuple(rng.integers(20, 255, 4).tolist()) for i in range(30)}
    reports = {study: f"Report of {study}." for study in corners}
    order = [f"t{i}" for i in rng.permutation(30)[:12]]
    training = {"frontal": made(tmp_path, "training", corners), "report": texts(reports)}
    real = made(tmp_path, "real", {f"r{k}": corners[name] for k, name in enumerate(order)}, {"r0": "Another."})
    found = retrieve({"frontal": real}, training, "report", {"frontal": SPACE}, cache=tmp_path / "cache")
    assert found.reports == {f"r{k}": reports[name] for k, name in enumerate(order)}
    assert found.settings["spaces"] == {"frontal": {"name": "corners", "weights": "0"}}
    assert found.settings["training studies"] == 30


def test_of_two_views_the_mean_of_cosines_decides(tmp_path: Path) -> None:
    one, near, other = (200, 10, 10, 10), (200, 60, 10, 10), (10, 10, 10, 200)
    # In each view another study is the nearest; "both" is second in each, and first in the mean
    training = {
        "frontal": made(tmp_path, "f", {"frontal only": one, "lateral only": other, "both": near, "silent": one}),
        "lateral": made(tmp_path, "l", {"frontal only": other, "lateral only": one, "both": near, "silent": one}),
        "report": texts({"frontal only": "F.", "lateral only": "L.", "both": "B.", "silent": " "}),
    }
    bright = tuple(grey + 5 for grey in one)
    prompts = {"frontal": made(tmp_path, "rf", {"r": one}), "lateral": made(tmp_path, "rl", {"r": bright})}

    def report(*views: str) -> str:
        return retrieve(prompts, training, "report", dict.fromkeys(views, SPACE)).reports["r"]

    assert [report("frontal"), report("lateral"), report("frontal", "lateral")] == ["F.", "L.", "B."]
    with pytest.raises(NotComputed, match="no training study has lateral and a report"):
        retrieve(prompts, training | {"report": texts({"x": "X."})}, "report", {"lateral": SPACE})


def test_it_is_a_baseline_of_every_text_metric() -> None:
    phrases = ("Pulmonary edema is present.", "Right pneumothorax is seen.", "Clear lungs.", "The heart is enlarged.")
    real = EvalSet("real", tuple(Item(f"s{i}", report=phrases[i % 4]) for i in range(24)))
    generated = EvalSet("made", tuple(Item(f"s{i}", report=phrases[(i + i % 2) % 4]) for i in range(24)))
    training = EvalSet("training", tuple(Item(f"t{i}", report=phrases[max(i % 5 - 1, 0)]) for i in range(20)))
    options: dict[str, Any] = {"draws": 50, "permutations": 2, "training": training}
    perfect = Retrieval({f"s{i}": phrases[i % 4] for i in range(24)}, {"space": "known"})
    found = evaluate(real, generated, retrieval=perfect, **options)
    for name in ("bleu_4", "rouge_l", "micro_f1_14", "macro_f1_findings", "f1/Edema"):
        references = found[name].references
        assert references["retrieval"].value.value == pytest.approx(1), name
        assert references["constant"].value.value < 1, name
        difference = references["retrieval"].difference
        assert difference is not None
        assert difference.value < 0 or name == "f1/Edema", name
    assert found.settings["retrieval"] == {"space": "known"}
    without = evaluate(real, generated, retrieval=NotComputed("the prompt has no image"), **options)
    assert "retrieval" not in without["bleu_4"].references
    assert without.settings["retrieval"] == "the prompt has no image"
    with pytest.raises(DataError, match="no retrieved report for 23 items, first 's1'"):
        evaluate(real, generated, retrieval=Retrieval({"s0": "Clear lungs."}), **options)
