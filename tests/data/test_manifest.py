"""The manifest's schema, its two forms, and the rules between rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import ValidationError

from xgem.configs.reading import ReadOptions
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest, Row, place
from xgem.data.manifest_files import SCHEMA_VERSION
from xgem.data.rows import LATER, LATEST
from xgem.labels.spatial import BOX_CLASSES, STRUCTURES
from xgem.types import ManifestError, OutputError

OUTLINED, BOXED = (*STRUCTURES, "rib"), (*BOX_CLASSES, "fracture")


def row(study: str = "s1", **changes: Any) -> Row:
    fields = {"study": study, "subject": f"p-{study}", "split": "train", "view": "frontal", "file": f"{study}.png"}
    return Row.model_validate(fields | changes)


def manifest(*rows: Row, root: Path = Path("/nowhere")) -> Manifest:
    return Manifest(rows, root)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
names = st.text("abcdef-_. 0123", min_size=1, max_size=8).map(str.strip).filter(bool)
rows = st.builds(
    Row,
    study=names,
    subject=names,
    split=st.sampled_from(["train", "val", "test"]),
    view=st.sampled_from(["frontal", "lateral"]),
    file=names,
    findings=texts,
    impression=texts,
    labels=st.lists(names, max_size=3).map(tuple),
    age=st.none() | st.floats(0, 120),
    sex=st.sampled_from(["F", "M", None]),
    race=st.none() | names,
    severity=st.none() | st.floats(0, 18),
    masks=st.dictionaries(st.sampled_from(OUTLINED), st.lists(names, min_size=1, max_size=2).map(tuple), max_size=2),
    boxes=st.lists(
        st.builds(
            Box,
            st.sampled_from(BOXED),
            *[st.floats(0, 0.5), st.floats(0, 0.5)],
            *[st.floats(0.1, 0.5)] * 2,
        ),
        max_size=2,
    ).map(tuple),
    source=texts,
    licence=texts,
    reading=st.builds(
        ReadOptions,
        voi=st.sampled_from([None, "none", "window", "lut"]),
        rescale=st.sampled_from([None, "auto", "header", "minmax", "percentile"]),
        invert=st.sampled_from([None, True, False]),
        allow_any=st.sampled_from([None, True]),
    ),
    view_guessed=st.booleans(),
)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@given(content=st.lists(rows, min_size=1, max_size=5))
def test_both_forms_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: list[Row]
):
    folder = tmp_path_factory.getbasetemp()
    written = Manifest(tuple(content), folder.resolve())
    written.write(folder / f"m.{suffix}")
    assert Manifest.read(folder / f"m.{suffix}") == written


def test_files_are_relative_to_the_manifest_and_survive_a_move(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/s1.png").touch()
    made = manifest(row(), root=tmp_path / "a")
    made.write(tmp_path / "a/m.jsonl")
    made.write(tmp_path / "b/m.jsonl")
    assert Manifest.read(tmp_path / "a/m.jsonl").rows[0].file == "s1.png"
    moved = Manifest.read(tmp_path / "b/m.jsonl")
    assert moved.rows[0].file == str(tmp_path / "a/s1.png")
    moved.check()
    assert moved.studies()[0].images["frontal"] == (tmp_path / "a/s1.png",)


def test_masks_survive_a_move_and_are_looked_for(tmp_path: Path):
    (tmp_path / "a/masks").mkdir(parents=True)
    for name in ("s1.png", "masks/l.png", "masks/d1.png", "masks/d2.png"):
        (tmp_path / "a" / name).touch()
    masks = {"left lung": ("masks/l.png",), "device": ("masks/d1.png", str(tmp_path / "a/masks/d2.png"))}
    made = manifest(row(masks=masks), root=tmp_path / "a")
    made.write(tmp_path / "a/m.parquet")
    assert Manifest.read(tmp_path / "a/m.parquet").rows[0].masks == masks
    made.write(tmp_path / "b/m.parquet")
    moved = Manifest.read(tmp_path / "b/m.parquet")
    moved.check()
    expected = {
        "left lung": (tmp_path / "a/masks/l.png",),
        "device": (tmp_path / "a/masks/d1.png", tmp_path / "a/masks/d2.png"),
    }
    assert moved.studies()[0].masks == made.studies()[0].masks == expected
    (tmp_path / "a/masks/d2.png").unlink()
    with pytest.raises(ManifestError, match=r"row 1: study 's1': no such file .*d2\.png"):
        moved.check()
    moved.check(files=False)


BOX = {"label": "mass", "x": 0.1, "y": 0.2, "w": 0.3, "h": 0.4}


def test_studies_carry_their_annotations():
    study = manifest(row(boxes=[BOX], severity=7.5, race="Asian")).studies()[0]
    assert study.boxes == (Box("mass", 0.1, 0.2, 0.3, 0.4),)
    assert (study.severity, study.race) == (7.5, "Asian")
    plain = manifest(row()).studies()[0]
    assert (plain.masks, plain.boxes, plain.severity, plain.race) == ({}, (), None, None)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_annotations_that_are_absent_are_not_written(tmp_path: Path, suffix: str):
    path = tmp_path / f"m.{suffix}"
    manifest(row("a", severity=0.0), row("b", boxes=[BOX]), root=tmp_path).write(path)
    assert [(r.severity, r.boxes, r.masks) for r in Manifest.read(path).rows] == [
        (0.0, (), {}),
        (None, (Box(**BOX),), {}),
    ]
    manifest(row("a"), root=tmp_path).write(path)
    if suffix == "jsonl":
        written = set(json.loads(path.read_text()))
    else:
        written = set(parquet.read_schema(path).names)
    assert written == set(Row.model_fields) - {"masks", "boxes", "severity", "race", *LATER, *LATEST}


@pytest.mark.parametrize("version", [None, "1", "2", "3"])
def test_manifests_of_earlier_versions_are_read(tmp_path: Path, version: str | None):
    table = pa.table({"study": ["a"], "subject": ["p"], "split": ["val"], "labels": [["Mass"]]})
    metadata = None if version is None else {"xgem_manifest": version}
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "m.parquet")
    read = Manifest.read(tmp_path / "m.parquet").rows[0]
    assert read == Row(study="a", subject="p", split="val", labels=("Mass",))


def test_what_version_3_says_is_written(tmp_path: Path):
    said = row("a", reading={"invert": True}, view_guessed=True)
    made = manifest(said, row("b"), root=tmp_path)
    made.write(tmp_path / "m.parquet")
    assert parquet.read_schema(tmp_path / "m.parquet").metadata[b"xgem_manifest"].decode() == "3"
    read = Manifest.read(tmp_path / "m.parquet")
    assert read == made
    assert read.studies()[0].reading == ReadOptions(invert=True)
    assert read.summary()["guessed views"] == 1
    assert read.read_as(ReadOptions(rescale="minmax")).rows[0].reading == ReadOptions(invert=True, rescale="minmax")
    made.write(tmp_path / "m.jsonl")
    first, second = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert (first["reading"], first["view_guessed"]) == ({"invert": True}, True)
    assert not {"reading", "view_guessed"} & second.keys()


def test_qualified_findings_are_of_the_study_and_of_version_4(tmp_path: Path):
    terms = ("Pleural Effusion/left/small", "Cardiomegaly")
    made = manifest(row("a", qualified=terms), row("b"), root=tmp_path)
    for name in ("m.parquet", "m.jsonl"):
        made.write(tmp_path / name)
        read = Manifest.read(tmp_path / name)
        assert read == made
        assert [study.qualified for study in read.studies()] == [terms, ()]
    assert parquet.read_schema(tmp_path / "m.parquet").metadata[b"xgem_manifest"].decode() == SCHEMA_VERSION == "4"
    first, second = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert first["qualified"] == [*terms]
    assert "qualified" not in second
    with pytest.raises(ManifestError, match="study 'a': two rows differ in qualified"):
        manifest(row("a", qualified=terms), row("a", file="other.png"), root=tmp_path).studies()
    for bad in ([""], ["/left"], [" / "]):
        with pytest.raises(ValidationError, match="must be findings with their qualifiers"):
            row("a", qualified=bad)


def test_a_manifest_of_a_later_version_is_refused(tmp_path: Path):
    manifest(row(), root=tmp_path).write(tmp_path / "m.parquet")
    table = parquet.read_table(tmp_path / "m.parquet")
    assert table.schema.metadata[b"xgem_manifest"] == b"2"  # as before, where nothing of version 3 is said
    parquet.write_table(table.replace_schema_metadata({"xgem_manifest": "5"}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="version 5; expected 1 or 2 or 3 or 4; update xgem"):
        Manifest.read(tmp_path / "m.parquet")


def test_place(tmp_path: Path):
    assert place(tmp_path / "x/y.png", tmp_path) == "x/y.png"
    assert place(Path("/elsewhere/y.png"), tmp_path) == "/elsewhere/y.png"


def test_studies_are_sorted_and_hold_their_images():
    made = manifest(
        row("b", file="b2.png", impression="Normal."),
        row("a", split="val"),
        row("b", file="b1.png", impression="Normal."),
        row("b", view="lateral", file="bl.png", impression="Normal."),
        row("b", view=None, file="b?.png", impression="Normal."),
        row("c", view=None, file=None, findings="Clear."),
    )
    made.check(files=False)
    assert [study.id for study in made.studies()] == ["a", "b", "c"]
    assert [study.id for study in made.studies("train")] == ["b", "c"]
    study = made.studies()[1]
    assert [path.name for path in study.images["frontal"]] == ["b2.png", "b1.png"]
    assert [path.name for path in study.images["lateral"]] == ["bl.png"]
    assert all(path.is_absolute() for files in study.images.values() for path in files)
    assert study.impression == "Normal."
    assert made.studies()[2].images == {}
    assert made.studies("test") == []
    with pytest.raises(ManifestError, match="unknown split"):
        made.studies("valid")


def test_a_study_has_everything_that_its_rows_say(tmp_path: Path):
    known: dict[str, Any] = {
        "subject": "p", "split": "val", "findings": "Größer.", "impression": "Normal.", "labels": ("normal",),
        "age": 61.5, "sex": "F", "race": "Asian", "severity": 7.0, "source": "openi", "licence": "CC0",
    }  # fmt: skip
    (study,) = manifest(row("a", **known, masks={"device": ("m.png",)}, boxes=[BOX]), root=tmp_path).studies()
    assert {name: getattr(study, name) for name in known} == known
    assert study.masks == {"device": (tmp_path / "m.png",)}
    assert [(box.label, box.x) for box in study.boxes] == [(BOX["label"], BOX["x"])]


def test_text_is_written_as_it_is(tmp_path: Path):
    manifest(row(findings="Größer."), root=tmp_path).write(tmp_path / "m.jsonl")
    assert "Größer." in (tmp_path / "m.jsonl").read_text(encoding="utf-8")


def test_summary():
    made = manifest(
        row("a", findings="Clear."), row("b", split="val", impression="Normal."), row("c", view=None, file=None),
        row("d", subject="p-a", view=None),
    )  # fmt: skip
    assert made.summary() == {
        "rows": 4,
        "studies": 4,
        "subjects": 3,
        "splits": {"train": 3, "val": 1},
        "images": {"train/frontal": 1, "train/unknown view": 1, "val/frontal": 1},
        "impressions": 1,
        "findings": 1,
    }


def test_summary_counts_annotations():
    masks = {"device": ("1.png", "2.png"), "left lung": ("3.png",)}
    made = manifest(
        row("a", masks=masks, boxes=[BOX]),
        row("b", masks={"device": ("4.png",)}, boxes=[BOX, BOX]),
        row("c", severity=0),
    )
    summary = made.summary()
    assert summary["masks"] == {"left lung": 1, "device": 3}
    assert summary["boxes"] == {"mass": 3}
    assert summary["severity"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"split": "training"},
        {"view": "oblique"},
        {"file": None},
        {"file": " "},
        {"study": ""},
        {"subject": " p"},
        {"age": -1},
        {"age": 414},
        {"age": float("nan")},
        {"sex": "female"},
        {"labels": ("",)},
        {"extra": 1},
        {"study": 3},
        {"race": " "},
        {"severity": -1},
        {"severity": 18.5},
        {"severity": float("nan")},
        {"masks": {"Heart": ["h.png"]}},
        {"masks": {"device": []}},
        {"masks": {"device": ["d.png", " "]}},
        {"masks": {"device": "d.png"}},
        {"masks": {"device": ["d.png"]}, "view": None, "file": None},
        {"boxes": [BOX], "view": None, "file": None},
        {"boxes": [BOX | {"label": "Mass"}]},
        {"boxes": [BOX | {"w": 0}]},
        {"boxes": [BOX | {"h": -0.1}]},
        {"boxes": [BOX | {"x": -0.002}]},
        {"boxes": [BOX | {"x": 0.702}]},
        {"boxes": [BOX | {"y": 0.602}]},
        {"boxes": [BOX | {"y": float("nan")}]},
        {"boxes": [BOX | {"h": float("inf")}]},
        {"boxes": [BOX | {"score": 1}]},
        {"boxes": [{"label": "mass", "x": 0.1}]},
    ],
)
def test_bad_values_are_refused_and_the_row_is_named(tmp_path: Path, changes: dict):
    with pytest.raises(ValidationError):
        row(**changes)
    fields = row().model_dump(mode="json")
    lines = [json.dumps(fields), json.dumps(fields | changes)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(ManifestError, match="row 2") as caught:
        Manifest.read(tmp_path / "m.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([row("a"), row("a")], "row 2: study 'a' holds a.png twice, first at row 1"),
        ([row("a"), row("a", view="lateral")], "twice"),
        ([row("a", view=None, file=None), row("a", view=None, file=None)], "twice"),
        ([row("a"), row("b", file="a.png")], "row 2: a.png belongs to study 'a' already"),
        ([row("a"), row("b", file="./x/../a.png")], "belongs to study 'a'"),
        ([row("a", subject="p"), row("b"), row("c", subject="p", split="val")], "row 3: subject 'p' is in split 'val'"),
        ([row("a"), row("a", file="2.png", split="val")], "split by subject"),
        ([row("a"), row("a", file="2.png", subject="q")], "row 2: study 'a' differs in subject from row 1"),
        ([row("a"), row("a", file="2.png", impression="Other.")], "differs in impression"),
        ([row("a", severity=1), row("a", file="2.png", severity=2)], "differs in severity"),
        ([row("a", masks={"device": ["m.png"]}), row("a", file="2.png")], "differs in masks"),
    ],
)
def test_rules_between_rows(content: list[Row], words: str):
    with pytest.raises(ManifestError) as caught:
        manifest(*content).check(files=False)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_box_may_reach_out_by_a_pixel_of_1024():
    assert row(boxes=[BOX | {"x": -0.0009}, BOX | {"x": 0.7009}, BOX | {"y": 0.6009}]).boxes[1].x == 0.7009


def test_a_subject_with_two_studies_in_one_split_is_fine():
    both = manifest(row("a", subject="p"), row("b", subject="p"))
    both.check(files=False)
    assert [(study.id, study.subject) for study in both.studies()] == [("a", "p"), ("b", "p")]


def test_missing_files_are_named(tmp_path: Path):
    (tmp_path / "a.png").touch()
    made = manifest(row("a"), row("b"), root=tmp_path)
    with pytest.raises(ManifestError, match=r"row 2: study 'b': no such file .*b\.png"):
        made.check()
    made.check(files=False)


@given(
    content=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("pq"), st.sampled_from(["train", "val"])),
        min_size=1,
        max_size=6,
    )
)
def test_a_leak_is_found_exactly_when_there_is_one(content: list[tuple[str, str, str]]):
    made = manifest(
        *(row(f"{study}{i}", subject=subject, split=split) for i, (study, subject, split) in enumerate(content))
    )
    splits: dict[str, set[str]] = {}
    for _, subject, split in content:
        splits.setdefault(subject, set()).add(split)
    if any(len(found) > 1 for found in splits.values()):
        with pytest.raises(ManifestError, match="split by subject"):
            made.check(files=False)
    else:
        made.check(files=False)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.jsonl", b"", "no rows"),
        ("m.jsonl", b"[1]\n", "line 1 is list"),
        ("m.jsonl", b"\n{", "line 2 is not JSON"),
        ("m.jsonl", b"\xff\xfe", "UTF-8"),
        ("m.parquet", b"PAR1 no", "not a readable Parquet"),
        ("m.parquet", b"", "not a readable Parquet"),
        ("m.csv", b"a,b", "unknown ending"),
    ],
)
def test_unreadable_manifests(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=words):
        Manifest.read(tmp_path / name)


def test_a_truncated_parquet_and_a_missing_manifest(tmp_path: Path):
    manifest(row(), root=tmp_path).write(tmp_path / "m.parquet")
    data = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "m.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(ManifestError, match="truncated"):
        Manifest.read(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="no such manifest"):
        Manifest.read(tmp_path / "none.parquet")


def test_writing_is_whole_or_nothing(tmp_path: Path):
    made = manifest(row(), root=tmp_path)
    made.write(tmp_path / "m.jsonl")
    with pytest.raises(OutputError, match="exists already"):
        made.write(tmp_path / "m.jsonl", overwrite=False)
    with pytest.raises(ManifestError, match="unknown ending"):
        made.write(tmp_path / "m.txt")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        made.write(tmp_path / "file" / "m.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m.jsonl"]
