"""``xgem generate`` of many cases, and reports from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import drawn
from xgem.pipeline.generation import Generation
from xgem.pipeline.replay import replay

QUICK = ("--num-inference-steps", 2, "--device", "cpu", "--no-progress")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Folders of three frontals, laterals and reports of the same names, with files that are no input."""
    rng = np.random.default_rng(0)
    for view in ("frontals", "laterals", "reports"):
        (tmp_path / view).mkdir()
    for k, name in enumerate(("b", "a", "c")):
        for view in ("frontals", "laterals"):
            drawn(rng, k, 64).save(tmp_path / view / f"{name}.png")
        (tmp_path / "reports" / f"{name}.txt").write_text(f"\ufeffCardiomegaly {k}.\n", encoding="utf-8")
    for other in (".b.png", "a.mask.png", "notes.txt"):
        (tmp_path / "frontals" / other).write_bytes(b"x")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_folder_gives_a_folder_a_case(xgem: Any, model: Path, studies: Path) -> None:
    out = studies / "out"
    command = ("generate", "--frontal", studies / "frontals", "--outputs", "lateral,report", "--model", model, *QUICK)
    ran = xgem(*command, "--out", out, "--seed", 3)
    assert ran.code == 0, ran.err
    expected = [out / name / file for name in "abc" for file in ("lateral.png", "report.txt")]
    assert ran.out.splitlines() == [str(path) for path in expected]
    assert {path.name for path in out.iterdir()} == {"a", "b", "c", "cases.json"}
    # Each case is what it would have been alone, but for the size of its batch.
    assert xgem(*command, "--out", studies / "one", "--seed", 3, "--batch-size", 1).code == 0
    alone = ("generate", "--frontal", studies / "frontals" / "b.png", *command[3:], "--seed", 3)
    assert xgem(*alone, "--out", studies / "alone").code == 0
    for file in ("lateral.png", "report.txt"):
        assert (studies / "one" / "b" / file).read_bytes() == (studies / "alone" / file).read_bytes()
    frontal = studies / "frontals" / "b.png"
    assert replay(out / "b" / "lateral.png", model=model, inputs={"frontal": frontal}, progress=False).identical


