"""The report codec alone: a codec whose losses are known, and the command with the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from xgem.cli.evaluate import app
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.eval import codec
from xgem.metrics.text import unknown_words, word_f1
from xgem.types import DataError, InputError

NORMAL, ABNORMAL = "No acute disease.", "Small left pleural effusion with overlying atelectasis."


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Six normal and six abnormal studies in each of two splits."""
    rows = [
        Row.model_validate(
            {
                "study": f"{split}{i}",
                "subject": f"{split}{i}",
                "split": split,
                "impression": (NORMAL, ABNORMAL)[i % 2],
                "labels": (("normal",), ("Pleural Effusion",))[i % 2],
                "source": "openi",
            }
        )
        for split in ("train", "val")
        for i in range(12)
    ]
    Manifest(tuple(rows), tmp_path).write(tmp_path / "m.jsonl")
    return tmp_path / "m.jsonl"


def faked(monkeypatch: pytest.MonkeyPatch, output: str, decode: Any) -> None:
    """A model of one output, whose report codec, if it is reports, makes ``decode(report)`` of a report."""
    preset = SimpleNamespace(outputs=(output,), report_sections=("impression",))
    pipe = SimpleNamespace(
        name="fake", hash="0", preset=preset, reconstruct_reports=lambda name, reports: [decode(one) for one in reports]
    )
    monkeypatch.setattr(codec, "XgemPipeline", SimpleNamespace(from_pretrained=lambda model, device: pipe))


def test_a_codec_that_garbles_abnormal_reports(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, "report", lambda text: text if text == NORMAL else "Small left pleural diamemakeration.")
    about, (found,) = codec.evaluate_codec(None, manifest, draws=20)
    assert about["share of sentences that a training report has"] == 1

    def value(name: str, group: str) -> float:
        estimate = found.find(name, of=group).value
        assert estimate is not None
        return estimate.value

    assert [value("codec_exact", group) for group in ("all", "normal", "abnormal")] == [0.5, 1, 0]
    assert value("codec_word_f1", "abnormal") == pytest.approx(2 * 3 / (7 + 4))
    assert [value("non_words", group) for group in ("normal", "abnormal")] == [0, 1]
    assert found.find("non_words", of="abnormal").references["real"].value.value == 0
    assert value("codec_exact", "1 to 5 words") == 1
    assert found.find("codec_exact", of="16 words or more").value is None
    assert found.details["words outside the training vocabulary"] == ["diamemakeration"]


def test_what_cannot_be_measured_is_said(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, "report", str)
    with pytest.raises(DataError, match="split 'test' has 0 reports; expected at least 5"):
        codec.evaluate_codec(None, manifest, split="test")
    faked(monkeypatch, "frontal", str)
    with pytest.raises(InputError, match="expected a model that makes reports"):
        codec.evaluate_codec(None, manifest)


def test_the_command_with_the_embedded_model(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--data", str(manifest), "--out", str(out), "--device", "cpu", "--bootstrap", "20", "--json"]
    ran = CliRunner().invoke(app, ["codec", *options], catch_exceptions=False)
    metrics = json.loads(ran.stdout)["families"][0]["metrics"]
    assert [one["value"]["value"] for one in metrics if (one["name"], one["of"]) == ("codec_exact", "normal")] == [1]
    assert (out / "codec.html").is_file()


def test_words_are_counted_and_known() -> None:
    assert word_f1(["a b", "Heart heart.", ""], ["c d", "Heart size.", "Clear."]).tolist() == [0, 0.5, 0]
    assert unknown_words(["Heart of 12 mm.", "Clear."], {"heart", "of", "clear"}) == [["mm"], []]
