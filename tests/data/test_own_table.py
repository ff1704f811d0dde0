"""A table of one's own as a manifest: columns told or guessed, cells mapped, and what cannot be used listed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from xgem.cli.data import app
from xgem.data.manifest import Manifest
from xgem.data.own_table import TableMapping, manifest_of
from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING, annotated_labels
from xgem.types import DataError, InputError, ManifestError

HEADER = ("StudyInstanceUID", "Patient ID", "image_path", "ViewPosition", "Report", "Finding Labels", "Age", "Gender")
ROWS = (
    ("1", "a", "1f.png", "PA", "Cardiomegaly.", "Cardiomegaly|Effusion", "61", "female"),
    ("1", "a", "1l.png", "LL", "Cardiomegaly.", "Cardiomegaly|Effusion", "61", "female"),
    ("2", "b", "deep/2.png", "AP Supine", "N/A", "No Finding", "414", "X"),
    ("3", "b", "3.png", "oblique", "Clear lungs.", "", "", ""),
    ("4", "c", "gone.png", "PA", "", "", "", ""),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name in ("1f.png", "1l.png", "deep/2.png", "3.png"):
        Image.new("L", (40, 40), 90).save(tmp_path / "images" / name)
    table(tmp_path, HEADER, *ROWS)
    return tmp_path


def table(folder: Path, *rows: Any, separator: str = ",") -> Path:
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=separator).writerows(rows)
    return folder / "t.csv"


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["prepare", "csv", *map(str, arguments)])


def test_columns_are_guessed_and_what_is_left_out_is_listed(folder: Path) -> None:
    ran = run(folder / "t.csv", "--out", folder / "m.jsonl", "--json")
    assert ran.exit_code == 0, ran.output
    read = Manifest.read(folder / "m.jsonl")
    read.check()
    one, two, three = read.studies()
    assert {view: len(files) for view, files in one.images.items()} == {"frontal": 1, "lateral": 1}
    assert (one.subject, one.age, one.sex, one.impression) == ("a", 61, "F", "Cardiomegaly.")
    assert one.labels == ("Cardiomegaly", "Effusion")
    assert (two.images["frontal"][0].name, two.age, two.sex, two.impression) == ("2.png", None, None, "")
    assert not three.images  # an oblique view is kept, and used by nothing
    assert two.split == three.split  # of one patient
    listed = list(csv.reader((folder / "m.left-out.csv").open(encoding="utf-8")))
    assert [row[:2] for row in listed[1:]] == [
        ["4", "age left out: no years from 0 to 120"],
        ["4", "sex left out: neither F nor M"],
        ["5", "view unknown: kept, but used by nothing"],
        ["6", "no such image"],
        ["6", "neither an image nor a report"],
    ]
    assert json.loads(ran.stdout)["left out"]["no such image"] == 1


def test_the_mapping_of_a_dry_run_gives_the_same_manifest(folder: Path) -> None:
    shown = run(folder / "t.csv", "--out", folder / "m.jsonl", "--dry-run", "--value", "view:oblique=lateral")
    assert shown.exit_code == 0, shown.output
    assert not (folder / "m.jsonl").exists()
    assert "file: image_path" in shown.stdout
    mapping = shown.stdout[: shown.stdout.index("rows  ")]
    (folder / "map.yaml").write_text(mapping)
    for name, options in (("a", ("--mapping", folder / "map.yaml")), ("b", ("--value", "view:oblique=lateral"))):
        assert run(folder / "t.csv", "--out", folder / f"{name}.jsonl", *options).exit_code == 0
    assert (folder / "a.jsonl").read_text() == (folder / "b.jsonl").read_text()
    assert Manifest.read(folder / "a.jsonl").studies()[2].images.keys() == {"lateral"}
    options = ("--mapping", folder / "map.yaml", "--column", "report=", "--overwrite")  # options win over the file
    assert run(folder / "t.csv", "--out", folder / "a.jsonl", *options).exit_code == 0
    assert not any(study.impression for study in Manifest.read(folder / "a.jsonl").studies())


def test_one_row_a_study(folder: Path) -> None:
    path = table(folder, ("uid", "front", "side"), ("1", "1f.png", "1l.png"), ("2", "2.png", ""), separator=";")
    mapping = TableMapping(columns={"file.frontal": "front", "file.lateral": "side"}, constants={"source": "openi"})
    made = manifest_of(path, mapping, folder)
    assert [(row.study, row.view, row.source) for row in made.manifest.rows] == [
        *(("1", "frontal", "openi"), ("1", "lateral", "openi")),
        ("2", "frontal", "openi"),
    ]
    assert not made.left_out


def test_class_columns_never_make_an_unknown_class_absent(folder: Path) -> None:
    names = [name.replace(" ", "_") for name in CHEXPERT_CLASSES]
    told = [("file", "view", *names), ("1f.png", "frontal", *("0",) * 13, "1"), ("3.png", "frontal", "1", *("0",) * 13)]
    whole = manifest_of(table(folder, *told), TableMapping(), folder).manifest.studies()
    assert annotated_labels(whole[0].labels, whole[0].source)["Pneumonia"] == 0
    blank = [told[0], ("1f.png", "frontal", "", *("0",) * 12, "1"), told[2]]
    partly = manifest_of(table(folder, *blank), TableMapping(), folder).manifest.studies()
    labels = annotated_labels(partly[0].labels, partly[0].source)
    assert labels["Support Devices"] == 1
    assert labels["Pneumonia"] == 0  # stated
    assert NO_FINDING not in labels  # blank
    doubt = [told[0], ("1f.png", "frontal", "", "-1", *("0",) * 12), told[2]]
    studies = manifest_of(table(folder, *doubt), TableMapping(), folder).manifest.studies()
    assert CHEXPERT_CLASSES[1] not in annotated_labels(studies[0].labels, studies[0].source)


def test_labels_from_reports_and_splits_of_a_column(folder: Path) -> None:
    path = table(
        folder, ("study", "text", "fold"), ("1", "Large effusion.", "Training"), ("2", "No effusion.", "valid")
    )
    studies = manifest_of(path, TableMapping(labels_from_reports=True), folder).manifest.studies()
    assert [(study.split, study.labels) for study in studies] == [
        ("train", ("Pleural Effusion",)),
        ("val", ("No Finding",)),
    ]
    plain = manifest_of(path, TableMapping(), folder).manifest.studies()
    assert not any(study.labels for study in plain)


def test_shares_of_splits_are_of_subjects(folder: Path) -> None:
    path = table(folder, ("study", "subject", "report"), *((str(i), f"p{i // 2}", "Clear.") for i in range(400)))
    studies = manifest_of(path, TableMapping(val=0.3, test=0), folder).manifest.studies()
    share = sum(study.split == "val" for study in studies) / 400
    assert 0.2 < share < 0.4
    assert not any(study.split == "test" for study in studies)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--column", "file=Path"), r"no column 'Path' for file; it has StudyInstanceUID"),
        (("--column", "picture=image_path"), "unknown field 'picture': expected one of study"),
        (("--column", "file"), "expected FIELD=COLUMN"),
        (("--value", "view=frontal"), "expected FIELD:CELL=MEANING"),
        (("--val", "1.5"), "val"),
        (("--mapping", "none.yaml"), "cannot be read as YAML"),
    ],
)
def test_wrong_options_are_refused_in_one_line(folder: Path, options: tuple[str, ...], words: str) -> None:
    ran = run(folder / "t.csv", "--out", folder / "m.jsonl", *options)
    assert isinstance(ran.exception, InputError)
    with pytest.raises(InputError, match=words):
        raise ran.exception
    assert "\n" not in str(ran.exception)


def test_tables_that_make_no_manifest(folder: Path) -> None:
    with pytest.raises(DataError, match="no column of files or reports among a, b; name one"):
        manifest_of(table(folder, ("a", "b"), ("1", "2")), TableMapping(), folder)
    with pytest.raises(DataError, match=r"none of its 1 rows can be used, line 2: no such image \(x\.png\)"):
        manifest_of(table(folder, ("file", "view"), ("x.png", "PA")), TableMapping(), folder)
    rows = (("study", "subject", "report"), ("1", "a", "Clear."), ("1", "b", "Clear."))
    with pytest.raises(ManifestError, match="differs in subject"):
        manifest_of(table(folder, *rows), TableMapping(), folder)
    ran = CliRunner().invoke(app, ["prepare", "nih", str(folder), "--out", str(folder / "m.jsonl"), "--dry-run"])
    assert isinstance(ran.exception, InputError)
