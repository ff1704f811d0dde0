"""Sets read from manifests, folders and CSVs; what is wrong with them is said."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.set_files import read_set
from xgem.data.sets import check_disjoint, pairs
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import DataError, ImageError, InputError


def image(path, seed=0, size=(40, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)).save(path)
    return path


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_folder_without_a_csv_holds_its_images_by_name(tmp_path):
    image(tmp_path / "b.png", 1)
    image(tmp_path / "deeper" / "a.png", 2)
    found = read_set(tmp_path)
    assert [item.id for item in found.items] == ["b", "deeper/a"]
    assert np.isnan(found.labels()).all()


def test_chexgenbench_prompts(tmp_path):
    image(tmp_path / "p" / "1.png")
    file = table(tmp_path / "prompt_INFO.csv", [{"prompt": "Cardiomegaly.", "img_savename": "p/1.png"}])
    found = read_set(file)
    assert found.items[0].prompt == "Cardiomegaly."
    assert found.items[0].labels["Cardiomegaly"] == 1  # by xgem's rules, since the file has none
    assert found.labelled_by == "xgem-rules"


def test_chexgenbench_annotations_hold_a_dict_as_text(tmp_path):
    image(tmp_path / "1.png")
    row = {
        "id": "7",
        "path": "1.png",
        "annotated_prompt": "x",
        "chexpert_labels": "{'Edema': 1.0, 'Fracture': nan, 'Pneumonia': -1.0}",
    }
    found = read_set(table(tmp_path / "annotations.csv", [row]))
    assert found.items[0].id == "7"
    assert found.items[0].labels == {"Edema": 1.0, "Pneumonia": -1.0}
    assert found.labelled_by == "file"


def test_chexgenbench_generations(tmp_path):
    image(tmp_path / "g1.png")
    found = read_set(
        table(tmp_path / "generations_with_metadata.csv", [{"synthetic_filename": "g1.png", "annotated_prompt": "a"}])
    )
    assert found.items[0].prompt == "a"


def test_labels_may_be_columns(tmp_path):
    image(tmp_path / "1.png")
    row = {"file": "1.png", "Edema": "1", "Fracture": "", "Pneumonia": "-1.0", "age": "64", "sex": "Female"}
    found = read_set(table(tmp_path / "m.csv", [row]))
    labels = dict(zip(CHEXPERT_CLASSES, found.labels()[0], strict=True))
    assert labels["Edema"] == 1
    assert labels["Pneumonia"] == -1
    assert math.isnan(labels["Fracture"])
    assert (found.items[0].age, found.items[0].sex) == (64.0, "F")


def test_a_manifest_gives_first_images_reports_and_annotators_labels(tmp_path):
    rows = [
        Row(
            study="a",
            subject="a",
            split="val",
            view="frontal",
            file=str(image(tmp_path / f"{n}.png", n)),
            impression="Edema.",
            labels=("Effusion",),
            source="nih",
        )
        for n in (1, 2)
    ]
    Manifest(tuple(rows), tmp_path).write(tmp_path / "m.parquet")
    found = read_set(tmp_path / "m.parquet", split="val")
    assert len(found) == 1
    assert found.items[0].file == tmp_path / "1.png"
    assert found.items[0].labels["Pleural Effusion"] == 1
    assert found.items[0].labels["Edema"] == 0  # annotators name what is there
    assert "Fracture" not in found.items[0].labels  # of which these annotators never tell
    by_report = read_set(tmp_path / "m.parquet", split="val", labels="reports")
    assert by_report.items[0].labels["Edema"] == 1
    with pytest.raises(DataError, match="nothing in it for split 'train'"):
        read_set(tmp_path / "m.parquet", split="train")
    Manifest(tuple(row.model_copy(update={"source": ""}) for row in rows), tmp_path).write(tmp_path / "own.parquet")
    assert read_set(tmp_path / "own.parquet").items[0].labels == {"Pleural Effusion": 1, "No Finding": 0}


def test_images_are_streamed_squared_and_resized(tmp_path):
    for n in range(5):
        image(tmp_path / f"{n}.png", n, (40, 60))
    found = read_set(tmp_path)
    shapes = [batch.shape for batch in found.batches(32, batch_size=2)]
    assert shapes == [(2, 32, 32), (2, 32, 32), (1, 32, 32)]
    assert found.images(60)[0, :10].max() == 0  # padded above, not stretched


def test_mixed_sizes_are_refused_unless_padded(tmp_path):
    image(tmp_path / "a.png", 1, (40, 40))
    image(tmp_path / "b.png", 2, (40, 44))
    with pytest.raises(DataError, match=r"mixed sizes, a.png 40 x 40 and b.png 44 x 40; .*--pad"):
        read_set(tmp_path).images(32)
    assert read_set(tmp_path, pad=True).images(32).shape == (2, 32, 32)


def test_an_unreadable_image_is_named_never_black(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ImageError, match=r"b\.png"):
        read_set(tmp_path).images(32)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"file": "none.png"}, "1 of 1 files are missing"),
        ({"images": "1.png"}, r"columns images \(read as UTF-8, comma\); expected one of file"),
        ({"file": "1.png", "Edema": "2"}, "line 2: Edema is '2', expected 1, 0, -1"),
        ({"file": "1.png", "chexpert_labels": "{'Edema': 3}"}, "Edema is 3, expected"),
        ({"file": "1.png", "chexpert_labels": "{'Oedema': 1}"}, "unknown class 'Oedema'"),
        ({"file": "1.png", "chexpert_labels": "__import__('os')"}, "expected a dict"),
        ({"file": "1.png", "age": "old"}, "age is 'old'; expected a number"),
        ({"file": "", "age": "3"}, "line 2: no file name"),
    ],
)
def test_bad_csv(tmp_path, row, says):
    image(tmp_path / "1.png")
    with pytest.raises(DataError, match=says):
        read_set(table(tmp_path / "m.csv", [row]))


def test_other_bad_places(tmp_path):
    with pytest.raises(DataError, match="expected a manifest"):
        read_set(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nothing in it"):
        read_set(tmp_path)
    table(tmp_path / "a.csv", [{"file": "1"}])
    table(tmp_path / "b.csv", [{"file": "1"}])
    with pytest.raises(DataError, match=r"several CSVs \(a.csv, b.csv\)"):
        read_set(tmp_path)
    image(tmp_path / "1.png")
    table(tmp_path / "c.csv", [{"id": "1", "file": "1.png"}, {"id": "1", "file": "1.png"}])
    with pytest.raises(DataError, match="duplicate id '1'"):
        read_set(tmp_path / "c.csv")


def test_reports_alone_are_a_set_without_images(tmp_path):
    found = read_set(table(tmp_path / "r.csv", [{"id": "a", "report": "No edema."}]))
    assert found.reports == ["No edema."]
    with pytest.raises(InputError, match="no images"):
        found.with_images()
    both = table(tmp_path / "b.csv", [{"id": "a", "report": "No edema."}, {"id": "b", "report": ""}])
    assert [item.id for item in read_set(both).with_reports().items] == ["a"]
    with pytest.raises(InputError, match="no reports"):
        read_set(both).subset([1]).with_reports()


def test_pairs_follow_the_named_study_and_refuse_strangers(tmp_path):
    real = read_set(table(tmp_path / "r.csv", [{"id": "a", "report": "A"}, {"id": "b", "report": "B"}]))
    rows = [
        {"id": "1", "pair": "b", "report": "x"},
        {"id": "2", "pair": "a", "report": "y"},
        {"id": "3", "pair": "c", "report": "z"},
    ]
    first, second = pairs(real, read_set(table(tmp_path / "g.csv", rows)))
    assert [(r.id, g.id) for r, g in zip(first.items, second.items, strict=True)] == [("b", "1"), ("a", "2")]
    with pytest.raises(DataError, match="names one of the 2"):
        pairs(real, read_set(table(tmp_path / "h.csv", [{"id": "z", "report": "q"}])))


def test_sets_that_share_a_image_are_refused(tmp_path):
    image(tmp_path / "r" / "a.png", 1)
    image(tmp_path / "g" / "b.png", 2)
    check_disjoint(read_set(tmp_path / "r"), read_set(tmp_path / "g"))
    image(tmp_path / "g" / "copy.png", 1)
    with pytest.raises(DataError, match=r"overlap: .*copy.png"):
        check_disjoint(read_set(tmp_path / "r"), read_set(tmp_path / "g"))


def test_the_hash_follows_content(tmp_path):
    image(tmp_path / "a.png", 1)
    first = read_set(tmp_path).sha256
    assert read_set(tmp_path).sha256 == first
    image(tmp_path / "a.png", 2)
    assert read_set(tmp_path).sha256 != first


def test_a_table_of_several_views_is_read_view_by_view(tmp_path):
    rows = [
        {"file": f"{i}-{view}.png", "id": f"{i}-{view}", "view": view, "report": "Clear."}
        for i in range(3)
        for view in ("frontal", "lateral")
    ]
    for row in rows:
        image(tmp_path / row["file"])
    file = table(tmp_path / "metadata.csv", rows)
    assert [item.id for item in read_set(tmp_path).items] == ["0-frontal", "1-frontal", "2-frontal"]
    assert [item.id for item in read_set(file, view="lateral").items] == ["0-lateral", "1-lateral", "2-lateral"]
    assert len(read_set(file, view=None)) == 6
    table(file, rows[1::2])
    with pytest.raises(DataError, match=r"no row of view frontal; it has lateral 3: choose"):
        read_set(file)


def test_a_folder_of_generations_is_read_view_by_view(tmp_path):
    for name in ("frontal", "lateral"):
        info = PngInfo()
        info.add_itxt("xgem", json.dumps({"output": name}))
        Image.new("L", (40, 40)).save(tmp_path / f"{name}.png", pnginfo=info)
    for name in ("real.png", "real.mask.png", "._real.png", "__MACOSX/real.png", ".cache/real.png"):
        image(tmp_path / name)
    assert [item.id for item in read_set(tmp_path).items] == ["frontal", "real"]
    assert [item.id for item in read_set(tmp_path, view="lateral").items] == ["lateral", "real"]


def test_names_of_columns_in_any_case(cases_dir):
    found = read_set(cases_dir / "evalcsv" / "half_caps")
    assert [(item.sex, item.age, item.race) for item in found.items[:2]] == [("F", 50, "White"), ("F", 51, "White")]
    assert found.items[0].report.startswith("Cardiomegaly")


def test_values_out_of_range_are_refused_with_their_line(cases_dir, tmp_path):
    with pytest.raises(DataError, match=r"line 3: age is 'inf'"):
        read_set(cases_dir / "evalcsv" / "age_inf")
    assert [item.sex for item in read_set(cases_dir / "evalcsv" / "sex_words").items[:3]] == ["F", "M", None]
    for row, words in (
        ({"id": "a", "report": "x", "age": "121"}, "age is '121', expected a number from 0 to 120"),
        ({"id": "a", "report": "x", "severity": "-1"}, "severity is '-1', expected a number from 0 to 18"),
        ({"id": "a", "report": "x", "sex": "yes"}, "sex is 'yes', expected F, M or empty"),
    ):
        with pytest.raises(DataError, match=words):
            read_set(table(tmp_path / "t.csv", [row]))


@pytest.mark.parametrize(
    ("name", "reports"),
    [
        ("gen_tsv.tsv", 8),
        ("gen_upper.CSV", 8),
        ("gen_emoji.csv", 8),
        ("gen_nan.csv", 4),
        ("gen_dot.csv", 4),
        ("gen_blank.csv", 4),
        ("gen_long.csv", 8),
    ],
)
def test_tables_of_reports(cases_dir, name, reports):
    found = read_set(cases_dir / "evalcsv" / "text" / name)
    assert len(found) == 8
    assert sum(bool(report) for report in found.reports) == reports


def test_a_comma_that_is_not_quoted_is_refused(cases_dir):
    with pytest.raises(DataError, match=r"line 2 has 3 cells, the header \(UTF-8, comma\) has 2"):
        read_set(cases_dir / "evalcsv" / "text" / "gen_unquoted.csv")


def test_wrapped_reports_have_the_labels_of_unwrapped_ones(cases_dir):
    folded, wrapped = (read_set(cases_dir / "evalcsv" / "text" / f"{name}.csv") for name in ("folded", "wrapped"))
    assert [item.labels for item in folded.items] == [item.labels for item in wrapped.items]
    assert folded.items[0].labels["Consolidation"] == 0


def test_labels_by_a_sources_own_classes(tmp_path):
    image(tmp_path / "1.png")
    rows = [
        Row(study=name, subject=name, split="train", view="frontal", file="1.png", labels=labels, source="toy")
        for name, labels in (("a", ("Rib_shadow", "Edema")), ("b", ("no rib shadow",)), ("c", ("other",)), ("d", ()))
    ]
    Manifest(tuple(rows), tmp_path).write(tmp_path / "toy.jsonl")
    found = read_set(tmp_path / "toy.jsonl", classes=("rib shadow", "Edema"))
    assert [dict(item.labels) for item in found.items] == [
        {"rib shadow": 1.0, "Edema": 1.0},
        {"rib shadow": 0.0},
        {"rib shadow": 0.0},
        {},
    ]
    cases = table(tmp_path / "cases.csv", [{"file": "1.png", "Rib shadow": "1", "Edema": "0", "Fracture": "1"}])
    assert dict(read_set(cases, classes=("rib shadow", "Edema")).items[0].labels) == {"rib shadow": 1.0, "Edema": 0.0}
