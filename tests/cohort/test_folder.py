"""The folder of a cohort beside other processes, and a run that is interrupted by Ctrl-C."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from xgem.cohort.folder import FINAL, Folder


def test_a_part_that_another_process_removes_meanwhile_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch counts from its record on; whoever made it may still be clearing its place when another one collects."""
    folder = Folder(tmp_path / "cohort")
    folder.begin({"count": 1})
    part = folder.state / "parts" / "00-0000000"
    (part / "images").mkdir(parents=True)
    remove = shutil.rmtree

    def after_the_other(place: Path, *rest: Any, **options: Any) -> None:
        remove(place)
        remove(place, *rest, **options)

    monkeypatch.setattr(shutil, "rmtree", after_the_other)
    folder.tidy([])
    assert list((folder.state / "parts").iterdir()) == []


@pytest.mark.parametrize("moment", ["images", "record"])
def test_interrupted_and_resumed_it_is_the_unbroken_one(
    xgem: Any, write_plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """SIGINT is a KeyboardInterrupt between any two lines: here in the second batch, or just before its record."""
    plan = write_plan(outputs=["frontal", "lateral"], balanced={"findings": ["Edema", "Fracture"], "count": 6})
    options = ["--device", "cpu", "--threads", 1, "--no-progress"]
    assert xgem("cohort", plan, "--out", tmp_path / "whole", *options).code == 0
    kind, name = ("xgem.cohort.run._write", "_write") if moment == "images" else ("xgem.cohort.folder.Folder.keep", "")
    from xgem.cohort import run

    original = run._write if name else Folder.keep
    left = iter(range(6 if name else 1))

    def stop(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(kind, stop)
        ran = xgem("cohort", plan, "--out", tmp_path / "broken", *options)
    assert (ran.code, ran.err) == (130, "xgem: interrupted; finished batches are kept, and the same command goes on\n")
    assert not (tmp_path / "broken" / "cohort.json").exists()
    assert len(list((tmp_path / "broken" / ".cohort" / "batches").iterdir())) == 1
    assert xgem("cohort", plan, "--out", tmp_path / "broken", *options).code == 0
    whole, broken = (
        {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (tmp_path / "whole", tmp_path / "broken")
    )
    assert set(FINAL) < set(whole)
    assert whole == broken
