"""The items of a plan, without a model: cells, turns, prompts, ages, seeds, batches; and which studies are matched."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from xgem.cohort.items import Cohort, expand
from xgem.cohort.plan import SENTENCES, Plan
from xgem.data.manifest import Manifest
from xgem.types import InputError
from xgem.utils.files import file_sha256
from xgem.utils.random import derived_seed


def cohort_of(**fields: Any) -> Cohort:
    return expand(Plan.model_validate({"name": "toy", "seed": 5, "outputs": ["frontal"], **fields}))


def balanced(count: int = 3, outputs: tuple[str, ...] = ("frontal",), size: int = 4, **axes: Any) -> Cohort:
    return cohort_of(outputs=outputs, batch_size=size, balanced={"count": count, **axes})


def test_every_combination_of_the_axes_is_a_cell_and_cells_take_turns() -> None:
    axes: dict[str, Any] = {
        "findings": ["Edema", ["Cardiomegaly", "Edema"]],
        "sexes": ["F", "M"],
        "ages": [[20, 30], 70],
    }
    cohort = balanced(count=3, races=["Black"], severities=[4], **axes)
    combinations = list(product(["Edema", "Cardiomegaly + Edema"], ["F", "M"], [(20, 30), (70, 70)]))
    assert [(cell.finding, cell.sex, cell.ages) for cell in cohort.cells] == combinations
    assert {(cell.race, cell.severity, cell.outputs) for cell in cohort.cells} == {("Black", 4.0, ("frontal",))}
    items = list(cohort)
    assert len(items) == len(cohort) == 24
    assert [item.cell for item in items] == list(cohort.cells) * 3
    assert [item.id for item in items] == [f"toy-{index:08d}" for index in range(24)]
    assert [item.index for item in items] == list(range(24))
    assert cohort.cells[4].labels == ("Cardiomegaly", "Edema")
    assert {item.pair for item in items} == {""}


def test_prompts_of_a_cell_take_turns() -> None:
    own = balanced(count=5, findings=[{"name": "x", "texts": ["One.", "Two."]}, "Edema"])
    assert [item.prompt for item in own if item.cell.finding == "x"] == ["One.", "Two.", "One.", "Two.", "One."]
    edema = [item.prompt for item in own if item.cell.finding == "Edema"]
    assert edema == [SENTENCES["Edema"][turn % len(SENTENCES["Edema"])] for turn in range(5)]
    assert all(item.inputs == {"report": item.prompt} for item in own)
    assert [item.inputs for item in balanced(count=2)] == [{}, {}]


def test_inputs_tell_what_the_cell_has() -> None:
    (item,) = balanced(count=1, findings=["Edema"], sexes=["F"], ages=[61], races=["Asian"], severities=[0])
    told = {"sex": "F", "age": 61, "race": "Asian"}
    assert item.inputs == {"report": item.prompt, "demographics": told, "severity": 0.0}
    (item,) = balanced(count=1, sexes=["M"])
    assert item.inputs == {"demographics": {"sex": "M"}}
    assert item.age is None


def test_ages_are_whole_years_from_one_end_to_the_other() -> None:
    ages = Counter(item.age for item in balanced(count=300, ages=[[20, 22]]))
    assert set(ages) == {20.0, 21.0, 22.0}
    assert min(ages.values()) > 70
    assert [item.age for item in balanced(count=9, ages=[[20, 90]])] == [
        item.age for item in list(balanced(count=20, ages=[[20, 90]]))[:9]
    ]


def test_seeds_follow_the_plans_seed_and_the_number() -> None:
    items = list(balanced(count=3))
    assert [item.seed for item in items] == [derived_seed(5, "cohort", index, "item") for index in range(3)]
    other = cohort_of(seed=6, balanced={"count": 3})
    assert not {item.seed for item in items} & {item.seed for item in other}


def test_views_choose_the_outputs_and_reports_go_with_all() -> None:
    views = [["frontal"], ["frontal", "lateral"]]
    cohort = balanced(outputs=("lateral", "frontal", "report"), count=3, size=2, views=views)
    assert [cell.outputs for cell in cohort.cells] == [("frontal", "report"), ("lateral", "frontal", "report")]
    assert [batch.indices for batch in cohort.batches] == [(0, 2), (4,), (1, 3), (5,)]
    assert [batch.name for batch in cohort.batches] == ["00-0000000", "00-0000001", "01-0000000", "01-0000001"]
    more = balanced(outputs=("lateral", "frontal", "report"), count=4, size=2, views=views)
    assert [batch.indices for batch in more.batches] == [(0, 2), (4, 6), (1, 3), (5, 7)]
    assert more.sha256 == cohort.sha256


def _test_split(manifest: Path) -> dict[str, Any]:
    return {"manifest": str(manifest), "split": "test"}


def matched(manifest: Path, **fields: Any) -> Cohort:
    return cohort_of(matched={**_test_split(manifest), **fields})


def test_matched_cells_answer_to_the_studies_that_have_the_inputs(manifest: Path) -> None:
    cohort = matched(manifest, count=2)
    assert [cell.study.id for cell in cohort.cells if cell.study] == ["a", "b", "d", "e"]
    assert cohort.left_out == {"without report": 1}
    assert cohort.manifest_sha256 == file_sha256(manifest)
    assert [item.pair for item in cohort] == ["a", "b", "d", "e"] * 2
    first = cohort.cells[0]
    assert (first.texts, first.labels) == (("Small effusion.",), ("Effusion",))
    assert (first.sex, first.ages, first.race, first.severity, first.tells) == (None, None, None, None, False)
    assert cohort.item(0).inputs == {"report": "Small effusion."}


def test_matched_inputs_are_the_studys_own(manifest: Path) -> None:
    (shown, other) = matched(manifest, inputs=["lateral", "demographics"]).cells
    assert {name: Path(path).name for name, path in shown.images.items()} == {"lateral": "a-lateral.png"}
    assert (shown.sex, shown.ages, shown.race, shown.tells, shown.texts) == ("F", (40.0, 40.0), "White", True, ())
    assert (other.sex, other.ages) == ("M", None)
    seen = matched(manifest, inputs=["frontal"])
    assert [cell.sex for cell in seen.cells] == ["F", "M", None, None]  # an image shows the same patient
    assert "demographics" not in seen.item(0).inputs
    steered = matched(manifest, inputs=["mask", "boxes", "severity"])
    assert steered.left_out == {"without mask": 4}
    (cell,) = steered.cells
    assert cell.annotations == ("mask", "boxes")
    inputs = steered.item(0).inputs
    assert inputs["severity"] == 4.0
    assert [box.label for box in inputs["boxes"]] == ["mass"]
    assert [path.name for path in inputs["mask"]["right lung"]] == ["lung.png"]


def test_a_limit_draws_studies_by_the_seed(manifest: Path) -> None:
    chosen = set()
    for seed in range(12):
        cohort = cohort_of(seed=seed, matched={"manifest": str(manifest), "split": "test", "limit": 2})
        names = [cell.study.id for cell in cohort.cells if cell.study]
        assert names == sorted(names)
        assert len(names) == 2
        assert cohort.left_out == {"beyond the limit of 2": 2, "without report": 1}
        chosen.add(tuple(names))
    assert len(chosen) > 2
    assert len(matched(manifest, limit=4)) == len(matched(manifest)) == 4


def test_the_hash_is_of_what_decides_the_items(manifest: Path, tmp_path: Path) -> None:
    moved = tmp_path / manifest.name
    shutil.copy(manifest, moved)
    same = [matched(moved), matched(manifest, count=7), cohort_of(model="x", matched=_test_split(manifest))]
    others = [matched(manifest, inputs=["frontal"]), matched(manifest, limit=2), balanced()]
    others += [cohort_of(**{"matched": _test_split(manifest), **change}) for change in ({"seed": 6}, {"greedy": False})]
    first = matched(manifest).sha256
    assert {cohort.sha256 for cohort in same} == {first}
    assert len({first, *(cohort.sha256 for cohort in others)}) == 6
    assert balanced(count=9).sha256 == balanced().sha256 != balanced(size=5).sha256


def test_no_study_with_the_inputs_is_refused(manifest: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 5 studies of split 'test' has .*inputs \(severity, lateral\)"):
        matched(manifest, inputs=["severity", "lateral"])


# ------------------------------------------------------------------------------------------- a choice of the studies


def chosen(cohort: Cohort) -> list[str]:
    return [cell.study.id for cell in cohort.cells if cell.study]


@pytest.mark.parametrize(
    ("choice", "names", "left_out"),
    [
        ({"sexes": ["F"]}, ["a"], {"of another or unknown sex": 3}),
        ({"sexes": ["M", "F"]}, ["a", "b"], {"of another or unknown sex": 2}),
        ({"ages": [[30, 40]]}, ["a"], {"of another or unknown age": 3}),
        ({"ages": [20, 40]}, ["a"], {"of another or unknown age": 3}),
        ({"findings": ["No Finding"]}, ["b"], {"without the findings": 3}),
        ({"findings": ["Pleural Effusion", "No Finding"]}, ["a", "b"], {"without the findings": 2}),
        ({"findings": ["no finding"], "sexes": ["M"], "ages": [[0, 120]]}, None, None),
        ({"findings": [["Pleural Effusion", "Edema"]]}, None, None),
    ],
)
def test_matched_studies_are_chosen_by_findings_sexes_and_ages(
    manifest: Path, choice: dict[str, Any], names: list[str] | None, left_out: dict[str, int] | None
) -> None:
    if names is None or left_out is None:
        with pytest.raises(InputError, match=r"the findings, sexes and ages that it chooses; .*1 without report"):
            matched(manifest, **choice)
        return
    cohort = matched(manifest, **choice)
    assert chosen(cohort) == names
    assert cohort.left_out == {**left_out, "without report": 1}


@pytest.mark.parametrize(("age", "inside"), [(29.9, False), (30.0, True), (40.0, True), (40.9, True), (41.0, False)])
def test_both_ends_of_ages_are_whole_years(manifest: Path, tmp_path: Path, age: float, inside: bool) -> None:
    rows = Manifest.read(manifest).rows
    Manifest(tuple(row.model_copy(update={"age": age}) for row in rows), manifest.parent).write(tmp_path / "aged.jsonl")
    if inside:
        assert len(matched(tmp_path / "aged.jsonl", ages=[[30, 40]])) == 4
    else:
        with pytest.raises(InputError, match="4 of another or unknown age"):
            matched(tmp_path / "aged.jsonl", ages=[[30, 40]])


def test_a_limit_is_of_the_chosen_studies(manifest: Path) -> None:
    for seed in range(6):
        part = {**_test_split(manifest), "sexes": ["F", "M"], "limit": 1}
        cohort = cohort_of(seed=seed, matched=part)
        assert set(chosen(cohort)) < {"a", "b"}
        counts = {"beyond the limit of 1": 1, "of another or unknown sex": 2, "without report": 1}
        assert cohort.left_out == counts


def test_a_choice_is_part_of_the_hash_and_its_absence_is_not(manifest: Path) -> None:
    plain = matched(manifest)
    choices: list[dict[str, Any]] = [{"sexes": ["F"]}, {"sexes": ["F", "M"]}, {"ages": [[1, 99]]}]
    choices += [{"findings": ["No Finding"]}]
    assert len({plain.sha256, *(matched(manifest, **choice).sha256 for choice in choices)}) == 5
    assert matched(manifest, sexes=[], ages=[], findings=[]).sha256 == plain.sha256


def test_the_hash_of_a_plan_without_a_choice_is_that_of_before() -> None:
    """Cohorts that were begun go on: recorded with the version before plans could choose."""
    plan = {"name": "toy", "seed": 5, "outputs": ["frontal"], "matched": {"manifest": "m", "split": "test", "limit": 3}}
    assert (
        Plan.model_validate(plan).sha256("0" * 64) == "6070addd5617bfd578ab1697686743aa40bc062e5516210267ecd011823c471f"
    )
    plan = {"name": "toy", "outputs": ["frontal"], "balanced": {"findings": ["Edema"], "ages": [[20, 30]], "count": 2}}
    assert Plan.model_validate(plan).sha256(None) == "cbd53b27d26d561a8533573e6670516346c553dbc8e1f510677eafec572a8184"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"findings": [{"name": "scars", "texts": ["Scars."]}]}, "expected classes"),
        ({"findings": ["Edema", "Edema"]}, "duplicate 'Edema'"),
        ({"findings": ["Edemas"]}, "unknown finding 'Edemas'"),
        ({"sexes": ["X"]}, "Input should be 'F' or 'M'"),
        ({"sexes": ["F", "F"]}, "duplicate 'F'"),
        ({"ages": [[40, 30]]}, "ages 40 to 30: expected whole years, rising"),
        ({"ages": [[100, 121]]}, "from 0 to 120"),
    ],
)
def test_a_choice_that_is_none(manifest: Path, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matched(manifest, **choice)


@pytest.mark.parametrize("ages", [[[0, 121]], [[-1, 20]], [[30, 20]]])
def test_ages_of_a_balanced_plan_have_their_bounds(ages: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="expected whole years, rising, from 0 to 120"):
        balanced(ages=ages)
    assert {item.age for item in balanced(count=2, ages=[120])} == {120.0}
