"""The evaluation of a whole checkpoint (random weights) through the command line: everything fits together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from xgem.cli.evaluate import app
from xgem.data.manifest import Manifest, Row
from xgem.eval.schema import read_record
from xgem.types import InputError, OutputError

TEXTS = ("No acute disease.", "Large left pleural effusion.", "Cardiomegaly.", "Clear lungs.")
LABELS = (("normal",), ("Pleural Effusion",), ("Cardiomegaly",), ("normal",))
COMMON = ("--num-inference-steps", "2", "--classifier-epochs", "1", "--bootstrap", "20", "--batch-size", "4")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for i in range(28):
        for view in ("frontal", "lateral"):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(folder / f"{i}_{view}.png")
            values = {
                "study": f"s{i:02d}",
                "subject": f"s{i:02d}",
                "split": "val" if i < 10 else "train",
                "view": view,
                "file": f"{i}_{view}.png",
                "impression": TEXTS[i % 4],
                "findings": "Heart size is normal.",
                "labels": LABELS[i % 4],
                "source": "openi",
                "sex": "FM"[i % 2],
                "age": 30 + i,
            }
            rows.append(Row.model_validate(values))
    path = folder / "studies.jsonl"
    Manifest(tuple(rows), folder).write(path)
    return path


@pytest.fixture(scope="session")
def model(debug_checkpoint: Path) -> Path:
    return debug_checkpoint


def run(command: str, model: Path, manifest: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = [command, "--model", str(model), "--data", str(manifest), "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, *COMMON, "--no-progress", "--json", *more], catch_exceptions=False)
    assert "NaN" not in result.stdout
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def out(model: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `eval routes`, whose cohorts the other commands take."""
    folder = tmp_path_factory.mktemp("run")
    run("routes", model, manifest, folder, "--diversity-prompts", "8", "--report-samples", "2")
    return folder


def numbers(record: dict[str, Any], family: str, route: str, name: str) -> list[dict[str, Any]]:
    return [
        metric
        for one in record["families"]
        if (one["family"], one.get("route", "")) == (family, route)
        for metric in one["metrics"]
        if metric["name"] == name
    ]


def test_routes_of_a_checkpoint(out: Path) -> None:
    record = json.loads((out / "routes.json").read_text())
    routes = {one["route"] for one in record["families"]}
    assert len(routes) == 9
    for route in routes:
        families = {one["family"] for one in record["families"] if one["route"] == route}
        assert families == ({"text", "agreement"} if route.endswith("T") else {"fidelity", "factual", "agreement"})
        (agreement,) = numbers(record, "agreement", route, "target_agreement")
        assert agreement["value"]["n"] == 10
        assert "difference" in agreement["references"]["shuffled"]
    assert record["settings"]["sampling"]["num_inference_steps"] == 2
    assert record["settings"]["report_samples"] == 2
    # Two prompts stand beside the better of the single ones, in pairs
    (both,) = numbers(record, "agreement", "F+L->T", "target_agreement")
    single = {"F->T", "L->T"} & set(both["references"])
    assert len(single) == 1
    assert "difference" in both["references"][single.pop()]
    # Reports beside those of the nearest training images, and against the language of training reports
    for route in ("F->T", "L->T", "F+L->T"):
        for name in ("bleu_4", "rouge_l", "micro_f1_14", "f1"):
            measured = [one for one in numbers(record, "text", route, name) if "value" in one]
            assert measured
            assert all({"constant", "retrieval", "shuffled"} <= set(one["references"]) for one in measured)
        (words,) = numbers(record, "text", route, "non_words")
        (perplexity,) = numbers(record, "text", route, "perplexity")
        assert words["value"]["n"] == perplexity["value"]["n"] == 10
        assert "real" in perplexity["references"]
        (between,) = numbers(record, "agreement", route, "input_icc")
        assert "the same" in between["not_computed"]  # random weights say one thing whatever the input
        (findings,) = numbers(record, "agreement", route, "label_jaccard")
        assert findings["value"]["value"] == findings["references"]["shuffled"]["value"]["value"] == 1
    assert all("at least 2" in one["not_computed"] for one in numbers(record, "agreement", "L->F", "input_icc"))
    (blur,) = numbers(record, "fidelity", "L->F", "band_power_ratio")
    assert "reconstructed" in blur["references"]
    assert numbers(record, "fidelity", "L->F", "ssim")
    assert len(list((out / "sheets").glob("*.png"))) == 9
    assert "F+L->T" in (out / "routes.md").read_text()
    assert (out / "routes.html").is_file()


