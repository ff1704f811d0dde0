"""A manifest read from the disk in parts has the studies of the manifest read as a whole."""

from __future__ import annotations

import gc
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.streamed import StreamedManifest
from xgem.data.study import Study
from xgem.types import ManifestError


@pytest.fixture
def rows() -> tuple[Row, ...]:
    """Studies out of order whose rows are not next to each other."""
    made = []
    for number in (*range(30, 9, -1), *range(10, 31, 2)):
        split = ("train", "val", "test")[number % 3]
        text = f"Study {number}:\u2028clear \u00e9."
        many = [row for row in made if row.study == f"s{number}"]
        boxes = [{"label": "mass", "x": 0.1, "y": 0.1, "w": 0.2, "h": 0.2}] if number % 5 == 0 else []
        record = {"study": f"s{number}", "subject": f"p{number}", "split": split, "impression": text}
        record |= {"view": "frontal", "file": f"{number}-{len(many)}.png", "boxes": boxes}
        made.append(Row.model_validate(record))
    return tuple(made)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_parts_are_the_whole(ending: str, rows: tuple[Row, ...], tmp_path: Path) -> None:
    whole = Manifest(rows, tmp_path)
    whole.write(tmp_path / f"m{ending}")
    (tmp_path / "work").mkdir()
    read = StreamedManifest(tmp_path / f"m{ending}", tmp_path / "work")
    for split in ("train", "val", "test"):
        expected = whole.studies(split)
        assert read.count(split) == len(expected) == 7
        for size in (1, 3, 7):
            parts = [range(start, min(7, start + size)) for start in range(0, 7, size)]
            assert [study for part in parts for study in read.part(split, part).studies(split)] == expected
    again = StreamedManifest(tmp_path / f"m{ending}", tmp_path / "work")
    assert again.part("val", range(2)) == read.part("val", range(2))
    read.remove_copy()
    assert not list((tmp_path / "work").iterdir())
    assert (tmp_path / f"m{ending}").exists()


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_studies_and_images_are_those_of_the_whole(ending: str, tmp_path: Path) -> None:
    """Several views and images a study, read in several ways; reports without an image; names as they are written."""
    made: list[dict[str, Any]] = []
    for number in range(4):
        of_study: dict[str, Any] = {"study": f"s{number}", "subject": f"p{number}", "split": "train"}
        of_study |= {"impression": "Clear."} | ({"reading": {"invert": True}} if number == 2 else {})
        for view in ("lateral", None, "frontal", "frontal") if number else (None,):
            row = dict[str, Any](of_study)
            if number:
                row |= {"view": view, "file": f"a/../{number}-{len(made)}.png"}
            if number > 1 and view == "frontal":
                row["reading"] = {**row.get("reading", {}), "pixel_aspect": 1 + len(made) / 10}
            made.append(row)
    whole = Manifest(tuple(map(Row.model_validate, reversed(made))), tmp_path)
    whole.check(files=False)
    whole.write(tmp_path / f"m{ending}")
    with closing(StreamedManifest(tmp_path / f"m{ending}", tmp_path / "cache")) as read:
        assert list(read.studies("train")) == whole.studies("train")
        assert read.studies("train")[-1] == read.studies("train")[1:][2] == whole.studies("train")[3]
        files = list(read.image_files("train"))
        assert files == list(whole.image_files("train"))
        assert [len(of_study) for of_study in files] == [0, 3, 3, 3]
        assert {how.invert for _, how in files[2]} == {True}
        assert [how.pixel_aspect is None for _, how in files[3]] == [False, False, True]
        assert list(read.studies("val")) == list(read.image_files("val")) == []
        with pytest.raises(IndexError):
            read.studies("train")[4]


def test_rows_are_checked_once(rows: tuple[Row, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    Manifest(rows, tmp_path).write(path)
    with closing(StreamedManifest(path, tmp_path / "cache")) as first:
        expected = list(first.studies("train"))

    def refuse(self: StreamedManifest) -> None:
        raise AssertionError("checked again")

    with monkeypatch.context() as patched:
        patched.setattr(StreamedManifest, "_found", refuse)
        with closing(StreamedManifest(path, tmp_path / "cache")) as again:
            assert list(again.studies("train")) == expected
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with closing(StreamedManifest(path, tmp_path / "cache")) as again:
        assert list(again.studies("train")) == expected
    with monkeypatch.context() as patched:
        patched.setattr(StreamedManifest, "_found", refuse)
        StreamedManifest(path, tmp_path / "cache").close()
        Manifest(rows[1:], tmp_path).write(path)
        with pytest.raises(AssertionError, match="checked again"):  # another manifest
            StreamedManifest(path, tmp_path / "cache")


def test_studies_that_were_read_are_let_go(tmp_path: Path) -> None:
    common = {"split": "train", "impression": "Clear."}
    many = [Row.model_validate({"study": f"s{n}", "subject": f"p{n}", **common}) for n in range(600)]
    Manifest(tuple(many), tmp_path).write(tmp_path / "m.jsonl")

    def alive() -> int:
        return sum(type(one) is Study for one in gc.get_objects())

    with closing(StreamedManifest(tmp_path / "m.jsonl", tmp_path / "cache")) as data:
        studies, before, most = data.studies("train"), alive(), 0
        for number in range(len(studies)):
            assert studies[number].subject == f"p{sorted(range(600), key=str)[number]}"
            if number % 100 == 99:
                most = max(most, alive() - before)
        assert 0 < most <= 300


def test_what_is_wrong_with_a_row_is_said(rows: tuple[Row, ...], tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    Manifest(rows, tmp_path).write(path)
    lines = path.read_text(encoding="utf-8").split("\n")

    def changed(line: int, **fields: object) -> None:
        record = json.loads(lines[line]) | fields
        path.write_text("\n".join([*lines[:line], json.dumps(record), *lines[line + 1 :]]), encoding="utf-8")

    changed(4, split="dev")
    with pytest.raises(ManifestError, match=r"m\.jsonl: line 5: split"):
        StreamedManifest(path, tmp_path)
    changed(21, split="train")
    with pytest.raises(ManifestError, match=r"line 22: subject 'p10' is in split 'train' and in 'val'"):
        StreamedManifest(path, tmp_path)
    changed(0, age=200)
    with pytest.raises(ManifestError, match=r"line 1: age"):
        StreamedManifest(path, tmp_path)
    changed(0, impression="Other.")
    with pytest.raises(ManifestError, match="'s30' differs in impression"):
        StreamedManifest(path, tmp_path)
    changed(0, file=json.loads(lines[3])["file"])
    with pytest.raises(ManifestError, match=r"line 4: .*\.png is in line 1 already"):
        StreamedManifest(path, tmp_path)
    report = json.dumps({"study": "r", "subject": "r", "split": "test", "impression": "Clear."})
    path.write_text("\n".join([report, *lines[:-1], report]), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"study 'r' holds its report without an image twice, first in line 1"):
        StreamedManifest(path, tmp_path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="no rows"):
        StreamedManifest(path, tmp_path)
