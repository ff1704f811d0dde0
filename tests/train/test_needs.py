"""What data lack is said for all stages at once, before the first of them trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xgem.configs.preset import Preset, load_preset
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest, Row
from xgem.train.loop import LoopOptions
from xgem.train.stages import check_needs, planned, run, stages
from xgem.types import ConfigError, DataError

TOLD: dict[str, Any] = {"impression": "Normal heart."}
WHOLE: dict[str, Any] = {**TOLD, "boxes": (Box("mass", 0.2, 0.2, 0.5, 0.5),)}
BOTH = ("frontal", "lateral")


def data(**splits: list[tuple[tuple[str, ...], dict[str, Any]]]) -> Manifest:
    """Of each split its studies: their views, and what else is known of them; there are no files."""
    rows: list[Row] = []
    for split, studies in splits.items():
        for number, (views, fields) in enumerate(studies):
            name = f"{split}{number}"
            for view in views or (None,):
                file = None if view is None else f"{name}-{view}.png"
                common: dict[str, Any] = {"study": name, "subject": name, "split": split, "source": "toy"}
                rows.append(Row(view=view, file=file, **common, **fields))
    return Manifest(tuple(rows), Path("nowhere"))


def lacking(manifest: Manifest, preset: Preset, *names: str) -> str:
    with pytest.raises(DataError) as caught:
        check_needs(names or planned(preset), preset, manifest)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_data_suffice_for_every_stage(debug_preset: Preset) -> None:
    whole = data(train=[(BOTH, WHOLE)], val=[(BOTH, WHOLE)])
    for preset in (debug_preset, load_preset("debug-chexgen")):
        check_needs(planned(preset), preset, whole)


def test_all_that_is_missing_is_listed_with_its_stages(debug_preset: Preset) -> None:
    text = lacking(data(train=[(("frontal",), {})], val=[(BOTH, {})]), debug_preset)
    assert text == (
        "split train has no study with 2 of these in one study: a frontal, a lateral, a text for the prompt report "
        "(for clip), none with a report (impression) (for report-vae, report), none with a lateral (for frontal, "
        "lateral, report, joint), none with a text for the prompt report (for frontal, lateral, joint), none with a "
        "frontal and a lateral and a report (impression) in one study (for joint); split val has no study with a "
        "report (impression) (for report-vae, report), none with a text for the prompt report (for frontal, lateral, "
        "joint), none with a frontal and a lateral and a report (impression) in one study (for joint): add such "
        "studies, or train by name the stages that the data suffice for"
    )


def test_an_empty_split_is_said_once(debug_preset: Preset) -> None:
    text = lacking(data(train=[(BOTH, {})]), debug_preset, "report-vae")
    assert text.startswith("split val is empty; split train has no study with a report")
    assert "split val is empty: add such studies" in lacking(data(train=[(BOTH, WHOLE)]), debug_preset)


@pytest.mark.parametrize(
    ("stage", "val", "missing"),
    [
        ("image-vae", ((), TOLD), "a frontal or lateral"),
        ("image-decoder", ((), TOLD), "a frontal or lateral"),
        ("clip", (("frontal",), {}), "2 of these"),
        ("report-vae", (BOTH, {}), "a report (impression)"),
        ("frontal", (("lateral",), WHOLE), "a frontal"),
        ("lateral", (("frontal",), WHOLE), "a lateral"),
        ("report", (BOTH, {}), "a report (impression)"),
        ("joint", (BOTH, {}), "a frontal and a lateral and a report (impression) in one study"),
    ],
)
def test_each_stage_says_what_it_needs(
    debug_preset: Preset, stage: str, val: tuple[tuple[str, ...], dict[str, Any]], missing: str
) -> None:
    whole = (BOTH, WHOLE)
    text = lacking(data(train=[whole], val=[val]), debug_preset, stage)
    assert text.startswith("split val has no study with ")
    assert f" with {missing}" in text
    assert "split train" not in text
    check_needs([stage], debug_preset, data(train=[whole], val=[val, whole]))


def test_parts_of_two_studies_are_no_whole_one(debug_preset: Preset) -> None:
    apart = [(BOTH, {}), ((), TOLD), (("frontal",), WHOLE)]
    assert "in one study (for joint)" in lacking(data(train=apart, val=[(BOTH, WHOLE)]), debug_preset, "joint")
    check_needs(["frontal", "lateral", "report"], debug_preset, data(train=apart, val=apart))


def test_annotations_of_a_positive_weight_are_needed_in_training() -> None:
    preset = load_preset("debug-chexgen")
    record = preset.model_dump(mode="json")
    record["train"]["control"]["loss"] = {"boxes": 0, "severity": 0}
    masks_alone = Preset.parse(record, "masks")
    whole = data(train=[(BOTH, WHOLE)], val=[(BOTH, WHOLE)])
    assert "split train has no study with a frontal with masks (for control)" in lacking(whole, masks_alone)
    of_no_frontal = data(train=[(("lateral",), WHOLE), (("frontal",), {"impression": "Clear."})], val=[(BOTH, WHOLE)])
    assert "a frontal with masks or boxes or severity" in lacking(of_no_frontal, preset, "control")
    record["train"]["frontal"]["loss"] = {"known": 0.5}
    known = Preset.parse(record, "known")
    assert "split train has no study with a known age, sex or score (for frontal)" in lacking(whole, known, "frontal")


def test_a_run_checks_before_it_writes(debug_preset: Preset, toy: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(toy)
    rows = tuple(row.model_copy(update={"impression": "", "labels": ()}) for row in manifest.rows)
    with pytest.raises(DataError, match="report-vae"):
        run(planned(debug_preset), debug_preset, Manifest(rows, manifest.root), tmp_path / "out", LoopOptions())
    config = debug_preset.train["report"].model_copy(update={"loss": {"kn0wn": 1.0}})
    preset = debug_preset.model_copy(update={"train": {**debug_preset.train, "report": config}})
    with pytest.raises(ConfigError, match=r"stage report: unknown loss settings \['kn0wn'\]: expected known"):
        run(planned(preset), preset, manifest, tmp_path / "out", LoopOptions())
    assert not (tmp_path / "out").exists()


def test_every_stage_needs_something(debug_preset: Preset) -> None:
    nothing = data(train=[((), {})], val=[((), {})])
    presets = (debug_preset, load_preset("debug-chexgen"))
    said = " ".join(lacking(nothing, preset) for preset in presets)
    assert all(name in said for name in stages())
