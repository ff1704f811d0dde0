"""Views by pixels: the classifier that ships, what it is not sure of, and what `prepare dicom` makes of it."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.data.conftest import chest_like, dataset
from xgem.checkpoints.locate import DEFAULT_MODEL
from xgem.cli.data import app
from xgem.configs.reading import ReadOptions
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.show import _fields
from xgem.data.sources import dicom
from xgem.data.sources.dicom import Guess
from xgem.judges.views import LEAST, RECORD, SHIPPED, SPACE, WEIGHTS, ViewGuess
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import CheckpointError


@pytest.fixture(scope="module")
def shipped() -> ViewGuess:
    return ViewGuess.shipped()


def test_the_one_that_ships_is_of_the_features_that_ship(shipped: ViewGuess) -> None:
    record = json.loads((SHIPPED / RECORD).read_text(encoding="utf-8"))
    assert shipped.features.name == SPACE
    assert record["val"]["accuracy of the sure"] >= record["val"]["accuracy"] >= 0.98
    assert (record["least"], record["views"]) == (LEAST, ["frontal", "lateral"])
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 8000


def test_generated_views_are_told_apart(shipped: ViewGuess, tmp_path: Path) -> None:
    pipeline, views = XgemPipeline.from_pretrained(DEFAULT_MODEL), ["frontal", "lateral"]
    made = pipeline({"report": "No acute disease."}, views, seed=3, num_samples=3, progress=False)
    files = sorted(file for file in made.save(tmp_path / "out") if file.suffix == ".png")
    told = shipped(files)
    assert len(told) == 6
    for file, guess in zip(files, told, strict=True):
        assert guess.view in (None, file.name.split("-")[0])
    assert sum(guess.view is not None for guess in told) >= 4


def test_what_is_not_sure_or_cannot_be_read_has_no_view(shipped: ViewGuess, tmp_path: Path) -> None:
    Image.fromarray(chest_like(64, 64)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"none")
    unsure = replace(shipped, weight=np.zeros_like(shipped.weight), bias=2.0)  # 0.88
    first, second = unsure([tmp_path / "a.png", tmp_path / "b.png"])
    assert first == Guess(None, "the guess is lateral with probability 0.88, below 0.9")
    assert second.view is None
    assert "not a readable image" in second.reason
    assert replace(unsure, bias=-3.0)([tmp_path / "a.png"]) == [Guess("frontal")]
    assert unsure([]) == []


def test_it_is_kept_with_its_features(shipped: ViewGuess, tmp_path: Path) -> None:
    shipped.save(tmp_path, {"n": 1})
    again = ViewGuess.load(tmp_path, shipped.features)
    np.testing.assert_array_equal(again.weight, shipped.weight)
    assert again.bias == shipped.bias
    with pytest.raises(CheckpointError, match=r"fitted on the features .* fit it again"):
        ViewGuess.load(tmp_path, replace(shipped.features, weights="another"))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="not a classifier of views"):
        ViewGuess.load(tmp_path, shipped.features)


def export(folder: Path) -> Path:
    folder.mkdir()
    for number, tags in enumerate(({"ViewPosition": "PA"}, {}, {}, {})):
        ids = {"StudyInstanceUID": f"1.2.{number}", "SOPInstanceUID": f"1.2.{number}.1", "PatientID": f"p{number}"}
        file = folder / f"{number}.dcm"
        dataset(chest_like(64, 64 + number), bits=8, **ids, **tags).save_as(file, enforce_file_format=True)
    return folder


def test_guesses_are_marked_and_the_others_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    def guess(files: object) -> list[Guess]:
        asked.extend(sorted(file.name for file in files))  # type: ignore[attr-defined]
        views = {"1.dcm": Guess("lateral"), "2.dcm": Guess("frontal"), "3.dcm": Guess(None, "not sure")}
        return [views[file.name] for file in files]  # type: ignore[attr-defined]

    out = tmp_path / "m.parquet"
    with caplog.at_level(logging.WARNING):
        dicom.prepare(export(tmp_path / "export"), out, guess=guess)
    assert asked == ["1.dcm", "2.dcm", "3.dcm"]  # the header's view is never guessed
    read = {Path(str(row.file)).name: row for row in Manifest.read(out).rows}
    assert {name: (row.view, row.view_guessed) for name, row in read.items()} == {
        "0.dcm": ("frontal", False),
        "1.dcm": ("lateral", True),
        "2.dcm": ("frontal", True),
        "3.dcm": (None, False),
    }
    assert "2 views are guessed from the pixels" in caplog.text
    with out.with_name("m.left-out.csv").open() as stream:
        (listed,) = csv.DictReader(stream)
    assert listed["reason"] == "cannot be used: no view (not sure)"
    shown = CliRunner().invoke(app, ["check", str(out), "--json"])
    assert json.loads(shown.stdout)["guessed views"] == 2


def test_views_are_guessed_only_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ReadOptions] = []

    def stand_in(reading: ReadOptions) -> object:
        given.append(reading)
        return lambda files: [Guess("frontal") for _ in files]

    monkeypatch.setattr(ViewGuess, "shipped", stand_in)
    command = ["prepare", "dicom", str(export(tmp_path / "export")), "--overwrite"]
    plain = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "a.jsonl")])
    assert (plain.exit_code, given) == (0, [])
    assert "guessed views" not in plain.stdout
    assert "`--guess-views` tells it" in (tmp_path / "a.left-out.csv").read_text()
    told = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "b.jsonl"), "--guess-views", "--invert"])
    assert given == [ReadOptions(invert=True)]
    assert "guessed views" in told.stdout
    assert {row.view for row in Manifest.read(tmp_path / "b.jsonl").rows} == {"frontal"}


def test_a_page_says_which_views_are_guessed() -> None:
    plain = Row(study="s", subject="p", split="val", view="lateral", file="a.png")
    assert _fields(plain)["view"] == "lateral, val"
    assert _fields(plain.model_copy(update={"view_guessed": True}))["view"] == "lateral (guessed), val"
    with pytest.raises(ValueError, match="view_guessed without a view"):
        Row(study="s", subject="p", split="val", file="a.png", view_guessed=True)