def test_files_manifests_and_texts_are_matched_by_name(
    xgem: Any, model: Path, studies: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(studies)
    files = ("--frontal", "frontals/a.png", "frontals/c.png")
    ran = xgem("generate", *files, "--report", "Edema.", "--outputs", "lateral", "--out", "1", "--model", model, *QUICK)
    assert ran.code == 0, ran.err
    assert [path.parent.name for path in map(Path, ran.out.splitlines())] == ["a", "c"]
    record = json.loads(Path("1/c/generation.json").read_text())
    assert record["inputs"]["frontal"]["origin"] == "c.png"
    assert record["inputs"]["report"]["text"] == "Edema."
    ran = xgem(
        "generate", "--frontal", "frontals", "--report", "@reports", "--outputs", "lateral", "--out", "2",
        "--model", model, *QUICK, "--json",
    )  # fmt: skip
    texts = [record["inputs"]["report"]["text"] for record in json.loads(ran.out)]
    assert texts == ["Cardiomegaly 1.", "Cardiomegaly 0.", "Cardiomegaly 2."]
    ran = xgem("generate", "--frontal", manifest, "--outputs", "report", "--out", "3", "--model", model, *QUICK)
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 24
    assert Path("3/val11/report.txt").is_file()


def test_an_interrupted_run_goes_on_and_ends_the_same(
    xgem: Any, model: Path, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("generate", "--frontal", studies / "frontals", "--outputs", "lateral", "--model", model, *QUICK)
    options = ("--batch-size", 2)
    save = Generation.save
    saved: list[str] = []

    def stop(self: Generation, directory: Any, **options: Any) -> Any:
        if saved:
            raise KeyboardInterrupt
        saved.append(Path(directory).name)
        return save(self, directory, **options)

    monkeypatch.setattr(Generation, "save", stop)
    out = studies / "out"
    ran = xgem(*command, *options, "--out", out)
    assert (ran.code, ran.err.count("the same command goes on")) == (130, 1)
    assert {path.name for path in out.iterdir()} == {"a", "cases.json"}
    monkeypatch.undo()
    first = contents(out)
    seed = json.loads(first["cases.json"])["seed"]  # drawn, and kept
    ran = xgem(*command, *options, "--out", out)
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 3
    assert xgem(*command, *options, "--out", studies / "whole", "--seed", seed).code == 0
    assert contents(out) == contents(studies / "whole")
    monkeypatch.setattr("xgem.pipeline.pipeline.XgemPipeline._generate", lambda *_: pytest.fail("generated again"))
    assert xgem(*command, *options, "--out", out).code == 0
    for other in (("--seed", seed + 1), ("--guidance-scale", 2), ("--report", "Edema.")):
        ran = xgem(*command, *options, "--out", out, *other)
        assert (ran.code, "was begun with another" in ran.err, ran.err.count("\n")) == (1, True, 1), ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frontal", "frontals", "--lateral", "two"), "1 cases are not in both --frontal and --lateral, first 'c'"),
        (("--frontal", "frontals/a.png", "laterals/a.png"), "--frontal: two inputs are named 'a'"),
        (("--frontal", "empty"), "empty: nothing in it can be the input 'frontal'"),
        (("--frontal", "frontals", "--image", "report=x"), "--image and several cases"),
        (("--frontal", "frontals", "--input", "frontal=x"), "input 'frontal' is given twice"),
        (("--frontal", "none.parquet"), "none.parquet: no such manifest"),
        (("frontals/a.png",), "frontals/a.png belongs to no option; give files after --frontal"),
        (("--report", "reports/a.txt"), "--report is the name of a file, reports/a.txt; to read the report from it, "),
        (("--report", "@reports/none.txt"), "reports/none.txt: cannot be read (No such file"),
        (("--report", "@frontals/a.png"), "frontals/a.png: not text in UTF-8; convert it"),
    ],
)
def test_what_cannot_be_made_of_many_cases(
    xgem: Any, model: Path, studies: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(studies)
    (studies / "empty").mkdir()
    (studies / "two").mkdir()
    for name in "ab":
        (studies / "laterals" / f"{name}.png").rename(studies / "two" / f"{name}.png")
    (studies / "laterals" / "a.png").write_bytes((studies / "two" / "a.png").read_bytes())
    outputs = "frontal" if arguments[0] == "--report" else "report"
    ran = xgem("generate", *arguments, "--outputs", outputs, "--out", "out", "--model", model, *QUICK)
    assert (ran.code, message in ran.err, ran.err.count("\n"), ran.out) == (2, True, 1, ""), ran.err
    assert not (studies / "out").exists()


def test_a_bad_case_stops_and_leaves_nothing_half_written(xgem: Any, model: Path, studies: Path) -> None:
    (studies / "frontals" / "b.png").write_bytes(b"no image")
    command = ("generate", "--frontal", studies / "frontals", "--outputs", "report", "--model", model, *QUICK)
    ran = xgem(*command, "--batch-size", 1, "--out", studies / "out", "--seed", 1)
    assert (ran.code, "b.png" in ran.err, ran.err.count("\n")) == (2, True, 1)
    assert {path.name for path in (studies / "out").iterdir()} == {"a", "cases.json"}
    Image.fromarray(np.uint8(np.add.outer(np.arange(64), 2 * np.arange(64)))).save(studies / "frontals" / "b.png")
    assert xgem(*command, "--batch-size", 1, "--out", studies / "out").code == 0


def test_a_report_is_read_from_a_file(xgem: Any, model: Path, studies: Path) -> None:
    out, text = studies / "out", studies / "reports" / "a.txt"
    command = ("generate", "--outputs", "frontal", "--model", model, *QUICK, "--seed", 1)
    assert xgem(*command, "--report", f"@{text}", "--out", out).code == 0
    record = json.loads((out / "generation.json").read_text())
    assert record["inputs"]["report"]["text"] == "Cardiomegaly 1."
    assert xgem(*command, "--report", "Cardiomegaly 1.", "--out", studies / "same").code == 0
    assert (out / "frontal.png").read_bytes() == (studies / "same" / "frontal.png").read_bytes()
    ran = xgem("replay", out / "frontal.png", "--report", f"@{text}", "--out", studies / "again", "--model", model)
    assert ran.code == 0, ran.err
