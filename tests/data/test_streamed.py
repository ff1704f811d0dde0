"""A manifest read from the disk in parts has the studies of the manifest read as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.streamed import StreamedManifest
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
    with pytest.raises(ManifestError, match=r"study 's30': age"):
        StreamedManifest(path, tmp_path).part("train", range(7))
    changed(0, impression="Other.")
    with pytest.raises(ManifestError, match="'s30' differs in impression"):
        StreamedManifest(path, tmp_path).part("train", range(7))
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="no rows"):
        StreamedManifest(path, tmp_path)
