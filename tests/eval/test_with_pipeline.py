"""The evaluation of a whole checkpoint (random weights) through the command line: everything fits together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from xgem.cli.evaluate import app
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest, Row

TEXTS = ("No acute disease.", "Large left pleural effusion.", "Cardiomegaly.", "Clear lungs.")
LABELS = (("normal",), ("Pleural Effusion",), ("Cardiomegaly",), ("normal",))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for i in range(28):
        for view in ("frontal", "lateral"):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(folder / f"{i}_{view}.png")
            rows.append(
                Row.model_validate(
                    {
                        "study": f"s{i:02d}",
                        "subject": f"s{i:02d}",
                        "split": "val" if i < 10 else "train",
                        "view": view,
                        "file": f"{i}_{view}.png",
                        "impression": TEXTS[i % 4],
                        "findings": "Heart size is normal.",
                        "labels": LABELS[i % 4],
                        "source": "openi",
                    }
                )
            )
    path = folder / "studies.jsonl"
    Manifest(tuple(rows), folder).write(path)
    return path


def test_routes_of_a_checkpoint(manifest: Path, tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "model", load_preset("debug"))
    arguments = ["routes", "--model", str(tmp_path / "model"), "--data", str(manifest), "--out", str(tmp_path / "run")]
    arguments += ["--limit", "8", "--num-inference-steps", "2", "--classifier-epochs", "1", "--bootstrap", "20"]
    arguments += [
        "--device",
        "cpu",
        "--diversity-prompts",
        "2",
        "--batch-size",
        "4",
        "--no-progress",
        "--report-samples",
        "2",
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert len(found["routes"]) == 9
    assert found["settings"]["num_inference_steps"] == 2
    assert found["settings"]["report_samples"] == 2
    with (tmp_path / "run" / "reports" / "frontal_to_report.csv").open() as file:
        assert next(csv.reader(file)) == ["study", "real", "generated_1", "generated_2"]
    assert "Reports, mean of 2 samples a study, 2 steps" in (tmp_path / "run" / "routes.md").read_text()
    assert all(route["n"] == 8 for route in found["routes"].values())
    assert "NaN" not in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--overwrite", "--route", "F+L->T"], catch_exceptions=False)
    assert "F+L->T" in result.stdout
    assert "macro F1" in result.stdout


def test_joint_outputs_of_a_checkpoint(manifest: Path, tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "model", load_preset("debug"))
    out = tmp_path / "run"
    arguments = ["joint", "--model", str(tmp_path / "model"), "--data", str(manifest), "--out", str(out)]
    arguments += ["--limit", "8", "--num-inference-steps", "2", "--classifier-epochs", "1", "--bootstrap", "20"]
    arguments += ["--device", "cpu", "--batch-size", "4", "--no-progress", "--num-samples", "2"]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert list(found["routes"]) == ["T->F+L", "L->F+T", "F->L+T", "nothing->F+L+T"]
    assert set(found["routes"]["nothing->F+L+T"]["agreement"]) >= {"cosine F-L", "cosine F-T", "cosine L-T"}
    for route in found["routes"].values():
        for one in route["agreement"].values():
            assert set(one) >= {"joint", "independent", "shuffled", "real", "difference", "wilcoxon_p"}
            assert one["joint"]["n"] == 8
        for counts in route["labels"].values():
            assert sum(counts["joint"]) == sum(counts["independent"]) == sum(counts["real"]) == 8
        assert set(route["quality"]) == set(route["outputs"])
    assert (out / "cosine.png").is_file()
    assert len(list(out.glob("hamming_*.png"))) == 4
    assert "| T->F+L | cosine F-L | 8 |" in (out / "joint.md").read_text()
    assert "mean of 2 samples a study" in (out / "joint.md").read_text()
    again = CliRunner().invoke(app, arguments)
    assert "holds results already" in str(again.exception)


def test_control_of_a_checkpoint(manifest: Path, tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "model", load_preset("debug"))
    out = tmp_path / "run"
    arguments = ["control", "--model", str(tmp_path / "model"), "--judge", str(tmp_path / "model")]
    arguments += ["--data", str(manifest), "--out", str(out), "--num-inference-steps", "2", "--bootstrap", "20"]
    arguments += ["--limit", "8", "--classifier-epochs", "1", "--num-samples", "2"]
    arguments += ["--device", "cpu", "--batch-size", "4", "--no-progress"]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert set(found["families"]) == {"text"}
    assert set(found["not_computed"]) == {"masks", "boxes", "severity", "demographics"}
    assert found["settings"]["judge"] == found["settings"]["model"]
    assert found["settings"]["num_inference_steps"] == 2
    assert found["families"]["text"]["measures"]["prompt_agreement"]["matched"]["n"] == 8
    assert "NaN" not in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--overwrite"], catch_exceptions=False)
    assert "| text | prompt_agreement | 8 |" in result.stdout
    again = CliRunner().invoke(app, arguments)
    assert "holds results already" in str(again.exception)
