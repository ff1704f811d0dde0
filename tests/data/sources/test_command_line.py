"""``xgem data`` from a public data set to a checked manifest."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from xgem.cli.data import app
from xgem.data.manifest import Manifest
from xgem.types import ManifestError, OutputError


def test_command_line(csvs: Path, tmp_path: Path):
    runner, out = CliRunner(), tmp_path / "m.parquet"
    made = runner.invoke(app, ["prepare", "openi", str(csvs), "--out", str(out), "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["images"] == {"train/frontal": 2, "val/frontal": 1, "val/lateral": 1}
    checked = runner.invoke(app, ["check", str(out), "--images"])
    assert checked.exit_code == 0, checked.output
    assert "val/lateral 1" in checked.output
    again = runner.invoke(app, ["prepare", "openi", str(csvs), "--out", str(out)])
    assert isinstance(again.exception, OutputError)
    assert runner.invoke(app, ["prepare", "openi", str(csvs), "--out", str(out), "--overwrite"]).exit_code == 0
    (csvs / "images/1_l.png").unlink()
    failed = runner.invoke(app, ["check", str(out)])
    assert failed.exit_code != 0
    assert isinstance(failed.exception, ManifestError)
    assert runner.invoke(app, ["check", str(out), "--no-files"]).exit_code == 0
    assert runner.invoke(app, ["prepare", "elsewhere", str(csvs), "--out", str(out)]).exit_code == 2


def test_command_line_merges(csvs: Path, brixia: Path, masks: Path, tmp_path: Path):
    runner, out = CliRunner(), tmp_path / "merged/m.parquet"
    sources = {"openi": csvs, "severity": brixia, "segmentations": masks}
    parts = [str(tmp_path / f"{name}.jsonl") for name in sources]
    for (name, folder), part in zip(sources.items(), parts, strict=True):
        assert runner.invoke(app, ["prepare", name, str(folder), "--out", part]).exit_code == 0
    merged = runner.invoke(app, ["merge", *parts, "--out", str(out)])
    assert merged.exit_code == 0, merged.output
    assert "device 2" in merged.output
    read = Manifest.read(out)
    read.check()
    assert {row.source for row in read.rows} == set(sources)
    assert [len(read.rows), len(read.studies())] == [9, 8]
    assert isinstance(runner.invoke(app, ["merge", *parts, "--out", str(out)]).exception, OutputError)
    again = runner.invoke(app, ["merge", *parts, "--out", str(out), "--overwrite", "--json"])
    assert json.loads(again.stdout)["severity"] == 2
    twice = runner.invoke(app, ["merge", parts[0], parts[0], "--out", str(out), "--overwrite"])
    assert isinstance(twice.exception, ManifestError)
    assert "study 'openi-1' is in manifests 1 and 2" in str(twice.exception)
