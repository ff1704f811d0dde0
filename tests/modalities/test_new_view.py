"""A third view, made known by one line: manifest, training, generation, cohort and evaluation take it as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import xgem
from xgem.cohort.plan import Plan
from xgem.cohort.run import run as run_cohort
from xgem.configs.preset import Preset, load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest, Row
from xgem.eval.cohorts import Sampling
from xgem.eval.routes import RunSettings, evaluate_routes
from xgem.judges.classifier import ClassifierConfig
from xgem.labels.views import VIEWS
from xgem.modalities import MODALITIES
from xgem.modalities.cxr import Radiograph
from xgem.train.loop import LoopOptions
from xgem.train.stages import planned, run, stages
from xgem.types import InputError, ManifestError
from xgem.utils.files import file_sha256

NAMES = ("frontal", "lateral", "oblique", "report")
TEXTS = ("No acute disease.", "Large left pleural effusion.", "Cardiomegaly.", "Clear lungs.")
LABELS = (("normal",), ("Pleural Effusion",), ("Cardiomegaly",), ("normal",))
QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def oblique() -> Iterator[None]:
    MODALITIES["oblique"] = Radiograph("oblique", positions=("LAO", "RAO"))
    yield
    del MODALITIES["oblique"], VIEWS["oblique"]


@pytest.fixture(scope="module")
def preset() -> Preset:
    """The debug preset with the view, whose components are those of the others; every generator reads all prompts."""
    record = load_preset("debug").model_dump(mode="json")
    parts = record["components"]
    parts["oblique"] = {**copy.deepcopy(parts["frontal"]), "modality": "oblique"}
    for name in NAMES:
        parts[name]["prompts"] = [other for other in NAMES if other != name]
    parts["alignment"]["outputs"]["oblique"] = parts["alignment"]["outputs"]["frontal"]
    record["modalities"]["oblique"] = {**record["modalities"]["frontal"], "generator": "oblique"}
    brief = record["train"]["clip"] | {"steps": 2, "validate_every": 2, "checkpoint_every": 2}
    record["train"] = {"clip": brief, "oblique": brief}
    return Preset.parse(record, "with a third view")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for i in range(28):
        for view in ("frontal", "lateral", "oblique"):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(folder / f"{i}_{view}.png")
            study: dict[str, Any] = {
                "study": f"s{i:02d}",
                "subject": f"s{i:02d}",
                "split": "val" if i < 10 else "train",
            }
            study |= {"impression": TEXTS[i % 4], "labels": LABELS[i % 4], "source": "openi"}
            rows.append(Row(view=view, file=f"{i}_{view}.png", **study))
    Manifest(tuple(rows), folder).write(folder / "studies.parquet")
    return folder / "studies.parquet"


@pytest.fixture(scope="module")
def model(preset: Preset, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompt encoders and the view's generator trained for two steps; the rest is random."""
    random, root = (tmp_path_factory.mktemp("model") / name for name in ("random", "trained"))
    random_checkpoint(random, preset)
    assert planned(preset) == ("clip", "oblique")
    options = LoopOptions(progress=False, tensorboard=False)
    states = run(planned(preset), preset, Manifest.read(manifest), root, options, init=random)
    assert {name: state.step for name, state in states.items()} == {"clip": 2, "oblique": 2}
    assert _weights(random, "oblique") != _weights(root, "oblique")
    assert _weights(random, "lateral") == _weights(root, "lateral")
    return root


def _weights(root: Path, component: str) -> list[str]:
    return [file_sha256(file) for file in sorted((root / component).glob("*.safetensors"))]


def test_it_is_a_stage_and_a_view_of_manifests(manifest: Path) -> None:
    assert "oblique" in stages()
    read = Manifest.read(manifest)
    read.check()
    assert read.summary()["images"]["train/oblique"] == 18
    assert all(set(study.images) == {"frontal", "lateral", "oblique"} for study in read.studies())
    with pytest.raises(ValueError, match="frontal, lateral, oblique or null"):
        Row(study="a", subject="a", split="val", view="axial", file="a.png")


def test_contrastive_training_pairs_it_with_the_others(model: Path) -> None:
    logged = "".join(file.read_text() for file in (model / "training" / "clip").glob("log.jsonl"))
    for pair in ("frontal-oblique", "lateral-oblique", "oblique-report"):
        assert f'"{pair}"' in logged


def test_it_is_generated_and_it_is_a_prompt(model: Path, manifest: Path) -> None:
    pipeline = xgem.load(model, device="cpu")
    images = [manifest.parent / f"{i}_oblique.png" for i in range(2)]
    made = [pipeline({"oblique": image}, ["frontal"], seed=3, output_type="np", **QUICK).frontal[0] for image in images]
    assert float(np.abs(made[0] - made[1]).max()) > 0  # another oblique, another frontal
    generation = pipeline({"report": TEXTS[0]}, ["lateral", "oblique"], joint=True, seed=3, **QUICK)
    (image,) = generation.outputs["oblique"]
    assert image.size == (32, 32)
    with pytest.raises(InputError, match="'oblique' is an input and an output"):
        pipeline({"oblique": images[0]}, ["oblique"], **QUICK)


def test_cohorts_have_it_as_input_and_output(model: Path, manifest: Path, tmp_path: Path) -> None:
    common = {"model": str(model), "num_inference_steps": 2, "batch_size": 4, "seed": 1}
    views = {"outputs": ["frontal", "oblique", "report"], "balanced": {"count": 2, "views": [["frontal", "oblique"]]}}
    matched = {"outputs": ["lateral"], "matched": {"manifest": str(manifest), "split": "val", "inputs": ["oblique"]}}
    for name, plan, images in (
        ("balanced", views, {"frontal": 2, "oblique": 2}),
        ("matched", matched, {"lateral": 10}),
    ):
        done = run_cohort(Plan.model_validate({"name": name, **common, **plan}), tmp_path / name, progress=False)
        assert done.counts is not None
        assert done.counts.images == images
    studies = Manifest.read(tmp_path / "balanced" / "manifest.parquet").studies()
    assert all(set(study.images) == {"frontal", "oblique"} for study in studies)
    with pytest.raises(ValueError, match="unknown 'axial': expected one of frontal, lateral, report, oblique"):
        Plan.model_validate({"name": "a", **common, "outputs": ["axial"], "balanced": {"count": 1}})


def test_its_routes_are_measured(model: Path, manifest: Path, tmp_path: Path) -> None:
    settings = RunSettings(
        sampling=Sampling(num_inference_steps=2),
        bootstrap=20,
        diversity_prompts=0,
        classifier=ClassifierConfig(epochs=1),
    )
    routes = ["oblique+T->F", "F->oblique"]
    _, results = evaluate_routes(
        str(model), manifest, tmp_path, settings=settings, routes=routes, device="cpu", progress=False
    )
    assert {(one.route, one.family) for one in results} == {
        (route, family) for route in routes for family in ("agreement", "factual", "fidelity")
    }
    for one in results:
        if one.family == "agreement":
            (agreement,) = [metric for metric in one.metrics if metric.name == "prompt_agreement"]
            assert agreement.value is not None
            assert agreement.value.n == 10
            assert "shuffled" in agreement.references


def test_a_manifest_of_an_unknown_view_is_refused_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(
        '{"study": "a", "subject": "a", "split": "val", "view": "axial", "file": "a.png"}'
    )
    with pytest.raises(ManifestError, match=r"row 1: view: .*frontal, lateral, oblique or null.*'axial'"):
        Manifest.read(tmp_path / "m.jsonl")
