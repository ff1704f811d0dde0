from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xgem.cli.evaluate import app
from xgem.data.manifest import Manifest, Row
from xgem.types import InputError, ManifestError

RUN = CliRunner()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    texts = [
        ("a", "No acute disease.", ("normal",)),
        ("b", "Large left pleural effusion.", ("Pleural Effusion",)),
        ("c", "Cardiomegaly. No effusion.", ("Cardiomegaly",)),
        ("d", "Possible effusion.", ("Spine",)),
        ("f", "Possible effusion.", ("Costophrenic Angle",)),  # which may mean fluid: counts neither way
        ("e", "Not annotated.", ()),
    ]
    rows = [
        Row(study=name, subject=name, split="val", impression=text, labels=labels, source="openi")
        for name, text, labels in texts
    ]
    path = tmp_path / "manifest.jsonl"
    Manifest(tuple(rows), tmp_path).write(path)
    return path


def test_labeller_prints_precision_and_recall(manifest: Path) -> None:
    result = RUN.invoke(app, ["labeller", "--data", str(manifest), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["n"] == 5
    effusion = found["classes"]["Pleural Effusion"]
    assert (effusion["annotated"], effusion["labelled"]) == (1, 2)
    assert (effusion["precision"], effusion["recall"]) == (0.5, 1.0)
    table = RUN.invoke(app, ["labeller", "--data", str(manifest)]).stdout
    assert "xgem-rules" in table
    assert "Pleural Effusion" in table


@pytest.mark.parametrize("scale", ["much", "lateral=", "lateral:2"])
def test_wrong_guidance_scale(scale: str, manifest: Path, tmp_path: Path) -> None:
    arguments = ["routes", "--data", str(manifest), "--out", str(tmp_path / "run"), "--guidance-scale", scale]
    result = RUN.invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert "expected a number" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_wrong_seed_and_missing_manifest_leave_nothing_behind(manifest: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert isinstance(RUN.invoke(app, ["routes", "--data", str(manifest), *out, "--seed", "-1"]).exception, InputError)
    missing = RUN.invoke(app, ["routes", "--data", str(tmp_path / "absent.jsonl"), *out])
    assert isinstance(missing.exception, ManifestError)
    assert not (tmp_path / "run").exists()
