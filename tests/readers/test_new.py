"""New studies: what is drawn, how it is made alike, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from tests.readers.conftest import a_plan, write_set
from xgem.readers.blinding import has_margin, has_marks, plain_report, tells
from xgem.readers.draw import draw
from xgem.readers.protocols import PROTOCOLS
from xgem.readers.study import Study, build, open_study
from xgem.readers.tables import MIGRATIONS, Base, ItemRow, ReaderRow, ShowingRow
from xgem.types import ConfigError, DataError, InputError, OutputError

OWN = {"name": "own", "title": "A", "question": "?", "shows": ["frontal"]}


def items_of(study: Study) -> list[ItemRow]:
    with Session(study.engine) as session:
        options = (undefer(ItemRow.arm), undefer(ItemRow.case))
        return list(session.scalars(select(ItemRow).options(*options)))


def test_protocol_of_xgem(plan_file: Callable[..., Path]) -> None:
    plan = a_plan(plan_file, items=10)
    drawn = draw(plan)
    assert len(plan.all_tasks) == 5
    for number, task in enumerate(plan.all_tasks):
        own = [one for one in drawn if one.task == number]
        assert Counter(one.arm for one in own) == {"real": 10, "mine": 10}
        assert len({one.case for one in own}) == 20
        assert set(task.scores) == {1, 2, 3, 4, 5}
        for one in own:
            for part, item in one.parts.items():
                generated = one.arm == "mine" and part in task.judged
                assert item.id.startswith("g" if generated else "r")
                assert item.pair == one.case
    judged = {task.name: (task.shows, task.judged) for task in plan.all_tasks}
    assert judged["report-of-pair"] == (("frontal", "lateral", "report"), ("report",))
    assert judged["xray-of-report"] == (("report", "frontal"), ("frontal",))
    assert judged["pair"] == (("frontal", "lateral"), ("lateral",))


def test_cases_are_used_again_only_when_all_were(plan_file: Callable[..., Path]) -> None:
    drawn = draw(a_plan(plan_file, items=3))
    used = Counter(one.case for one in drawn)  # 5 tasks of 6 cases each, of 24
    assert sorted(used.values()) == [1] * 18 + [2] * 6


def test_protocol_of_chexgen_shows_the_same_cases_of_every_model(
    plan_file: Callable[..., Path], sets: dict[str, Path]
) -> None:
    generated = {name: str(sets[name]) for name in ("mine", "other")}
    plan = a_plan(plan_file, protocol="chexgen", items=7, generated=generated)
    cases: dict[str, list[str]] = defaultdict(list)
    for one in draw(plan):
        cases[one.arm].append(one.case)
        assert one.parts["report"].id.startswith("r")
        assert one.parts["frontal"].id.startswith("g")
    assert list(cases) == ["mine", "other"]
    assert cases["mine"] == cases["other"]
    assert len(set(cases["mine"])) == 7
    (task,) = plan.all_tasks
    assert (task.low, task.high, sorted(task.labels)) == (-2, 2, [-2, -1, 0, 1, 2])
    assert PROTOCOLS["chexgen"].tasks[0].items == 150


def test_own_task_replaces_the_protocols_and_all_are_kept(new_study: Callable[..., Study]) -> None:
    study = new_study(tasks=[OWN | {"name": "pair", "items": 3}], turing=True)
    assert study.plan.tasks == study.plan.all_tasks
    assert {task.name: (task.items, task.turing) for task in study.plan.tasks} == {
        **dict.fromkeys(("xray-realism", "report-realism", "report-of-pair", "xray-of-report"), (2, True)),
        "pair": (3, False),
    }


def test_draw_follows_the_seed(plan_file: Callable[..., Path]) -> None:
    assert draw(a_plan(plan_file)) == draw(a_plan(plan_file))
    assert draw(a_plan(plan_file)) != draw(a_plan(plan_file, seed=4))


def test_pictures_of_all_arms_have_one_form(new_study: Callable[..., Study]) -> None:
    study = new_study()
    files = list(study.pictures.iterdir())
    assert len(files) == 4 * (1 + 2 + 1 + 2)
    assert study.size == 64
    assert len({file.stat().st_size for file in files}) == 1
    for file in files:
        with Image.open(file) as image:
            assert (image.mode, image.size, image.info) == ("L", (64, 64), {})
    assert {len(file.name) for file in files} == {36}


def test_generated_picture_on_the_grid_keeps_its_pixels(new_study: Callable[..., Study], sets: dict[str, Path]) -> None:
    study = new_study()
    shown = next(item for item in items_of(study) if item.arm == "mine" and item.task == 0)
    with Image.open(study.pictures / shown.shown["frontal"]) as image:
        ours = np.asarray(image)
    with Image.open(sets["mine"] / f"{shown.case.removeprefix('r')}-frontal.png") as image:
        assert np.array_equal(ours, np.asarray(image))


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_margins_that_one_arm_alone_has_are_told(
    plan_file: Callable[..., Path],
    sets: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fit: str,
) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(sets["real"], wide)
    rng = np.random.default_rng(0)
    for file in wide.glob("*.png"):
        Image.fromarray(rng.integers(1, 256, (72, 90), dtype=np.uint8)).save(file)
    build(a_plan(plan_file, fit=fit, real=str(wide)), tmp_path / "study")
    study = open_study(tmp_path / "study")
    assert study.size == 64
    first = next(item for item in items_of(study) if item.arm == "real" and item.task == 0)
    with Image.open(study.pictures / first.shown["frontal"]) as image:
        assert has_margin(np.asarray(image)) == (fit == "pad")
    told = [record.getMessage() for record in caplog.records if "margin" in record.getMessage()]
    assert any(line.startswith("frontal: 100% of real have a margin") for line in told) == (fit == "pad")
    assert bool(told) == (fit == "pad")


def test_lengths_that_one_arm_alone_has_are_told() -> None:
    assert tells({}, {"real": [5, 6, 9], "mine": [5, 7, 8]}) == []
    (line,) = tells({}, {"real": [5, 6, 9], "mine": [12, 9, 8]})
    assert "real 6, mine 9" in line


def test_reports_of_all_arms_are_written_alike(new_study: Callable[..., Study]) -> None:
    texts = {item.shown["report"] for item in items_of(new_study(items=6)) if "report" in item.shown}
    assert texts == {
        "The heart is normal in size. No effusion.",
        "Small left pleural effusion.",
        "No acute disease.",
        "Left effusion is seen.",
    }
    for text in texts:
        assert plain_report(text) == text
    assert plain_report("Findings: clear lungs. Impression: normal.") == "Clear lungs. Normal."
    assert plain_report("LUNGS\u2019 bases  clear\u2014no CT") == "Lungs' bases clear-no ct."


def test_reports_with_marks_can_be_left_out(plan_file: Callable[..., Path]) -> None:
    assert has_marks("In the ___ lung.")
    plan = a_plan(plan_file, drop_marked=True, items=6)
    reports = [one.parts["report"] for one in draw(plan) if "report" in one.parts]
    assert not any(has_marks(item.report) for item in reports)
    with pytest.raises(InputError, match="12 are left"):
        draw(a_plan(plan_file, drop_marked=True, items=13, protocol="chexgen"))


def test_every_reader_has_an_own_order_and_own_ids(new_study: Callable[..., Study]) -> None:
    study = new_study(items=6)
    with Session(study.engine) as session:
        rows = session.execute(
            select(ReaderRow.name, ShowingRow.id, ShowingRow.item_id, ItemRow.task)
            .join(ShowingRow, ShowingRow.reader_id == ReaderRow.id)
            .join(ItemRow, ItemRow.id == ShowingRow.item_id)
            .order_by(ReaderRow.name, ShowingRow.place)
        ).all()
    anna, ben = ([row for row in rows if row[0] == name] for name in ("anna", "ben"))
    assert len(anna) == len(ben) == 60
    assert {row[1] for row in anna}.isdisjoint(row[1] for row in ben)
    assert [row[2] for row in anna] != [row[2] for row in ben]
    assert {row[2] for row in anna} == {row[2] for row in ben}
    for one in (anna, ben):  # a task is not interrupted by another
        assert len([k for k in range(1, 60) if one[k][3] != one[k - 1][3]]) == 4


def test_migrations_make_the_tables_of_the_code(new_study: Callable[..., Study]) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from xgem.readers.tables import VERSION_TABLE

    study = new_study()
    assert (MIGRATIONS / "versions").is_dir()
    with study.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []
        assert context.get_current_revision() == "0001"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"protocol": "other"}, "protocol"),
        ({"readers": []}, "readers"),
        ({"readers": ["anna", "anna"]}, "twice"),
        ({"readers": ["<b>"]}, "expected up to 60 letters"),
        ({"generated": {"real": "x"}}, "cannot be named"),
        ({"protocol": None, "items": None}, "no tasks"),
        ({"real": None}, "no arm|needs"),
        ({"colour": 1}, "colour"),
        ({"tasks": [OWN | {"high": 20}]}, "scale"),
        ({"tasks": [OWN | {"generated": ["report"]}]}, "of shows"),
        ({"tasks": [OWN, OWN]}, "twice"),
        ({"protocol": "chexgen", "turing": True}, "turing"),
    ],
)  # fmt: skip
def test_plan_that_is_not_valid(plan_file: Callable[..., Path], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        a_plan(plan_file, **fields)
    assert "\n" not in str(refused.value)


def test_study_that_cannot_be_made_leaves_nothing(
    plan_file: Callable[..., Path], tmp_path: Path, sets: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match="13 items of"):
        build(a_plan(plan_file, items=13), tmp_path / "study")
    with pytest.raises(InputError, match="64 pixels a side"):
        build(a_plan(plan_file, size=70), tmp_path / "study")
    report_only = write_set(tmp_path / "none", real=True, cases=1)
    (report_only / "metadata.csv").write_text("id,report\na,\n", encoding="utf-8")
    with pytest.raises(DataError, match="no reports"):
        build(a_plan(plan_file, real={"set": str(sets["real"]), "report": str(report_only)}), tmp_path / "study")
    assert not (tmp_path / "study").exists()
    assert not list(tmp_path.glob(".study*"))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "file").touch()
    with pytest.raises(OutputError, match="not an empty folder"):
        build(a_plan(plan_file), tmp_path / "study")
