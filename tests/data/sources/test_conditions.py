"""Published layouts in the conditions that users met: read right, or refused with the cause."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest
from xgem.types import DataError

BOXES = "Image Index,Finding Label,Bbox [x,y,w,h]"


def prepared(cases_dir: Path, source: str, name: str, tmp_path: Path) -> Manifest:
    return importlib.import_module(f"xgem.data.sources.{source}").prepare(
        cases_dir / "tables" / name, tmp_path / "m.jsonl"
    )


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("openi", "unquoted_comma", r"line 2 has \d+ cells.*first one too many.*put quotes around"),
        ("openi", "quote_swallows", "line 3: not a row of a CSV table"),
        ("openi", "semicolon", r"line 2 has 7 cells, the header \(UTF-8, semicolon\) has 8"),
        ("openi", "uid_float", r"no study id of the images is among those of the reports, '1' .* against '1\.0'"),
        ("openi", "uid_zero", "'1' for one against '0001'"),
        ("openi", "two_copies", "is in images_normalized and thumbs; keep one of them"),
        ("segmentations", "seg_antialias", "mask 'p_1_000.png' of p_1.jpg"),
        ("segmentations", "seg_jpegmask", "mask 'p_1_000.png' of p_1.jpg"),
        ("segmentations", "seg_exif_mask_raw", "make them equal"),
    ],
)
def test_refused(cases_dir: Path, tmp_path: Path, source: str, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        prepared(cases_dir, source, name, tmp_path)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_copies_of_an_archive_are_no_images(cases_dir: Path, tmp_path: Path) -> None:
    assert len(ImageFiles(cases_dir / "tables" / "appledouble")) == 8
    assert len(prepared(cases_dir, "openi", "appledouble", tmp_path).rows) == 8


def test_words_for_nothing_are_no_report(cases_dir: Path, tmp_path: Path) -> None:
    studies = prepared(cases_dir, "openi", "na_words", tmp_path).studies()
    assert [study.impression for study in studies] == [""] * len(studies)
    assert all(study.findings for study in studies)


def test_a_table_in_another_encoding_keeps_its_accents(cases_dir: Path, tmp_path: Path) -> None:
    assert "atélectasie à gauche" in prepared(cases_dir, "openi", "latin1", tmp_path).studies()[0].findings


def test_other_names_of_splits(cases_dir: Path, tmp_path: Path) -> None:
    studies = prepared(cases_dir, "openi", "ours_valid", tmp_path).studies()
    assert [study.split for study in studies] == ["train", "train", "train", "val"]


def test_an_upright_mask_of_a_rotated_image(cases_dir: Path, tmp_path: Path) -> None:
    (study,) = prepared(cases_dir, "segmentations", "seg_exif_mask_upright", tmp_path).studies()
    assert set(study.masks) == {"left lung"}


@pytest.mark.parametrize("name", ["nih_sex", "nih_test_paths", "nih_box_official"])
def test_nih_as_published(cases_dir: Path, tmp_path: Path, name: str) -> None:
    studies = prepared(cases_dir, "nih", name, tmp_path).studies()
    assert [(study.sex, study.age) for study in studies[:3]] == [("M", 61), ("F", None), ("F", pytest.approx(11 / 12))]
    if name == "nih_test_paths":
        assert [study.split == "test" for study in studies] == [True, True, False, False]
    if name == "nih_box_official":
        assert [box.label for box in studies[0].boxes] == ["infiltrate"]


def test_a_test_list_or_boxes_of_other_images_are_refused(cases_dir: Path, tmp_path: Path) -> None:
    for name, file, text in (
        ("nih_test_paths", "test_list.txt", "other.png\n"),
        ("nih_box_official", "BBox_List_2017_Official_NIH.csv", f"{BOXES}\no.png,Mass,1,1,9,9\n"),
    ):
        folder = tmp_path / name
        shutil.copytree(cases_dir / "tables" / name, folder, copy_function=shutil.copy)
        folder.chmod(0o755)
        (folder / file).chmod(0o644)
        (folder / file).write_text(text)
        module = importlib.import_module("xgem.data.sources.nih")
        with pytest.raises(DataError, match="correct or remove it"):
            module.prepare(folder, tmp_path / "m.jsonl")


def test_a_path_in_the_table_says_which_of_two_files_it_is(tmp_path: Path) -> None:
    for place in ("a/1.png", "b/1.png", "b/2.png", "b/.2.png", "__MACOSX/b/2.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    files = ImageFiles(tmp_path)
    assert len(files) == 3
    assert files.find("a/1.png") == tmp_path / "a/1.png"
    assert files.find("old/place/b/2.png") == tmp_path / "b/2.png"
    assert files.find("2.jpg") is None
    assert files.find("2.jpg", any_ending=True) == tmp_path / "b/2.png"
    with pytest.raises(DataError, match=r"1\.png is in a and b"):
        files.find("1.png")
