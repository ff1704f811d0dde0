"""Sets given by file: bad input is one line that says what to do, and leaves no results."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import QUICK, REPORTS, STUDIES, Folder, check_whole, drawn, labels, numbers, read
from xgem.types import InputError


def edited(place: Path, old: str, new: str) -> None:
    table = place / "set.csv"
    table.write_text(table.read_text().replace(old, new))


def chexgenbench(place: Path) -> Path:
    """The same images by CheXGenBench's own table."""
    with (place / "set.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    (place / "set.csv").unlink()
    with (place / "prompt_INFO.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["prompt", "img_savename"])
        table.writerows([[f"prompt {i}", row["file"]] for i, row in enumerate(rows)])
    return place


def missing_image(real: Path, made: Path) -> None:
    (made / "3.png").unlink()


def unreadable_image(real: Path, made: Path) -> None:
    (made / "3.png").write_bytes(b"no image at all")


def mixed_sizes(real: Path, made: Path) -> None:
    drawn(np.random.default_rng(9), 0, 64).save(made / "3.png")


def no_file_column(real: Path, made: Path) -> None:
    edited(made, "file,", "name,")


def wrong_label(real: Path, made: Path) -> None:
    edited(real, "'Edema': 1.0", "'Edema': 2.0")


def wrong_class(real: Path, made: Path) -> None:
    edited(real, "Edema", "Oedema")


def overlap(real: Path, made: Path) -> None:
    shutil.copy(real / "2.png", made / "5.png")


def strangers(real: Path, made: Path) -> None:
    edited(made, "s", "t")


def twice(real: Path, made: Path) -> None:
    edited(made, "s3", "s4")


def nothing(real: Path, made: Path) -> None:
    shutil.rmtree(made)


def two_tables(real: Path, made: Path) -> None:
    shutil.copy(made / "set.csv", made / "other.csv")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (missing_image, r"1 of 8 files are missing, first \S+3\.png"),
        (unreadable_image, r"3\.png"),
        (mixed_sizes, r"mixed sizes, \S+ 48 x 48 and \S*3\.png 64 x 64; .*\(--pad\)"),
        (no_file_column, r"columns name, id, chexpert_labels .read as UTF-8, comma.; expected one of file, file_name"),
        (wrong_label, r"line 3: Edema is 2\.0, expected 1, 0, -1 \(uncertain\) or empty"),
        (wrong_class, r"unknown class 'Oedema'; expected CheXpert's"),
        (overlap, r"real and generated overlap: \S+5\.png is \S+2\.png"),
        (strangers, r"names one of the 8 of real .'t0' for one, against 's0'.; a column `pair`"),
        (twice, r"duplicate id 's4'"),
        (nothing, r"made: expected a manifest \(\.parquet, \.jsonl\), a folder of images or a table"),
        (two_tables, r"several CSVs \(other\.csv, set\.csv\)"),
    ],
)
def test_bad_sets_are_one_line_and_leave_no_results(
    xgem: Any, folder: Folder, tmp_path: Path, spoil: Callable[[Path, Path], None], said: str
) -> None:
    real, made = (folder(name, seed=seed, chexpert_labels=labels) for seed, name in enumerate(("real", "made")))
    spoil(real, made)
    told = ("--real", real, "--generated", made, "--training", real_copy(real), "--out", tmp_path / "out")
    ran = xgem("eval", "factual", *told)
    assert ran.code in (1, 2)
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    assert re.search(said, ran.err), ran.err
    assert not list(tmp_path.glob("out/*.*"))


def real_copy(real: Path) -> Path:
    """Other images with the real set's table."""
    place = real.parent / "training"
    shutil.copytree(real, place)
    for file in place.glob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    return place


def test_mixed_sizes_are_taken_with_pad_and_chexgenbenchs_tables_as_they_are(
    xgem: Any, folder: Folder, tmp_path: Path
) -> None:
    real, training = folder("real", chexpert_labels=labels), folder("training", seed=1, chexpert_labels=labels)
    made = chexgenbench(folder("made", seed=2, side=32))
    drawn(np.random.default_rng(9), 0, 64).save(made / "3.png")
    told = ["eval", "fidelity", "--real", real, "--generated", made, "--training", training, "--no-per-finding", *QUICK]
    told += ["--extractor", "xgem-classifier"]
    assert xgem(*told, "--out", tmp_path / "refused").err.count("mixed sizes") == 1
    ran = xgem(*told, "--out", tmp_path / "out", "--pad")
    assert ran.code == 0, ran.err
    check_whole(tmp_path / "out", "fidelity")
    assert read(tmp_path / "out", "fidelity")["families"][0]["metrics"][0]["value"]["value"] > 0


def test_too_few_images_are_counted(xgem: Any, folder: Folder, tmp_path: Path) -> None:
    real, made = folder("real"), folder("made", n=3, seed=1)
    told = ("--real", real, "--generated", made, "--extractor", "rad-dino", "--out", tmp_path / "out")
    ran = xgem("eval", "fidelity", *told)
    assert ran.code == 2
    assert "real has 8 images and generated 3: fidelity needs at least 6" in ran.err


