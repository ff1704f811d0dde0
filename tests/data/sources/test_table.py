"""The table of sources, which the command line and curation read."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.data.sources.conftest import image
from tests.data.sources.test_medfmc_chestdr import release
from xgem.cli.data import app
from xgem.data.manifest import Manifest
from xgem.data.sources import FOLDERS, Source
from xgem.labels.vocabulary import SOURCES
from xgem.types import InputError

PUBLIC = [source for source in FOLDERS if source is not Source.dicom]
# Their labels are patients' diagnoses, captions or none at all
WITHOUT_TERMS = {"segmentations", "cardiothoracic", "severity", "covid", "hannover", "roco", "vindr-ribcxr"}


@pytest.mark.parametrize("source", PUBLIC)
def test_a_source_is_documented_and_readable_by_its_name(source: Source, tmp_path: Path, project: Path) -> None:
    module = source.module
    assert list(inspect.signature(module.prepare).parameters)[:2] == ["source_dir", "out"]
    assert list(inspect.signature(module.rows_of).parameters)[:2] == ["source", "root"]
    guide = (project / "docs/guides/own-data.md").read_text(encoding="utf-8")
    assert re.search(rf"xgem data prepare {source} ", guide)
    name = getattr(module, "SOURCE", "nih")
    assert name in WITHOUT_TERMS or SOURCES[name]


def test_every_set_of_terms_has_a_source() -> None:
    named = {getattr(source.module, name, "") for source in PUBLIC for name in ("SOURCE", "SOURCE_10")}
    assert set(SOURCES) - {"chexpert", "xgem"} <= named


def test_few_shots_on_the_command_line(tmp_path: Path, chest) -> None:
    source, out, runner = release(tmp_path / "m", chest), tmp_path / "m.parquet", CliRunner()
    options = ["--shots", "1", "--drawing", "2"]
    made = runner.invoke(app, ["prepare", "medfmc-chestdr", str(source), "--out", str(out), *options])
    assert made.exit_code == 0, made.output
    assert sorted(row.split for row in Manifest.read(out).rows) == ["test", "train", "val"]
    image(tmp_path / "x.png", chest)
    refused = runner.invoke(app, ["prepare", "ralo", str(tmp_path), "--out", str(tmp_path / "n.jsonl"), *options])
    assert isinstance(refused.exception, InputError)
    assert "shots: an option of medfmc-chestdr" in str(refused.exception)
