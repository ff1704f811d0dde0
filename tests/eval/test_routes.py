from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.configs.components import TransformConfig
from xgem.data.manifest import Manifest, Row
from xgem.eval.material import load_material
from xgem.eval.results import Evaluation
from xgem.eval.route import all_routes, parse_route
from xgem.eval.routes import RunSettings, beats_shuffled, evaluate_routes
from xgem.judges.classifier import ClassifierConfig
from xgem.pipeline.embedding import Evaluated, open_model
from xgem.types import DataError, InputError, OutputError

SIZE = 32
PHRASES = ("pleural effusion", "cardiomegaly", "atelectasis", "rib fracture")
LABELS = ("Pleural Effusion", "Cardiomegaly", "Pulmonary Atelectasis", "Fractures, Bone")
MODALITIES = ("frontal", "lateral", "report")
SETTINGS = RunSettings(
    bootstrap=200,
    batch_size=7,
    diversity_prompts=4,
    diversity_seeds=2,
    classifier=ClassifierConfig(size=SIZE, width=4, epochs=1, batch_size=16),
)


@dataclass(frozen=True)
class World:
    """Studies with a hidden state of four numbers: images show it in two bases, reports its signs."""

    manifest: Manifest
    states: dict[str, np.ndarray]
    bases: dict[str, np.ndarray]

    def image(self, view: str, state: np.ndarray) -> np.ndarray:
        coarse = (state @ self.bases[view]).reshape(16, 16)
        return np.clip(128 + 20 * coarse, 0, 255).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)

    def state_of(self, view: str, images: np.ndarray) -> np.ndarray:
        coarse = images[:, ::2, ::2].reshape(len(images), -1).astype(float) - 128
        return coarse @ np.linalg.pinv(self.bases[view]) / 20


def report(state: np.ndarray) -> str:
    found = [phrase for phrase, value in zip(PHRASES, state, strict=True) if value > 0]
    return ("There is " + ". There is ".join(found) + ".") if found else "No acute disease."


def signs(text: str) -> np.ndarray:
    return np.array([1.0 if phrase in text else -1.0 for phrase in PHRASES])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    bases = {view: rng.normal(size=(4, 256)) for view in ("frontal", "lateral")}
    made = World(Manifest((), folder), {}, bases)
    rows: list[Row] = []
    for i in range(110):
        name, split = f"s{i:03d}", "val" if i < 40 else "train"
        state = made.states[name] = rng.normal(size=4)
        labels = tuple(label for label, value in zip(LABELS, state, strict=True) if value > 0) or ("normal",)
        for view in bases:
            Image.fromarray(made.image(view, state)).save(folder / f"{name}_{view}.png")
            if i == 0 and view == "lateral":
                continue  # an incomplete study
            shared: dict[str, Any] = {"labels": labels, "source": "openi", "impression": report(state), "view": view}
            rows.append(Row(study=name, subject=name, split=split, file=f"{name}_{view}.png", **shared))
    return World(Manifest(tuple(rows), folder), made.states, bases)


@dataclass
class Generated:
    outputs: dict[str, list[Any]]


def evaluated(world: World, *, listens: bool = True, noise: float = 0.3) -> Evaluated:
    """A model that knows the hidden states behind its prompts, or one that is deaf to them."""

    def state(name: str, value: Any) -> np.ndarray:
        return signs(value) if name == "report" else world.states[Path(value).stem.split("_")[0]]

    def pipe(inputs: list[dict[str, Any]], outputs: list[str], **options: Any) -> list[Generated]:
        (output,) = outputs
        made: list[Generated] = []
        for item, seed in zip(inputs, options["seed"], strict=True):
            assert output not in item
            samples: list[Any] = []
            for k in range(options["num_samples"]):
                draw = np.random.default_rng([seed, k]).normal(size=4)
                known = np.mean([state(*pair) for pair in item.items()], axis=0)
                guess = known + noise * draw if listens else draw
                samples.append(report(guess) if output == "report" else Image.fromarray(world.image(output, guess)))
            made.append(Generated({output: samples}))
        return made

    def embed(modality: str, values: Any) -> np.ndarray:
        if modality == "report":
            return np.stack([signs(text) for text in values])
        return world.state_of(modality, values)

    return Evaluated(
        name="fake",
        hash="0" * 8,
        pipe=pipe,
        images=("frontal", "lateral"),
        reports=("report",),
        transform=TransformConfig(size=SIZE),
        embed=embed,
        reconstruct=lambda _, images: images,
    )


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    out = tmp_path_factory.mktemp("run")
    return evaluate_routes(evaluated(world), world.manifest, out=out, settings=SETTINGS, progress=False), out