def test_one_class_alone_is_not_computed(xgem: Any, folder: Folder, tmp_path: Path) -> None:
    training = folder("training", seed=2, chexpert_labels=labels)
    real = folder("real", chexpert_labels=lambda i: "{'Edema': 1.0}")
    made = folder("made", seed=1)
    told = ["--real", real, "--generated", made, "--training", training, "--out", tmp_path / "out", *QUICK]
    ran = xgem("eval", "factual", *told)
    assert ran.code == 0, ran.err
    found = numbers(read(tmp_path / "out", "factual"), "factual")["auroc_macro  xgem-classifier"]
    assert "value" not in found
    assert "none with 5 positives and negatives" in found["not_computed"]
    unlabelled = folder("unlabelled", seed=3)
    told = ["--real", real, "--generated", made, "--training", unlabelled, "--out", tmp_path / "two", *QUICK]
    told += ["--judge", "train"]
    assert xgem("eval", "factual", *told).code == 0
    found = numbers(read(tmp_path / "two", "factual"), "factual")["auroc_macro  xgem-classifier"]
    assert "no CheXpert class with positives and negatives" in found["not_computed"]


def test_reports(xgem: Any, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty ones, other seeds, and results that lie there already."""
    real = folder("real", report=lambda i: REPORTS[i % 3][0])
    made = folder("made", seed=1, report=lambda i: "" if i == 4 else REPORTS[(i + i // 4) % 3][0])
    told = ["eval", "text", "--real", real, "--generated", made, *QUICK]
    assert xgem(*told, "--out", tmp_path / "one").code == 0
    one = read(tmp_path / "one", "text")["families"]
    assert one[0]["settings"]["seed"] == 0
    assert numbers(read(tmp_path / "one", "text"), "text")["empty_reports  "]["value"]["value"] == 1 / 8
    assert xgem(*told, "--out", tmp_path / "two", "--seed", 5).code == 0
    two = read(tmp_path / "two", "text")["families"]
    first, second = (record[0]["metrics"][0]["value"] for record in (one, two))
    assert second["value"] == first["value"]
    assert second["low"] != first["low"]
    with monkeypatch.context() as patched:
        patched.setattr("xgem.data.set_files.read_set", None)
        ran = xgem(*told, "--out", tmp_path / "two")
        assert (ran.code, ran.err.count("\n"), "pass --overwrite" in ran.err) == (1, 1, True)
    assert xgem(*told, "--out", tmp_path / "two", "--overwrite").code == 0
    assert read(tmp_path / "two", "text")["families"] == one
    edited(real, REPORTS[0][0], "")
    ran = xgem(*told, "--out", tmp_path / "fewer")
    assert ran.code == 0
    (fewer,) = read(tmp_path / "fewer", "text")["families"]
    assert fewer["details"]["real studies left out, without a report"] > 0
    silent = folder("silent", seed=1, report=lambda i: "")
    ran = xgem("eval", "text", "--real", real, "--generated", silent, "--out", tmp_path / "three")
    assert "no reports; these metrics need" in ran.err
    ran = xgem(*told, "--out", tmp_path / "three", "--real-labels", real / "set.csv")
    assert (ran.code, "expected both or neither" in ran.err) == (2, True)


def test_privacy_takes_the_held_out_split_that_is_named(
    xgem: Any, manifest: Path, folder: Folder, tmp_path: Path
) -> None:
    made = folder("made", seed=7, side=32)
    told = ["eval", "privacy", "--training", manifest, "--generated", made, *QUICK]
    told += ["--extractor", f"rad-dino={tmp_path / 'absent'}"]
    ran = xgem(*told, "--out", tmp_path / "out", "--split", "test")
    assert ran.code == 2
    assert "nothing in it for split 'test'" in ran.err
    ran = xgem(*told, "--out", tmp_path / "out", "--split", "train")
    assert ran.code == 2
    assert "of its patients are in training too" in ran.err
    assert xgem(*told, "--out", tmp_path / "out").code == 0
    record = read(tmp_path / "out", "privacy")
    assert record["families"][0]["settings"]["size"] == 32
    assert numbers(record, "privacy")["pixel_distance  "]["references"]["held-out real"]["value"]["n"] == STUDIES


def test_training_images_are_no_yardstick_for_themselves(xgem: Any, folder: Folder, tmp_path: Path) -> None:
    real, made = folder("real", chexpert_labels=labels), folder("made", seed=1)
    ran = xgem("eval", "factual", "--real", real, "--generated", made, "--training", real, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "real and training overlap" in ran.err


def test_amounts_of_utility_reach_the_protocols(
    xgem: Any, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def evaluate(*_: Any, **options: Any) -> Any:
        asked.update(options)
        raise InputError("enough")

    monkeypatch.setattr("xgem.eval.families.utility.evaluate", evaluate)
    real, made = folder("real", chexpert_labels=labels), folder("made", seed=1, chexpert_labels=labels)
    told = ["eval", "utility", "--real", real, "--test", real, "--generated", made, "--out", tmp_path / "out"]
    assert xgem(*told, "--suite", "few-shot", "--shots", "1,5", "--classes", "Edema, Fracture").code == 2
    assert asked["suite_options"] == {"shots": [1, 5]}
    assert asked["classes"] == ["Edema", "Fracture"]
    assert xgem(*told, "--multiples", "1,5", "--fractions", "0.1").code == 2
    assert asked["suite_options"] == {"multiples": [1.0, 5.0], "fractions": [0.1]}
    for wrong in ("x", "0", "-1", "1.5"):
        ran = xgem(*told, "--shots", wrong)
        assert (ran.code, f"--shots {wrong}: expected positive numbers" in ran.err) == (2, True)
