"""Options of reading: one way in for doubtful images, kept in the manifest, on every command that reads radiographs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import xgem.data
from tests.data.conftest import chest_like
from xgem.cli import app
from xgem.configs.components import TransformConfig
from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.export import write_imagefolder
from xgem.data.manifest import Manifest
from xgem.data.prepare import prepare_images
from xgem.data.rows import Row
from xgem.data.set_files import read_set
from xgem.data.transforms import Notes
from xgem.types import ImageError, InputError

CONFIG = TransformConfig(size=32)
FLAGS = {"--voi", "--rescale", "--invert", "--allow-any"}
READING = [
    "generate", "data prepare", "data check", "data show",
    *(f"eval {name}" for name in ("fidelity", "text", "factual", "consistency", "privacy", "utility", "fairness")),
]  # fmt: skip
"""Commands that read radiographs of the user."""


def options_of(command: str) -> set[str]:
    found: Any = typer.main.get_command(app)
    for name in command.split():
        found = found.get_command(None, name)
    return {flag for parameter in found.params for flag in parameter.opts}


@pytest.mark.parametrize("command", READING)
def test_each_command_that_reads_radiographs_takes_the_options(command: str) -> None:
    assert options_of(command) >= FLAGS


def test_options_in_one_place_win_over_those_of_another() -> None:
    first, second = ReadOptions(invert=True), ReadOptions(invert=False, rescale="minmax")
    assert first.over(second) == ReadOptions(invert=True, rescale="minmax")
    assert AS_STATED.model_dump() == {}
    assert AS_STATED.on(CONFIG) is CONFIG
    assert first.over(second).on(CONFIG) == TransformConfig(size=32, invert=True, rescale="minmax")
    assert ReadOptions.common([first, first]) == first
    assert ReadOptions.common([first, second]) is None
    assert ReadOptions.common([]) == AS_STATED


@pytest.fixture
def feet(tmp_path: Path, write_dicom: Any) -> Path:
    """A folder of DICOM files whose headers state another body part."""
    for number in range(2):
        tags = {
            "StudyInstanceUID": f"1.2.{number}",
            "PatientID": f"p{number}",
            "SOPInstanceUID": f"1.2.{number}.1",
            "ViewPosition": "PA",
        }
        write_dicom(chest_like(64, 64 + number), name=f"{number}.dcm", BodyPartExamined="FOOT", **tags)
    (tmp_path / "export").mkdir()
    for file in tmp_path.glob("*.dcm"):
        file.rename(tmp_path / "export" / file.name)
    return tmp_path / "export"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    if done.exception is not None:
        raise done.exception
    return done.output


def test_what_prepare_accepts_is_accepted_by_all_that_read_the_manifest(feet: Path, tmp_path: Path) -> None:
    out = tmp_path / "feet.parquet"
    with pytest.raises(xgem.types.DataError, match=r"body part FOOT.*--allow-any"):
        run("data", "prepare", "dicom", feet, "--out", out)
    run("data", "prepare", "dicom", feet, "--out", out, "--allow-any")
    made = Manifest.read(out)
    assert [row.reading for row in made.rows] == [ReadOptions(allow_any=True)] * 2
    run("data", "check", out, "--images")
    made = Manifest(tuple(row.model_copy(update={"split": "train"}) for row in made.rows), made.root)
    prepared = prepare_images(made, "train", CONFIG, tmp_path / "cache", progress=False)
    assert len(prepared.values) == 2
    assert read_set(out, pad=True).images(32).shape == (2, 32, 32)
    assert len([xgem.data.load_dataset(out)[k] for k in range(2)]) == 2
    run("data", "show", out, "--out", tmp_path / "page.png")
    assert sum(write_imagefolder(made, tmp_path / "folder").values()) == 2

    # A manifest that says nothing is read as before: strictly, unless the command is told otherwise.
    strict = Manifest(tuple(row.model_copy(update={"reading": AS_STATED}) for row in made.rows), made.root)
    strict.write(out)
    with pytest.raises(ImageError, match="body part FOOT"):
        prepare_images(strict, "train", CONFIG, tmp_path / "cache", progress=False)
    with pytest.raises(InputError, match="body part FOOT"):
        run("data", "check", out, "--images")
    run("data", "check", out, "--images", "--allow-any")
    with pytest.raises(ImageError, match="body part FOOT"):
        read_set(out, pad=True).images(32)
    assert len(read_set(out, pad=True, reading=ReadOptions(allow_any=True)).images(32)) == 2


@pytest.fixture
def one(tmp_path: Path) -> Manifest:
    Image.fromarray(chest_like(64, 64)).save(tmp_path / "a.png")
    row = Row(study="s", subject="p", split="train", view="frontal", file="a.png")
    return Manifest((row,), tmp_path)


def test_training_and_sets_read_as_the_manifest_says(one: Manifest, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = prepare_images(one, "train", CONFIG, cache, progress=False)
    turned = one.read_as(ReadOptions(invert=True))
    other = prepare_images(turned, "train", CONFIG, cache, progress=False)
    np.testing.assert_allclose(other.values[:].int() + plain.values[:].int(), 255, atol=1)
    assert plain.sha256 != other.sha256
    # The file's way wins over the preset's, and what it leaves open is the preset's.
    preset = TransformConfig(size=32, invert=True)
    same = prepare_images(one.read_as(ReadOptions(invert=False)), "train", preset, cache, progress=False)
    np.testing.assert_array_equal(same.values[:], plain.values[:])

    one.write(tmp_path / "plain.jsonl")
    turned.write(tmp_path / "turned.jsonl")
    first, second = read_set(tmp_path / "plain.jsonl"), read_set(tmp_path / "turned.jsonl", name="plain")
    np.testing.assert_allclose(first.images().astype(int) + second.images(), 255, atol=1)
    assert first.sha256 != second.sha256
    given = read_set(tmp_path / "turned.jsonl", reading=ReadOptions(invert=False))
    np.testing.assert_array_equal(given.images(), first.images())


def test_prepare_keeps_the_options_of_a_table(one: Manifest, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,view\na.png,frontal\n")
    out = tmp_path / "m.jsonl"
    run("data", "prepare", "csv", tmp_path / "t.csv", "--out", out, "--rescale", "minmax", "--invert")
    assert json.loads(out.read_text())["reading"] == {"rescale": "minmax", "invert": True}
    run("data", "prepare", "csv", tmp_path / "t.csv", "--out", out, "--overwrite")
    assert "reading" not in json.loads(out.read_text())


def test_real_sets_are_read_as_told_and_generated_ones_as_they_are(one: Manifest, tmp_path: Path) -> None:
    from xgem.cli.set_options import Sets

    sets = Sets(generated=tmp_path, out=tmp_path / "out", invert=True)
    real, made = sets.read(tmp_path, "real"), sets.read(tmp_path, "generated")
    assert (real.items[0].reading, made.items[0].reading) == (ReadOptions(invert=True), AS_STATED)


def test_notes_are_a_line_per_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        Image.fromarray(chest_like(64, 64, bits=12 - (number == 2))).save(tmp_path / f"{number}.png")
    Image.fromarray(chest_like(64, 64)).save(tmp_path / "3.png")
    found = read_set(tmp_path)
    with caplog.at_level(logging.WARNING):
        found.images()
        found.images()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        f"{tmp_path.name}: 3 of 4 images, first {tmp_path / '0.png'}: values 0 to 4095"
    )


def test_notes_of_different_kinds_are_counted_apart(caplog: pytest.LogCaptureFixture) -> None:
    noted = Notes()
    for name, notes in (("b", ["5 % of 16 bits"]), ("a", ["7.5 % of 16 bits", "a negative"]), ("c", [])):
        noted.add(notes, name)
    with caplog.at_level(logging.WARNING):
        noted.log()
    assert caplog.messages == ["2 of 3 images, first a: 7.5 % of 16 bits", "1 of 3 images, first a: a negative"]