def test_nine_routes_and_never_the_target_as_a_prompt() -> None:
    routes = all_routes(MODALITIES)
    assert len({route.name for route in routes}) == len(routes) == 9
    assert all(route.output not in route.inputs for route in routes)
    assert {route.short for route in routes} == {
        *("T->F", "L->F", "L+T->F", "T->L", "F->L", "F+T->L", "F->T", "L->T", "F+L->T")
    }
    assert parse_route("T + L -> F", MODALITIES) == parse_route("lateral+report->frontal", MODALITIES)
    for wrong in ("F->F", "F", "X->T", "->F"):
        with pytest.raises(InputError, match="unknown route"):
            parse_route(wrong, MODALITIES)


def test_a_listening_model_beats_shuffled_prompts_on_every_route(run: tuple[Evaluation, Path]) -> None:
    evaluation, _ = run
    beats = beats_shuffled(evaluation)
    assert len(beats) == 9
    for route, found in beats.items():
        names = ["prompt_agreement", "target_agreement"]
        names += ["micro_f1_14", "macro_f1_14"] if route.endswith("T") else ["one_minus_own_rank", "pixel_correlation"]
        assert all(found[name] for name in names), (route, found)


def test_numbers_of_a_listening_model(run: tuple[Evaluation, Path]) -> None:
    evaluation, _ = run
    routes = {route.short: route for route in evaluation.routes}
    rank = routes["F->L"].measures["one_minus_own_rank"]
    assert rank.value.value > 0.9
    assert rank.baselines["ridge"].value > 0.9  # the world is linear: the line is hard to beat
    assert "ridge" not in routes["T->L"].measures["one_minus_own_rank"].baselines
    assert routes["F->L"].measures["band_ratio"].value.value == pytest.approx(1, abs=0.3)
    assert routes["F->L"].measures["diversity"].value.value > 0.02
    text = routes["F->T"].measures["macro_f1_findings"]
    assert text.value.value > text.baselines["constant"].value
    assert routes["F->T"].details["distinct"] >= 8
    assert evaluation.real["frontal"]["reconstruction_band_ratio"]["value"] == pytest.approx(1)
    assert evaluation.real["frontal"]["label_auc"]["mean"]["value"] > 0.5
    assert all(route.n == 39 for route in evaluation.routes)


def test_several_prompts_stand_beside_the_better_single_one(run: tuple[Evaluation, Path]) -> None:
    evaluation, _ = run
    assert set(evaluation.several_prompts) == {"L+T->F", "F+T->L", "F+L->T"}
    compared = evaluation.several_prompts["F+T->L"]["one_minus_own_rank"]
    assert compared["best_single"] == "F->L"
    assert compared["difference"]["value"] == pytest.approx(compared["value"]["value"] - compared["single"]["value"])


