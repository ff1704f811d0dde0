"""A whole curation: what is planted is found, good rows stay, and interruptions and engines change nothing."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.curation.conftest import CELL, Pixels, Source, smooth
from xgem.curation.engine import Engine
from xgem.curation.plan import CurationPlan, read_plan
from xgem.curation.run import curate
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest
from xgem.types import DataError, InputError, OutputError

RULES = {"judge": False, "min_side": 32}
FILES = ("manifest.parquet", "decisions.parquet", "README.md", "costs.json")


def decisions(out: Path) -> dict[str, dict[str, Any]]:
    return {one["study"]: one for one in pq.read_table(out / "decisions.parquet").to_pylist()}


def jpeg(pixels: Pixels) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=40)
    return np.asarray(Image.open(stream))


def resized(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((170, 140)))


def brighter(pixels: Pixels) -> Pixels:
    return np.clip(pixels.astype(np.float64) * 0.9 + 20, 0, 255).astype(np.uint8)


def test_what_is_planted_is_found(
    source: Source,
    write_plan: Callable[..., Path],
    frontals: list[Pixels],
    laterals: list[Pixels],
    tmp_path: Path,
    xgem: Any,
) -> None:
    good = {f"good{k}": image for k, image in enumerate(frontals[:5])}
    rng = np.random.default_rng(0)
    other = np.asarray(Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).resize((160, 160)))
    first = source("first", good, labels=("No Finding",))
    planted = {
        "exact": frontals[0],
        "resized": resized(frontals[1]),
        "jpeg": jpeg(frontals[2]),
        "brighter": brighter(frontals[3]),
        "cropped": frontals[4][5:-4, 6:-7],
        "mirrored": frontals[0][:, ::-1],
        "turned": np.rot90(frontals[5]),
        "negative": 255 - laterals[0],
        "lateral": laterals[1],
        "noise": other,
        "blank": np.pad(frontals[1][:20], ((0, 300), (0, 0))),
        "gone": None,
        "liar": laterals[3],
    }
    texts = {stem: "Large pleural effusion." if stem == "liar" else "" for stem in planted}
    views = {stem: "lateral" if stem in ("negative", "liar") else "frontal" for stem in planted}
    second = source("second", planted, labels=("No Finding",), impression=texts, view=views)
    out = tmp_path / "out"
    done = xgem("data", "curate", write_plan(first, second), "--out", out, "--json")
    assert done.code == 0, done.err
    found = decisions(out)
    lost = {study: one["reason"] for study, one in found.items() if study.startswith("first") and one["reason"]}
    assert not lost
    of = {stem: found[f"second-{stem}"] for stem in planted}
    originals = dict(
        zip(("exact", "resized", "jpeg", "brighter", "cropped", "mirrored"), (0, 1, 2, 3, 4, 0), strict=True)
    )
    assert {stem: of[stem]["duplicate_of"] for stem in originals} == {s: f"first-good{k}" for s, k in originals.items()}
    assert of["mirrored"]["orientation"] == "mirrored"
    kinds = {stem: (one["decision"], one["kind"]) for stem, one in of.items() if stem not in originals}
    assert kinds == {
        "turned": ("fixed", "rotated"),
        "negative": ("fixed", "inverted"),
        "lateral": ("fixed", "view"),
        "noise": ("dropped", "not_chest"),
        "blank": ("dropped", "blank"),
        "gone": ("dropped", "source"),
        "liar": ("dropped", "contradiction"),
    }
    assert of["gone"]["reason"] == "missing file"
    # What the manifest refers to is upright, and read as it is
    manifest = Manifest.read(out / "manifest.parquet")
    manifest.check()
    rows = {row.study: row for row in manifest.rows}
    assert len(rows) == 8
    assert np.array_equal(np.asarray(Image.open(str(rows["second-turned"].file))), frontals[5])
    assert rows["second-negative"].reading.invert
    assert rows["second-negative"].file == str(tmp_path / "second" / "negative.png")
    assert (rows["second-lateral"].view, rows["second-lateral"].view_guessed) == ("lateral", True)
    assert rows["first-good0"].impression == "No acute cardiopulmonary abnormality."
    counts = json.loads(done.out)
    assert counts["rows"] == {"unchanged": 5, "fixed": 3, "dropped": 10}
    card = (out / "README.md").read_text()
    assert "| duplicates | duplicate | 6 |" in card
    assert "| CC BY 4.0 | 8 |" in card


def drawn_plan(source: Source, write_plan: Callable[..., Path], count: int, part: int) -> CurationPlan:
    rng = np.random.default_rng(1)
    images = {f"{k:03d}": smooth(rng) for k in range(count)}
    copies = {f"{k:03d}": brighter(images[f"{k:03d}"]) for k in range(0, count, 10)}
    first = source("first", images, labels=("Effusion",), age=60.0)
    second = source("second", copies, labels=("Mass",))
    return read_plan(write_plan(first, second, content=RULES, part=part))


def results(out: Path) -> list[bytes]:
    return [(out / file).read_bytes() for file in FILES]


def test_killed_again_and_again_it_gives_the_same_bytes(
    source: Source, write_plan: Callable[..., Path], tmp_path: Path
) -> None:
    plan = drawn_plan(source, write_plan, 200, 25)
    start = time.monotonic()
    done = curate(plan, tmp_path / "whole")
    takes = time.monotonic() - start
    assert done.dropped == {("duplicates", "duplicate"): 20}
    rng, killed = random.Random(0), 0
    fork = multiprocessing.get_context("fork")
    while killed < 3:
        process = fork.Process(target=curate, args=(plan, tmp_path / "killed"))
        process.start()
        process.join(takes * rng.uniform(0.1, 0.4))
        if process.exitcode is not None:
            break
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
    assert killed >= 2
    curate(plan, tmp_path / "killed")
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_parts_and_processes_change_nothing(source: Source, write_plan: Callable[..., Path], tmp_path: Path) -> None:
    plan = drawn_plan(source, write_plan, 40, 16)
    curate(plan, tmp_path / "one")
    curate(plan.model_copy(update={"part": 7}), tmp_path / "small")
    rows = [pq.read_table(tmp_path / name / "decisions.parquet").to_pylist() for name in ("one", "small")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_two_workers_of_a_cluster_give_the_same(
    source: Source, write_plan: Callable[..., Path], tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    plan = drawn_plan(source, write_plan, 60, 10)
    curate(plan, tmp_path / "local")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        curate(plan, tmp_path / "cluster", Engine("dask", scheduler=cluster.scheduler_address))
    curate(plan, tmp_path / "jobs", Engine(jobs=2))
    assert results(tmp_path / "cluster") == results(tmp_path / "local") == results(tmp_path / "jobs")


def test_a_patient_in_two_splits_goes_into_one(source: Source, write_plan: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    shared, images = smooth(rng), {f"{k}": smooth(rng) for k in range(3)}
    first = source("first", {"shared": shared, "own": images["0"]}, subject="ann", split="train")
    second = source("second", {"copy": shared, "own": images["1"]}, subject="patient 7", split="test")
    third = source("third", {"other": images["2"]}, subject="bob", split="train")
    out = tmp_path / "out"
    curate(read_plan(write_plan(first, second, third, content=RULES)), out)
    splits = {row.study: row.split for row in Manifest.read(out / "manifest.parquet").rows}
    assert splits == {"first-shared": "test", "first-own": "test", "second-own": "test", "third-other": "train"}
    assert "split train -> test" in decisions(out)["first-own"]["notes"][0]


def test_of_copies_the_annotated_one_is_kept(source: Source, write_plan: Callable[..., Path], tmp_path: Path) -> None:
    image = smooth(np.random.default_rng(3))
    first = source("first", {"bare": image})
    second = source("second", {"boxed": brighter(image)}, boxes=(Box("mass", 0.1, 0.2, 0.3, 0.3),), labels=("Mass",))
    out = tmp_path / "out"
    curate(read_plan(write_plan(first, second, content=RULES)), out)
    found = decisions(out)
    assert found["second-boxed"]["decision"] == "kept"
    assert found["first-bare"]["duplicate_of"] == "second-boxed"
    assert (
        found["second-boxed"]["text_after"] == "Findings: Frontal chest radiograph. Right mass. Impression: Right mass."
    )


def test_a_study_of_two_sources_is_taken_from_the_first(
    source: Source, write_plan: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    first = source("first", {"a": smooth(rng)}, study="s", subject="p")
    second = source("second", {"a": smooth(rng), "b": smooth(rng)}, study={"a": "s", "b": "t"}, subject="p")
    out = tmp_path / "out"
    curate(read_plan(write_plan(first, second, content=RULES)), out)
    reasons = [one["reason"] for one in pq.read_table(out / "decisions.parquet").to_pylist()]
    assert reasons == [None, "study of the same id in source first", None]


def test_what_cannot_be_used_is_said(source: Source, write_plan: Callable[..., Path], tmp_path: Path) -> None:
    image = smooth(np.random.default_rng(5))
    gone = source("gone", {"a": None, "b": None})
    with pytest.raises(DataError, match="source gone: none of its 2 rows can be used, the first: missing file"):
        curate(read_plan(write_plan(gone, content=RULES)), tmp_path / "out")
    good = source("good", {"a": image})
    with pytest.raises(OutputError, match=r"was begun with another plan; choose another folder"):
        curate(read_plan(write_plan(good, content=RULES)), tmp_path / "out")
    with pytest.raises(OutputError, match="not empty"):
        curate(read_plan(write_plan(good, content=RULES)), tmp_path / "good")
    with pytest.raises(DataError, match="no row is left, 1 were dropped in content: small; see"):
        curate(read_plan(write_plan(good, content={"judge": False})), tmp_path / "none")
    with pytest.raises(InputError, match="--engine dask and --scheduler ADDRESS: expected both or none"):
        Engine("dask")
    with pytest.raises(InputError, match="--jobs: processes of this machine"):
        Engine("dask", jobs=2, scheduler="tcp://127.0.0.1:1")


def test_a_turned_frontal_of_a_study_with_a_lateral_keeps_its_annotations(
    source: Source, write_plan: Callable[..., Path], frontals: list[Pixels], laterals: list[Pixels], tmp_path: Path
) -> None:
    mask = np.zeros((CELL, 166), np.uint8)
    mask[20:60, 10:50] = 255
    Image.fromarray(mask).save(tmp_path / "lung.png")
    images = {"frontal": np.rot90(frontals[5]).copy(), "lateral": laterals[1]}
    views = {"frontal": "frontal", "lateral": "lateral"}
    masks = {view: {"left lung": (str(tmp_path / "lung.png"),)} for view in views}
    boxes = (Box("mass", 0.1, 0.1, 0.3, 0.2),)
    manifest = source("set", images, study="s", subject="s", view=views, labels=("Mass",), masks=masks, boxes=boxes)
    out = tmp_path / "out"
    curate(read_plan(write_plan(manifest)), out)
    (study,) = Manifest.read(out / "manifest.parquet").studies()
    (box,) = study.boxes
    assert (box.x, box.y, box.w, box.h) == pytest.approx((0.7, 0.1, 0.2, 0.3))
    turned = np.asarray(Image.open(study.masks["left lung"][0]))
    assert np.array_equal(turned, np.rot90(mask, -1))
    assert np.array_equal(np.asarray(Image.open(study.images["frontal"][0])), frontals[5])
    assert study.findings == "Frontal and lateral chest radiographs. Left mass."


@pytest.mark.data
def test_a_published_set_by_its_name(data_dir: Path, tmp_path: Path) -> None:
    sources = [{"name": "hannover", "folder": str(data_dir / "hannover")}]
    plan = CurationPlan.model_validate({"name": "one", "sources": sources, "content": {"certainty": 0.99}})
    done = curate(plan, tmp_path / "out")
    assert done.decisions["kept"] > 150
    assert "| hannover |" in (tmp_path / "out" / "README.md").read_text()
