"""``xgem eval FAMILY`` from end to end: a tiny checkpoint and drawn studies in, records and reports out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import QUICK, STUDIES, check_whole, numbers, read
from xgem.checkpoints.store import init_checkpoint, save_component
from xgem.cli import main
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_component

FAMILIES = ("fidelity", "text", "factual", "consistency", "privacy", "utility", "fairness")
LIMIT = 12


def arguments_of_all(manifest: Path, model: Path, out: Path) -> list[str]:
    spaces = ["--extractor", "xgem-classifier", "--extractor", "rad-dino=absent-folder"]
    amounts = ["--limit", LIMIT, "--training-limit", LIMIT, "--runs", 1, *QUICK, "--no-progress"]
    told = ["eval", "all", "--data", manifest, "--model", model, "--out", out, *spaces, *amounts]
    return [str(one) for one in told]


@pytest.fixture(scope="module")
def everything(manifest: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``xgem eval all`` on the tiny checkpoint."""
    out = tmp_path_factory.mktemp("all") / "out"
    assert main(arguments_of_all(manifest, model, out)) == 0
    return out


def test_all_families_of_a_checkpoint_in_one_record(everything: Path, model: Path) -> None:
    check_whole(everything, "all")
    record = read(everything, "all")
    assert [one["family"] for one in record["families"]] == list(FAMILIES)
    about = record["settings"]
    assert (about["model"]["name"], about["split"], about["sampling"]["seed"]) == (model.name, "val", 0)
    assert about["studies"]["n"] == STUDIES
    assert about["model"]["hash"] in (everything / "all.html").read_text(encoding="utf-8")
    found = numbers(record, "fidelity")
    distance = found["fid  xgem-classifier"]
    assert distance["weights"]
    assert distance["references"]["floor"]["value"]["n"] >= 1
    assert found["ssim  "]["value"]["n"] == LIMIT  # prompts, of four samples each
    assert all(numbers(record, family) for family in FAMILIES)
    for family in ("text", "factual", "consistency", "privacy", "utility"):
        assert any("value" in one for one in numbers(record, family).values()), family


