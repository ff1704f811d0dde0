"""``xgem eval FAMILY`` from end to end: a tiny checkpoint and drawn studies in, records and reports out."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.checkpoints.store import init_checkpoint, save_component
from xgem.cli import main
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_component
from xgem.data.manifest import Manifest
from xgem.data.rows import Row

FAMILIES = ("fidelity", "text", "factual", "consistency", "privacy", "utility", "fairness")
SAID = (
    ("Large right pleural effusion.", ("Pleural Effusion",)),
    ("Cardiomegaly. No effusion.", ("Cardiomegaly",)),
    ("No acute disease.", ("normal",)),
)
STUDIES, LIMIT = 12, 12
QUICK = ("--bootstrap", 20)


def drawn(rng: np.random.Generator, kind: int, side: int = 48) -> Image.Image:
    """Smooth noise, brighter where the study has a finding; nothing of a patient's."""
    pixels = np.kron(rng.normal(120, 40, (4, 4)), np.ones((side // 4, side // 4)))
    pixels[: side // 2] += 40 * kind
    return Image.fromarray((pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies with both views, a report, labels and demographics; larger than the model's images."""
    root, rng = tmp_path_factory.mktemp("studies"), np.random.default_rng(0)
    rows: list[Row] = []
    for split in ("train", "val"):
        for i in range(STUDIES):
            impression, labels = SAID[i % 3]
            common: dict[str, Any] = {"study": f"{split}{i}", "subject": f"{split}{i}", "split": split}
            common |= {"source": "drawn", "licence": "free", "impression": impression, "labels": labels}
            common |= {"sex": "FM"[i % 2], "age": 30.0 + 3 * i}
            for view in ("frontal", "lateral"):
                drawn(rng, i % 3).save(root / f"{split}{i}-{view}.png")
                rows.append(Row(view=view, file=f"{split}{i}-{view}.png", **common))
    Manifest(tuple(rows), root).write(root / "studies.parquet")
    return root / "studies.parquet"


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


def read(out: Path, stem: str) -> dict[str, Any]:
    return json.loads((out / f"{stem}.json").read_text(encoding="utf-8"))


def numbers(record: dict[str, Any], family: str) -> dict[str, Any]:
    """Of a record's family, by name, finding and space."""
    found = next(one for one in record["families"] if one["family"] == family)
    return {" ".join((one["name"], one.get("of", ""), one.get("extractor", ""))): one for one in found["metrics"]}


def check_whole(out: Path, stem: str) -> None:
    """All four files, and every number with its interval and n, or the reason why there is none."""
    record = read(out, stem)
    assert (record["format"], record["format_version"]) == ("xgem-measures", 2)
    assert record["xgem"]
    metrics = [one for family in record["families"] for one in family["metrics"]]
    for one in metrics:
        if "value" not in one:
            assert one["not_computed"], one["name"]
        else:
            assert isinstance(one["value"]["value"], float), one["name"]
            assert {"low", "high"} < set(one["value"])
            assert one["value"]["n"] >= 1
    with (out / f"{stem}.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["number"] == "value"]
    assert len(rows) == len(metrics)
    assert all(bool(row["value"]) != bool(row["not_computed"]) for row in rows)
    page = (out / f"{stem}.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("<h2 id=") == len(record["families"])
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', page)
    assert (out / f"{stem}.md").read_text(encoding="utf-8").count("### ") == len(record["families"])


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
    for name in compared:
        if family == "consistency":  # in `all` beside outputs that were generated apart
            both[name].get("references", {}).pop("independent", None)
        assert own[name] == both[name], name


def test_rank_puts_the_better_record_first(xgem: Any, everything: Path, tmp_path: Path) -> None:
    record = read(everything, "all")
    for family in record["families"]:
        for metric in family["metrics"]:
            if "value" in metric:
                metric["value"]["value"] += 0.1 if metric.get("higher_is_better") else -0.1
    better = tmp_path / "better.json"
    better.write_text(json.dumps(record))
    ran = xgem("eval", "rank", f"tiny={everything / 'all.json'}", f"better={better}", "--family", "factual")
    assert ran.code == 0, ran.err
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ran.out.splitlines()[2:4]]
    assert [(row[0], row[-1]) for row in rows] == [("tiny", "2"), ("better", "1")]
    assert xgem("eval", "rank", str(better)).err.count("expected NAME=FILE") == 1


# Bad input: one line that says what to do, and nothing is written


Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes a folder of drawn images with a CSV."""

    def write(name: str, n: int = 8, seed: int = 0, side: int = 48, **columns: Callable[[int], Any]) -> Path:
        place, rng = tmp_path / name, np.random.default_rng(seed)
        place.mkdir()
        columns = {"file": lambda i: f"{i}.png", "id": lambda i: f"s{i}", **columns}
        with (place / "set.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(columns)
            for i in range(n):
                drawn(rng, i % 3, side).save(place / f"{i}.png")
                table.writerow([make(i) for make in columns.values()])
        return place

    return write


def edited(place: Path, old: str, new: str) -> None:
    table = place / "set.csv"
    table.write_text(table.read_text().replace(old, new))


def labels(i: int) -> str:
    return f"{{'Edema': {i % 2}.0, 'Fracture': nan}}"


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
        (no_file_column, r"columns name, id, chexpert_labels; expected one of file, synthetic_filename"),
        (wrong_label, r"line 3: Edema is 2\.0, expected 1, 0, -1 \(uncertain\) or nothing"),
        (wrong_class, r"unknown class 'Oedema'; expected CheXpert's"),
        (overlap, r"real and generated overlap: \S+5\.png is \S+2\.png"),
        (strangers, r"none of its 8 items names one of the 8 of real; a column `pair`"),
        (twice, r"id 's4' stands there twice"),
        (nothing, r"made: expected a manifest \(\.parquet, \.jsonl\), a folder of images or a CSV"),
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
    assert ran.code == 1
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
    assert "none with both positives and negatives" in found["not_computed"]
    unlabelled = folder("unlabelled", seed=3)
    told = ["--real", real, "--generated", made, "--training", unlabelled, "--out", tmp_path / "two", *QUICK]
    assert xgem("eval", "factual", *told).code == 0
    found = numbers(read(tmp_path / "two", "factual"), "factual")["auroc_macro  xgem-classifier"]
    assert "no CheXpert class with positives and negatives" in found["not_computed"]


def test_reports(xgem: Any, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty ones, other seeds, and results that lie there already."""
    real = folder("real", report=lambda i: SAID[i % 3][0])
    made = folder("made", seed=1, report=lambda i: "" if i == 4 else SAID[(i + i // 4) % 3][0])
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
    edited(real, SAID[0][0], "")
    ran = xgem(*told, "--out", tmp_path / "three")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "s0" in ran.err
    silent = folder("silent", seed=1, report=lambda i: "")
    ran = xgem("eval", "text", "--real", real, "--generated", silent, "--out", tmp_path / "three")
    assert "no report in it" in ran.err
    ran = xgem(*told, "--out", tmp_path / "three", "--real-labels", real / "set.csv")
    assert (ran.code, "expected both or neither" in ran.err) == (2, True)


def test_privacy_takes_the_held_out_split_that_is_named(
    xgem: Any, manifest: Path, folder: Folder, tmp_path: Path
) -> None:
    made = folder("made", seed=7, side=32)
    told = ["eval", "privacy", "--training", manifest, "--generated", made, *QUICK]
    told += ["--extractor", f"rad-dino={tmp_path / 'absent'}"]
    ran = xgem(*told, "--out", tmp_path / "out", "--split", "test")
    assert ran.code == 1
    assert "nothing in it for split 'test'" in ran.err
    ran = xgem(*told, "--out", tmp_path / "out", "--split", "train")
    assert ran.code == 1
    assert "of its patients are in training too" in ran.err
    assert xgem(*told, "--out", tmp_path / "out").code == 0
    record = read(tmp_path / "out", "privacy")
    assert record["families"][0]["settings"]["size"] == 32
    assert numbers(record, "privacy")["pixel_distance  "]["references"]["held-out real"]["value"]["n"] == STUDIES


def test_training_images_are_no_yardstick_for_themselves(xgem: Any, folder: Folder, tmp_path: Path) -> None:
    real, made = folder("real", chexpert_labels=labels), folder("made", seed=1)
    ran = xgem("eval", "factual", "--real", real, "--generated", made, "--training", real, "--out", tmp_path / "out")
    assert ran.code == 1
    assert "real and training overlap" in ran.err


# What a model cannot do


def test_all_refuses_what_it_cannot_measure_before_it_makes_anything(
    xgem: Any, manifest: Path, model: Path, tmp_path: Path
) -> None:
    for change, code, said in (
        (("--limit", 3), 2, "limit 3: expected at least 8"),
        (("--split", "test"), 1, "nothing in it for split 'test'"),
        (("--split", "train"), 2, "use val or test"),
        (("--limit", 0), 2, "limit is 0: expected"),
    ):
        ran = xgem(*arguments_of_all(manifest, model, tmp_path / "out"), *change)
        assert (ran.code, ran.err.count("\n"), ran.out) == (code, 1, "")
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