def test_a_deaf_model_is_found_out(world: World, tmp_path: Path) -> None:
    routes = [parse_route(name, MODALITIES) for name in ("F->L", "F->T")]
    deaf = evaluated(world, listens=False)
    settings = replace(SETTINGS, diversity_prompts=0)
    evaluation = evaluate_routes(deaf, world.manifest, out=tmp_path, settings=settings, routes=routes, progress=False)
    for route in evaluation.routes:
        for name in ("prompt_agreement", "target_agreement"):
            difference = route.measures[name].difference
            assert difference is not None
            assert difference.low < 0 < difference.high
    ridge = evaluation.routes[0].measures["one_minus_own_rank"]
    assert (ridge.value - ridge.baselines["ridge"]).estimate().high < 0
    assert "diversity" not in evaluation.routes[0].measures


def test_the_run_folder(run: tuple[Evaluation, Path], world: World) -> None:
    evaluation, out = run
    stored = json.loads((out / "routes.json").read_text())
    assert stored["settings"]["seed"] == 0
    assert stored["settings"]["model"] == {"name": "fake", "hash": "00000000"}
    assert len(stored["routes"]) == 9
    assert len((out / "routes.csv").read_text().splitlines()) > 100
    assert "F+L->T" in (out / "routes.md").read_text()
    assert len(list((out / "sheets").glob("*.png"))) == 9
    lines = (out / "reports" / "frontal_to_report.csv").read_text().splitlines()
    assert lines[0] == "study,real,generated_1"
    assert len(lines) == 40
    assert str(evaluation.tables()[1].title).startswith("Reports")
    with pytest.raises(OutputError, match="holds results already"):
        evaluate_routes(evaluated(world), world.manifest, out=out, settings=SETTINGS, progress=False)


def test_samples_are_averaged_and_runs_repeat(world: World, tmp_path: Path) -> None:
    routes = [parse_route("F->T", MODALITIES)]
    settings = replace(SETTINGS, num_samples=2, limit=20)
    options: dict[str, Any] = {"settings": settings, "routes": routes, "cache": tmp_path / "cache", "progress": False}
    one = evaluate_routes(evaluated(world), world.manifest, out=tmp_path / "a", **options)
    two = evaluate_routes(evaluated(world), world.manifest, out=tmp_path / "b", **options)
    assert one.json() == two.json()
    assert one.routes[0].n == 20
    assert (tmp_path / "a/reports/frontal_to_report.csv").read_text().startswith("study,real,generated_1,generated_2")


def test_limit_chooses_by_seed(world: World, tmp_path: Path) -> None:
    def ids(seed: int) -> list[str]:
        material = load_material(world.manifest, "val", evaluated(world), tmp_path, limit=10, seed=seed, progress=False)
        return [study.id for study in material.studies]

    assert ids(0) == ids(0) != ids(1)
    assert len(ids(0)) == 10
    assert "s000" not in ids(0)


def test_too_little_to_evaluate(world: World, tmp_path: Path) -> None:
    few = Manifest(
        tuple(row for row in world.manifest.rows if row.split == "train" or row.study < "s005"), world.manifest.root
    )
    with pytest.raises(DataError, match="at least 8"):
        load_material(few, "val", evaluated(world), tmp_path, progress=False)
    for wrong in ({"seed": -1}, {"limit": 2}, {"num_samples": 0}, {"num_inference_steps": 0}):
        with pytest.raises(InputError, match="expected at least"):
            replace(SETTINGS, **wrong)


def test_images_of_another_size_are_refused(world: World, tmp_path: Path) -> None:
    model = evaluated(world)

    def pipe(inputs: list[dict[str, Any]], *_: Any, **__: Any) -> list[Generated]:
        return [Generated({"frontal": [Image.new("L", (16, 16))]}) for _ in inputs]

    small = replace(model, pipe=pipe)
    with pytest.raises(InputError, match="expected 32 x 32"):
        evaluate_routes(
            small,
            world.manifest,
            out=tmp_path,
            settings=SETTINGS,
            routes=[parse_route("T->F", MODALITIES)],
            progress=False,
        )


def test_a_missing_model_is_a_clear_error(tmp_path: Path) -> None:
    from xgem.types import CheckpointError

    with pytest.raises(CheckpointError, match="no folder"):
        open_model(str(tmp_path / "absent"))
