"""Plans become the data sets that they promise, in every form in which they are read."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from xgem.cohort.folder import FINAL
from xgem.data.manifest import Manifest
from xgem.data.set_files import read_set
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.pipeline.generation import read_metadata


def table(out: Path) -> list[dict[str, str]]:
    with (out / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "cohort.json").read_text(encoding="utf-8"))


def test_a_balanced_plan_gives_the_promised_counts(xgem: Any, write_plan: Any, tmp_path: Path) -> None:
    findings = ["No Finding", ["cardiomegaly", "Edema"], {"name": "old TB", "texts": ["Apical scars.", "Scars."]}]
    part = {"findings": findings, "views": ["frontal", ["lateral", "frontal"]], "count": 3}
    plan = write_plan(outputs=["frontal", "lateral"], split="val", balanced=part)
    out = tmp_path / "out"
    ran = xgem("cohort", plan, "--out", out, "--device", "cpu")
    assert ran.code == 0, ran.err
    assert ran.out == f"{out}: 18 studies, 18 frontal, 9 lateral, 0 reports\n"

    manifest = Manifest.read(out / "manifest.parquet")
    manifest.check()
    studies = manifest.studies("val")
    assert len(studies) == 18 == len({study.subject for study in studies})
    assert {(study.source, study.sex, study.age) for study in studies} == {("xgem", None, None)}
    assert all("Not of a patient" in study.licence for study in studies)
    cells = Counter((study.labels, tuple(study.images)) for study in studies)
    views = (("frontal",), ("frontal", "lateral"))
    labels = (("No Finding",), ("Cardiomegaly", "Edema"), ())
    assert cells == {(label, view): 3 for label in labels for view in views}
    assert {s.impression for s in studies if not s.labels} == {"Apical scars.", "Scars."}

    rows = table(out)
    assert len(rows) == 27
    known = [row for row in rows if row["prompt"].startswith(("Cardiomegaly.", "The heart", "Cardiac"))]
    assert len(known) == 9
    for row in known:
        assert {name for name in CHEXPERT_CLASSES if row[name] == "1"} == {"Cardiomegaly", "Edema"}
        # What is wider than a finding asked for is unknown: an edema is an opacity, and may be called one
        wider = {"Lung Opacity", "Enlarged Cardiomediastinum"}
        assert {name for name in CHEXPERT_CLASSES if row[name] == ""} == wider
        assert {row[name] for name in CHEXPERT_CLASSES if name not in wider} == {"0", "1"}
    assert {row[name] for row in rows if "cars." in row["prompt"] for name in CHEXPERT_CLASSES} == {""}

    stated = record(out)
    assert stated["counts"] == {"studies": 18, "images": {"frontal": 18, "lateral": 9}, "reports": 0}
    assert [cell["count"] for cell in stated["cells"]] == [3] * 6
    assert stated["checkpoint"]["name"] == "random"
    assert (stated["device"], stated["dtype"], stated["threads"]) == ("cpu", "float32", 1)
    assert [one["joint"] for one in stated["requests"]] == [False, True]
    assert stated["requests"][0]["guidance_scale"] == {"frontal": 2.0}  # the preset's, filled in
    assert {name.name for name in out.iterdir()} == {*FINAL, ".cohort", "images"}

    own = read_metadata(out / rows[5]["file"])
    assert own["synthetic"] is True
    assert own["checkpoint"] == stated["checkpoint"]
    assert own["inputs"]["report"]["text"] == rows[5]["prompt"]
    assert own["cohort"]["study"] == rows[5]["subject"]
    assert len({read_metadata(out / row["file"])["seed"] for row in rows}) == 18


def test_it_is_read_as_a_set_by_every_form(xgem: Any, write_plan: Any, tmp_path: Path) -> None:
    part = {"findings": ["Pneumothorax", "No Finding"], "count": 2}
    out = tmp_path / "out"
    assert xgem("cohort", write_plan(outputs=["frontal"], balanced=part), "--out", out).code == 0
    for path in (out, out / "metadata.csv", out / "manifest.parquet"):
        found = read_set(path)
        assert len(found) == 4
        assert found.images().shape == (4, 32, 32)
        assert found.labels(["Pneumothorax", "No Finding", "Edema"]).tolist() == [[1, 0, 0], [0, 1, 0]] * 2
        assert found.prompts == ["Pneumothorax.", *found.prompts[1:]]
        assert len({item.subject for item in found.items}) == 4


def test_a_classifiers_loader_and_monai_read_it(xgem: Any, write_plan: Any, tmp_path: Path) -> None:
    part = {"findings": ["Edema", {"name": "free", "texts": ["Something."]}], "count": 2}
    out = tmp_path / "out"
    assert xgem("cohort", write_plan(outputs=["frontal", "lateral"], balanced=part), "--out", out).code == 0
    pandas, xrv = pytest.importorskip("pandas"), pytest.importorskip("torchxrayvision")
    rows = pandas.read_csv(out / "metadata.csv")
    labels = rows[list(CHEXPERT_CLASSES)].to_numpy(dtype=float)
    assert (labels[:, CHEXPERT_CLASSES.index("Edema")] == 1).sum() == 4
    assert pandas.isna(labels).all(axis=1).sum() == 4  # nothing is known of them, which is not 0
    image = xrv.utils.load_image(str(out / rows.file[0]))
    assert image.shape == (1, 32, 32)
    assert -1024 <= image.min() < image.max() <= 1024

    listed = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert len(listed["training"]) == 8
    assert all((out / entry["image"]).is_file() for entry in listed["training"])
    edema = [entry for entry in listed["training"] if "label" in entry]
    assert [[listed["labels"][str(k)] for k, on in enumerate(e["label"]) if on] for e in edema] == [["Edema"]] * 4
    assert {listed["labels"][str(k)] for e in edema for k, on in enumerate(e["label"]) if on is None} == {
        "Lung Opacity"
    }


def test_monai_reads_the_list(xgem: Any, write_plan: Any, tmp_path: Path) -> None:
    monai = pytest.importorskip("monai.data")
    out = tmp_path / "out"
    plan = write_plan(outputs=["frontal"], balanced={"findings": ["Edema"], "count": 2})
    assert xgem("cohort", plan, "--out", out).code == 0
    found = monai.load_decathlon_datalist(str(out / "dataset.json"), is_segmentation=False, data_list_key="training")
    assert [Path(one["image"]).is_file() for one in found] == [True, True]


def test_a_report_beside_a_prompt_is_written_from_the_images(xgem: Any, write_plan: Any, tmp_path: Path) -> None:
    part = {"findings": ["Fracture"], "count": 2}
    plan = write_plan(outputs=["frontal", "lateral", "report"], balanced=part)
    out = tmp_path / "out"
    ran = xgem("cohort", plan, "--out", out)
    assert ran.code == 0, ran.err
    rows = table(out)
    assert len(rows) == 4
    assert record(out)["counts"]["reports"] == 2
    made = read_metadata(out / "reports" / "00000000.txt")
    assert {name: one["origin"] for name, one in made["inputs"].items()} == {
        "frontal": "00000000-frontal.png",
        "lateral": "00000000-lateral.png",
    }
    text = (out / "reports" / "00000000.txt").read_text(encoding="utf-8").strip()
    study = Manifest.read(out / "manifest.parquet").studies()[0]
    assert study.impression == (text or "Rib fracture.")
    assert rows[0]["report"] == text


def test_demographics_are_told_and_recorded(xgem: Any, write_plan: Any, control: Path, tmp_path: Path) -> None:
    part = {"findings": ["Edema"], "sexes": ["F", "M"], "ages": [[20, 40], 70], "severities": [3], "count": 2}
    plan = write_plan(outputs=["frontal"], model=str(control), balanced=part)
    out = tmp_path / "out"
    ran = xgem("cohort", plan, "--out", out, "--no-progress")
    assert ran.code == 0, ran.err
    studies = Manifest.read(out / "manifest.parquet").studies()
    assert Counter((s.sex, s.age == 70) for s in studies) == {(sex, old): 2 for sex in "FM" for old in (True, False)}
    assert all(s.age is not None and (s.age == 70 or 20 <= s.age <= 40) and s.age % 1 == 0 for s in studies)
    assert {s.severity for s in studies} == {3.0}
    for row, study in zip(table(out), studies, strict=True):
        told = read_metadata(out / row["file"])["inputs"]
        assert told["demographics"]["text"] == f"sex:{study.sex}, age:{study.age}"
        assert (row["sex"], float(row["age"])) == (study.sex, study.age)
        assert told["severity"]["text"] == "3"


def test_a_matched_plan_answers_to_each_study(xgem: Any, write_plan: Any, manifest: Path, tmp_path: Path) -> None:
    part = {"manifest": str(manifest), "split": "test", "count": 2}
    out = tmp_path / "out"
    ran = xgem("cohort", write_plan(outputs=["frontal"], matched=part), "--out", out)
    assert ran.code == 0, ran.err
    real = {study.id: study for study in Manifest.read(manifest).studies("test")}
    assert record(out)["left_out"] == {"without report": 1}
    found = read_set(out)
    assert Counter(item.pair for item in found.items) == dict.fromkeys("abde", 2)
    for item in found.items:
        assert item.prompt == real[item.pair].impression
        assert (item.sex, item.age) == (None, None)  # the model was not told
    studies = Manifest.read(out / "manifest.parquet").studies()
    assert [study.labels for study in studies] == [real[pair].labels for pair in "abdeabde"]
    assert {study.source for study in studies} == {"drawn"}  # whose labels they are
    rows = {(row["pair"], row["Pleural Effusion"], row["No Finding"]) for row in table(out)}
    assert rows == {("a", "1", "0"), ("b", "", "1"), ("d", "", ""), ("e", "", "")}  # no table has the source "drawn"


def test_images_as_inputs(xgem: Any, write_plan: Any, manifest: Path, tmp_path: Path) -> None:
    part = {"manifest": str(manifest), "split": "test", "inputs": ["frontal"], "limit": 3}
    plan = write_plan(outputs=["lateral", "report"], matched=part, guidance_scale={"report": 1.5})
    out = tmp_path / "out"
    ran = xgem("cohort", plan, "--out", out)
    assert ran.code == 0, ran.err
    stated = record(out)
    assert stated["left_out"] == {"beyond the limit of 3": 1, "without frontal": 1}
    assert stated["counts"] == {"studies": 3, "images": {"lateral": 3}, "reports": 3}
    assert stated["requests"][0]["guidance_scale"] == {"lateral": 2.0, "report": 1.5}
    real = {study.id: study for study in Manifest.read(manifest).studies("test")}
    for row in table(out):
        assert row["prompt"] == ""
        assert row["sex"] == (real[row["pair"]].sex or "")  # the image shows the same patient
        assert read_metadata(out / row["file"])["inputs"]["frontal"]["origin"] == f"{row['pair']}-frontal.png"


def test_annotations_are_kept_on_the_images_grid(
    xgem: Any, write_plan: Any, control: Path, manifest: Path, tmp_path: Path
) -> None:
    inputs = ["report", "mask", "boxes", "severity", "demographics"]
    part = {"manifest": str(manifest), "split": "test", "inputs": inputs}
    plan = write_plan(outputs=["frontal"], model=str(control), matched=part)
    out = tmp_path / "out"
    ran = xgem("cohort", plan, "--out", out)
    assert ran.code == 0, ran.err
    (study,) = Manifest.read(out / "manifest.parquet").studies()
    from xgem.configs.preset import load_preset
    from xgem.data.study import read_study

    transform = load_preset("debug-chexgen").transform
    (asked,) = [s for s in Manifest.read(manifest).studies("test") if s.id == "d"]
    first, second = read_study(asked, transform), read_study(study, transform)
    assert (first.masks["right lung"] == second.masks["right lung"]).all()
    assert first.boxes == second.boxes
    assert study.severity == 4.0


def test_a_plan_without_prompts(xgem: Any, write_plan: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert xgem("cohort", write_plan(outputs=["report"], balanced={"count": 3}), "--out", out).code == 0
    rows = table(out)
    assert "file" not in rows[0]
    assert len(read_set(out / "metadata.csv")) == 3
    assert record(out)["counts"] == {"studies": 3, "images": {}, "reports": 3}


def test_a_dry_run_prints_the_table_and_writes_nothing(
    xgem: Any, write_plan: Any, manifest: Path, tmp_path: Path
) -> None:
    part = {"findings": ["Edema", "Fracture"], "views": ["frontal", ["frontal", "lateral"]], "count": 5}
    ran = xgem("cohort", write_plan(outputs=["frontal", "lateral"], balanced=part), "--dry-run")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].split() == ["finding", "outputs", "count"]
    assert lines[2].split() == ["Edema", "frontal,", "lateral", "5"]
    assert len(lines) == 6
    assert lines[-1] == "20 studies in 6 batches of up to 4"
    part = {"manifest": str(manifest), "split": "test", "count": 3}
    ran = xgem("cohort", write_plan(outputs=["frontal"], matched=part), "--dry-run")
    assert ran.out.splitlines()[-2:] == [
        "left out: 1 studies without report",
        "12 studies in 3 batches of up to 4",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"plan.yaml"}