def test_one_route_by_the_same_cohort_is_the_same(out: Path, model: Path, manifest: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (out / "cohorts").rglob("*.txt")}
    first = json.loads((out / "routes.json").read_text())
    again = run("routes", model, manifest, out, "--route", "F->T", "--report-samples", "2", "--overwrite")
    assert {path: path.stat().st_mtime_ns for path in (out / "cohorts").rglob("*.txt")} == before
    for name in ("target_agreement", "prompt_agreement"):
        assert numbers(again, "agreement", "F->T", name) == numbers(first, "agreement", "F->T", name)
    with pytest.raises(OutputError, match=r"routes\.json: exists already"):
        run("routes", model, manifest, out, "--route", "F->T")


def test_joint_outputs_beside_the_routes_of_each(out: Path, model: Path, manifest: Path) -> None:
    record = run("joint", model, manifest, out, "--num-samples", "1")
    routes = {one["route"] for one in record["families"]}
    assert routes == {"T->F+L", "L->F+T", "F->L+T", "nothing->F+L+T"}
    for route, name, count in (
        ("T->F+L", "own_image_rank", 1),
        ("L->F+T", "hamming", 1),
        ("nothing->F+L+T", "cosine", 3),
    ):
        found = numbers(record, "consistency", route, name)
        assert len(found) == count
        for metric in found:
            assert metric["value"]["n"] == 10
            assert {"shuffled", "independent", "real pairs"} <= set(metric["references"])
            assert 0 <= metric["references"]["independent"]["p"] <= 1
    # The independent reference of joint outputs is what `eval routes` measured of the routes to each
    measured = json.loads((out / "routes.json").read_text())
    routes_own = run("routes", model, manifest, out, "--route", "L->F", "--diversity-prompts", "0", "--overwrite")
    (joint,) = numbers(record, "agreement", "L->F+T", "pixel_correlation")
    (single,) = numbers(routes_own, "agreement", "L->F", "pixel_correlation")
    assert joint["references"]["independent"]["value"] == single["value"]
    assert measured["settings"]["model"] == record["settings"]["model"]
    assert {one["family"] for one in record["families"] if one["route"].startswith("nothing")} == {
        "consistency",
        "fidelity",
    }
    assert len(read_record(out / "joint.json").families) == len(record["families"])


def test_control_by_judges_of_another_seed_measures_the_same_images(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the seed of what is trained changes."""
    seen: list[Any] = []

    def noted(*_: Any, settings: Any, **__: Any) -> Any:
        seen.append(settings)
        return {}, []

    monkeypatch.setattr("xgem.eval.control.evaluate_control", noted)
    for seed in ("0", "1"):
        run("control", model, manifest, tmp_path / seed, "--judge-seed", seed)
    first, second = seen
    assert (second.segmenter.seed, second.patient.seed) == (1, 1)
    assert second == replace(first, segmenter=replace(first.segmenter, seed=1), patient=replace(first.patient, seed=1))


def test_control_of_a_checkpoint(model: Path, manifest: Path, tmp_path: Path) -> None:
    record = run("control", model, manifest, tmp_path / "run", "--judge", str(model), "--limit", "8")
    reasons = {one["route"]: one.get("not_computed", "") for one in record["families"] if one["family"] == "control"}
    assert set(reasons) == {"mask->F", "boxes->F", "severity->F", "demographics->F"}
    assert all("takes no" in reason for reason in reasons.values())
    assert record["settings"]["judge"] == record["settings"]["model"]
    (agreement,) = numbers(record, "agreement", "T->F", "prompt_agreement")
    assert agreement["value"]["n"] == 8
    assert "ceiling" in agreement["references"]


def test_models_are_not_measured_on_their_training_split(model: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="have not seen"):
        run("routes", model, manifest, tmp_path / "run", "--split", "train")