def test_what_lacks_weights_is_not_computed_and_says_why(everything: Path) -> None:
    record = read(everything, "all")
    found = [one for one in numbers(record, "fidelity").values() if one.get("extractor") == "rad-dino"]
    assert {one["name"] for one in found} == {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert all("value" not in one and "absent-folder" in one["not_computed"] for one in found)
    assert "xgem train reid" in numbers(record, "privacy")["reid_score  "]["not_computed"]
    assert "--ratescore-python" in numbers(record, "text")["ratescore  ratescore"]["not_computed"]
    page = (everything / "all.html").read_text(encoding="utf-8")
    assert "no re-identification network was given" in page


def test_all_takes_no_more_studies_than_asked_for(everything: Path) -> None:
    counts = {}
    for folder in (everything / "cohorts").iterdir():
        with (folder / "metadata.csv").open(newline="") as stream:
            counts[folder.name] = len(list(csv.DictReader(stream)))
    once = ("report_to_frontal", "training_prompts", "joint_lateral_to_frontal_report", "lateral_to_frontal")
    assert counts == dict.fromkeys((*once, "lateral_to_report"), LIMIT) | {
        "frontal_to_report": 3 * LIMIT,
        "seeds_report_to_frontal": 4 * LIMIT,
    }


def test_all_stopped_goes_on_with_its_cohorts_and_ends_the_same(
    xgem: Any, everything: Path, manifest: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work that is done already")

    out = tmp_path / "out"
    shutil.copytree(everything, out)
    monkeypatch.setattr("xgem.cohort.run._make", never)
    monkeypatch.setattr("xgem.judges.classifier.fit", never)
    with monkeypatch.context() as patched:
        patched.setattr("xgem.eval.routes.open_model", never)
        ran = xgem(*arguments_of_all(manifest, model, out))
        assert ran.code == 1
        assert ran.err == f"xgem: error: {out}/all.json: exists already; choose another folder or pass --overwrite\n"
    before = read(out, "all")
    (out / "all.json").unlink()
    ran = xgem(*arguments_of_all(manifest, model, out), "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["families"] == before["families"]


def sources(everything: Path, manifest: Path, model: Path) -> dict[str, list[Any]]:
    """Each family's own command on what ``all`` generated."""
    cohorts, real = everything / "cohorts", ("--real", manifest)
    return {
        "fidelity": [*real, "--generated", cohorts / "report_to_frontal", "--extractor", "xgem-classifier", "--pad"],
        "text": [*real, "--generated", cohorts / "frontal_to_report"],
        "factual": [*real, "--generated", cohorts / "report_to_frontal", "--pad"],
        "consistency": [
            *(*real, "--generated", cohorts / "joint_lateral_to_frontal_report", "--model", model, "--pad")
        ],
        "privacy": [
            *("--training", manifest, "--generated", cohorts / "training_prompts", "--extractor", "xgem-classifier"),
            "--pad",
        ],
        "utility": [*real, "--generated", cohorts / "training_prompts", "--suite", "anonymisation", "--runs", 1],
        "fairness": [*real, "--generated", cohorts / "training_prompts", "--runs", 1, "--pad"],
    }


def rounded(value: Any) -> Any:
    """JSON values to ten digits: a mean over equal samples is not bitwise that of one."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 10) if isinstance(value, float) else value


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_by_itself_finds_the_same(
    xgem: Any, everything: Path, manifest: Path, model: Path, tmp_path: Path, family: str
) -> None:
    shared = ["--out", tmp_path / "out", *QUICK]
    shared += [] if family == "text" else ["--cache", everything / "cache"]
    ran = xgem("eval", family, *sources(everything, manifest, model)[family], *shared)
    assert ran.code == 0, ran.err
    assert f"### {family.capitalize()}" in ran.out
    check_whole(tmp_path / "out", family)
    own, both = numbers(read(tmp_path / "out", family), family), numbers(read(everything, "all"), family)
    other = {"fidelity": "ssim", "utility": "anonymised"}.get(family, "nothing")  # made of other samples in `all`
    compared = [name for name in own if other not in name]
    assert compared
    assert set(compared) <= set(both)
    if family == "text":  # `all` takes the mean over three reports of a study, the command alone the first of them
        return
    for name in compared:
        if family == "consistency":  # in `all` beside outputs that were generated apart
            both[name].get("references", {}).pop("independent", None)
        assert rounded(own[name]) == rounded(both[name]), name


# What a model cannot do


def test_all_refuses_what_it_cannot_measure_before_it_makes_anything(
    xgem: Any, manifest: Path, model: Path, tmp_path: Path
) -> None:
    for change, code, said in (
        (("--limit", 3), 2, "limit 3: expected at least 8"),
        (("--split", "test"), 2, "nothing in it for split 'test'"),
        (("--split", "train"), 2, "use val or test"),
        (("--limit", 0), 2, "limit is 0"),
    ):
        ran = xgem(*arguments_of_all(manifest, model, tmp_path / "out"), *change)
        assert (ran.code, ran.err.count("\n"), ran.out) == (code, 1, ""), ran.err
        assert said in ran.err
    assert not (tmp_path / "out" / "cohorts").exists()


@pytest.mark.slow
def test_all_says_what_a_model_cannot_do(xgem: Any, manifest: Path, tmp_path: Path) -> None:
    """One without alignment and without a generator of reports."""
    preset = load_preset("debug")
    init_checkpoint(tmp_path / "model", preset)
    for name, config in preset.components.items():
        if name not in ("alignment", "report"):
            save_component(tmp_path / "model", name, random_component(config))
    assert xgem(*arguments_of_all(manifest, tmp_path / "model", tmp_path / "out")).code == 0
    record = read(tmp_path / "out", "all")
    reports, both = (
        next(one for one in record["families"] if one["family"] == name) for name in ("text", "consistency")
    )
    assert reports["not_computed"] == "model: has no trained 'report', which 'report' needs"
    assert "no trained" in both["not_computed"]
    assert numbers(record, "privacy")["pixel_distance  "]["value"]["value"] > 0


def test_all_needs_frontal_images(xgem: Any, manifest: Path, tmp_path: Path) -> None:
    preset = load_preset("debug")
    init_checkpoint(tmp_path / "model", preset)
    for name in ("image_encoder", "text_encoder", "image_vae", "lateral"):
        save_component(tmp_path / "model", name, random_component(preset.components[name]))
    ran = xgem(*arguments_of_all(manifest, tmp_path / "model", tmp_path / "out"))
    assert (ran.code, ran.err) == (2, "xgem: error: model: has no trained 'frontal', which 'frontal' needs\n")
