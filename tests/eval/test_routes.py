"""Routes, and what their sets are measured by: a world whose hidden state images and reports show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.configs.components import TransformConfig
from xgem.data.manifest import Manifest, Row
from xgem.data.sets import EvalSet, Item
from xgem.eval.cohorts import Sampling, outputs_of
from xgem.eval.families import agreement
from xgem.eval.record import FamilyResult
from xgem.eval.route import Route, all_routes, joint_routes, parse_route
from xgem.eval.routes import RunSettings, measurable
from xgem.eval.sharpness import sharpness
from xgem.eval.studies import Studies, answered, read_training, samples
from xgem.pipeline.embedding import Evaluated
from xgem.types import DataError, InputError

SIZE, DRAWS = 32, 200
PHRASES = ("pleural effusion", "cardiomegaly", "atelectasis", "rib fracture")
LABELS = ("Pleural Effusion", "Cardiomegaly", "Pulmonary Atelectasis", "Fractures, Bone")
MODALITIES = ("frontal", "lateral", "report")


@dataclass(frozen=True)
class World:
    """Studies with a hidden state of four numbers: images show it in two bases, reports its signs."""

    data: Path
    states: dict[str, np.ndarray]
    bases: dict[str, np.ndarray]

    def image(self, view: str, state: np.ndarray) -> np.ndarray:
        coarse = (state @ self.bases[view]).reshape(16, 16)
        return np.clip(128 + 20 * coarse, 0, 255).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)

    def model(self) -> Evaluated:
        """Prompt encoders that read the state off images and reports; it generates nothing."""

        def embed(modality: str, values: Any) -> np.ndarray:
            if modality == "report":
                return np.stack([signs(text) for text in values])
            coarse = values[:, ::2, ::2].reshape(len(values), -1).astype(float) - 128
            return coarse @ np.linalg.pinv(self.bases[modality]) / 20

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("sets are measured; nothing is generated")

        return Evaluated(
            name="fake",
            hash="0" * 8,
            pipe=refuse,
            images=("frontal", "lateral"),
            reports=("report",),
            transform=TransformConfig(size=SIZE),
            embed=embed,
            reconstruct=lambda _, images: images,
        )

    def generated(self, folder: Path, output: str, *, listens: bool, count: int = 1) -> EvalSet:
        """A set made by a model that knows its prompts' state, or by one that ignores it."""
        folder.mkdir(parents=True)
        rng = np.random.default_rng(5)
        items: list[Item] = []
        for k in range(count):
            for name, state in self.states.items():
                guess = state * listens + rng.normal(size=4) * (0.3 if listens else 1)
                file = folder / f"{name}-{k}-{output}.png" if output != "report" else None
                if file is not None:
                    Image.fromarray(self.image(output, guess)).save(file)
                items.append(Item(f"{name}-{k}", file, pair=name, report="" if file else report(guess)))
        return EvalSet(folder.name, tuple(items))


@dataclass(frozen=True)
class Effusion:
    """A judge that reads the first number of the state off laterals."""

    world: World
    name: str = "effusion"
    weights: str = "1"
    size: int = SIZE
    classes: tuple[str, ...] = ("Pleural Effusion",)

    def scores(self, images: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-self.world.model().embed("lateral", images)[:, :1]))


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
    made = World(folder / "studies.jsonl", {}, bases)
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
    Manifest(tuple(rows), folder).write(made.data)
    return made


@pytest.fixture(scope="module")
def real(world: World) -> Studies:
    return Studies.read(world.data, world.model(), "val")


def test_nine_routes_and_never_the_target_as_a_prompt() -> None:
    routes = all_routes(MODALITIES)
    assert len({route.name for route in routes}) == len({route.stem for route in routes}) == len(routes) == 9
    assert all(not set(route.outputs) & set(route.inputs) for route in routes)
    assert {route.short for route in routes} == {
        *("T->F", "L->F", "L+T->F", "T->L", "F->L", "F+T->L", "F->T", "L->T", "F+L->T")
    }
    assert parse_route("T + L -> F", MODALITIES) == parse_route("lateral+report->frontal", MODALITIES)
    for wrong in ("F->F", "F", "X->T", "->F"):
        with pytest.raises(InputError, match="unknown route"):
            parse_route(wrong, MODALITIES)


def test_joint_routes_are_compared_with_single_ones() -> None:
    routes = joint_routes(MODALITIES)
    assert [route.short for route in routes] == ["T->F+L", "L->F+T", "F->L+T", "nothing->F+L+T"]
    assert all(route.joint for route in routes)
    assert {one for route in routes[:3] for one in route.apart} <= set(all_routes(MODALITIES))
    assert [one.stem for one in routes[3].apart] == ["nothing_to_frontal", "nothing_to_lateral", "nothing_to_report"]
    assert [route.short for route in joint_routes(("frontal", "report"))] == ["nothing->F+T"]


def test_studies_are_the_complete_ones_row_by_row(world: World, real: Studies) -> None:
    assert len(real) == 39
    assert "s000" not in real.ids
    assert real.ids == [item.id for item in real["lateral"].items] == [item.id for item in real["report"].items]
    assert len(read_training(world.data, world.model())["frontal"]) == 70
    some = real.of(["s005", "s003"])
    assert [item.id for item in some["frontal"].items] == some.ids == ["s005", "s003"]
    with pytest.raises(DataError, match="nothing in it for split 'test'"):
        Studies.read(world.data, world.model(), "test")


def test_a_modality_that_no_study_has_is_left_out(world: World, tmp_path: Path) -> None:
    manifest = Manifest.read(world.data)
    rows = tuple(row for row in manifest.rows if row.view == "frontal")
    Manifest(rows, manifest.root).write(world.data.with_name("frontals.jsonl"))
    found = Studies.read(world.data.with_name("frontals.jsonl"), world.model(), "val")
    assert set(found.sets) == {"frontal", "report"}
    assert len(found) == 40
    lacking, there = Route(("lateral",), ("frontal",)), Route(("report",), ("frontal",))
    assert measurable(found, [lacking, there]) == ([there], {lacking: "no study of the split has a lateral"})


def test_samples_are_aligned_by_study(world: World, real: Studies, tmp_path: Path) -> None:
    made = world.generated(tmp_path / "made", "report", listens=True, count=2)
    order = np.random.default_rng(0).permutation(len(made))
    firsts, outputs = samples(real["report"], made.subset(order))
    assert len(outputs) == 2
    lost = [row for row in order if made.items[row].id != f"{real.ids[3]}-1"]
    assert len(samples(real["report"], made.subset(lost))[1]) == 1  # one study has a single sample
    for one in outputs:
        assert [item.pair for item in one.items] == [item.id for item in firsts.items]
    assert answered(real.ids, [made]) == real.ids
    with pytest.raises(DataError, match="expected at least 8"):
        answered(real.ids, [made.subset(range(3))])


def test_a_cohort_is_read_as_a_set_per_output(tmp_path: Path) -> None:
    rows = ["file,id,pair,prompt,report,view"]
    for i in range(2):
        for view in ("frontal", "lateral"):
            file = tmp_path / f"{i:08d}-{view}.png"
            Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)).save(file)
            rows.append(f"{file.name},name-{i:08d}-{view},,,Report {i}.,{view}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    found = outputs_of(tmp_path, ("frontal", "lateral", "report"), studies=["b", "a"])
    assert list(found) == ["frontal", "lateral", "report"]
    for view in ("frontal", "lateral"):
        assert [item.file.name for item in found[view].items if item.file] == [f"{i:08d}-{view}.png" for i in range(2)]
    assert [(item.pair, item.report) for item in found["report"].items] == [("b", "Report 0."), ("a", "Report 1.")]


def images(world: World, real: Studies, folder: Path, *, listens: bool, count: int = 1) -> FamilyResult:
    return agreement.evaluate(
        real,
        world.generated(folder, "lateral", listens=listens, count=count),
        inputs=("frontal",),
        output="lateral",
        encoders=world.model(),
        training=Studies.read(world.data, world.model(), "train"),
        draws=DRAWS,
    )


def test_a_model_that_follows_its_prompts_beats_the_shuffled_control(
    world: World, real: Studies, tmp_path: Path
) -> None:
    found = images(world, real, tmp_path / "follows", listens=True)
    for name in ("prompt_agreement", "target_agreement", "one_minus_own_rank", "pixel_correlation"):
        difference = found[name].references["shuffled"].difference
        assert difference is not None
        assert difference.low > 0, name
    rank = found["one_minus_own_rank"]
    assert rank.value is not None
    assert rank.value.value > 0.9
    assert rank.references["ridge"].value.value > 0.9  # the world is linear: the line is hard to beat
    assert rank.references["ridge"].difference is not None
    # Cosine with the prompt, beside that of the study's real target with it
    assert found["prompt_agreement"].references["ceiling"].value.value == pytest.approx(1, abs=0.01)


def test_one_that_ignores_them_does_not(world: World, real: Studies, tmp_path: Path) -> None:
    found = images(world, real, tmp_path / "ignores", listens=False)
    for name in ("prompt_agreement", "target_agreement"):
        difference = found[name].references["shuffled"].difference
        assert difference is not None
        assert difference.low < 0 < difference.high
    ridge = found["one_minus_own_rank"].references["ridge"].difference
    assert ridge is not None
    assert ridge.high < 0


def test_reports_stand_beside_the_constant_one(world: World, real: Studies, tmp_path: Path) -> None:
    options: dict[str, Any] = {"inputs": ("frontal", "lateral"), "output": "report", "encoders": world.model()}
    training = Studies.read(world.data, world.model(), "train")
    made = world.generated(tmp_path / "made", "report", listens=True, count=3)
    found = agreement.evaluate(real, made, training=training, draws=DRAWS, **options)
    assert found.settings["pairs"] == "mean of 3 samples per study"
    assert [one.name for one in found.metrics] == ["prompt_agreement", "target_agreement", "input_icc", "label_jaccard"]
    constant = found["target_agreement"].references["constant"].difference
    assert constant is not None
    assert constant.low > 0
    assert "constant" not in agreement.evaluate(real, made, draws=DRAWS, **options)["target_agreement"].references


@pytest.mark.parametrize("output", ["lateral", "report"])
def test_outputs_of_a_model_that_follows_its_prompts_vary_with_the_input_more_than_with_the_seed(
    world: World, real: Studies, tmp_path: Path, output: str
) -> None:
    judge = Effusion(world)
    options: dict[str, Any] = {"inputs": ("frontal",), "output": output, "encoders": world.model(), "judge": judge}

    def found(listens: bool, count: int) -> FamilyResult:
        made = world.generated(tmp_path / f"{listens}{count}", output, listens=listens, count=count)
        return agreement.evaluate(real, made, draws=DRAWS, **options)

    follows, ignores, single = found(True, 3), found(False, 3), found(True, 1)
    assert all("at least 2" in one.reason for one in single.metrics if one.name in ("input_icc", "label_jaccard"))
    encoders = "prompt encoders of fake"
    for extractor in (encoders, judge.name) if output == "lateral" else (encoders,):
        high, low = (one.find("input_icc", extractor=extractor).value for one in (follows, ignores))
        assert high is not None
        assert low is not None
        assert high.low > 0.6
        assert -0.5 <= low.low < 0.05
        assert low.high < 0.3
    high, low = follows["label_jaccard"], ignores["label_jaccard"]
    assert high.value is not None
    gain, none = (one.references["shuffled"].difference for one in (high, low))
    assert gain is not None
    assert none is not None
    assert gain.low > 0.2
    assert none.low < 0 < none.high
    assert high.value.low > high.references["real, other studies"].value.high
    assert high.extractor == (judge.name if output == "lateral" else "xgem-rules")


def test_sharpness_is_that_of_real_images_or_less(world: World, real: Studies, tmp_path: Path) -> None:
    made = world.generated(tmp_path / "made", "frontal", listens=True)
    ratio = sharpness(real["frontal"], made, world.model(), "frontal", draws=DRAWS)["band_power_ratio"]
    assert ratio.value is not None
    assert ratio.value.value == pytest.approx(1, abs=0.3)
    assert ratio.references["reconstructed"].value.value == pytest.approx(1)
    assert ratio.higher_is_better is None
    for item in made.items:
        assert item.file is not None
        pixels = np.asarray(Image.open(item.file)).astype(float).reshape(8, 4, 8, 4).mean(axis=(1, 3))
        Image.fromarray(pixels.astype(np.uint8).repeat(4, 0).repeat(4, 1)).save(item.file)
    blurred = sharpness(real["frontal"], made, world.model(), "frontal", draws=DRAWS)["band_power_ratio"].value
    assert blurred is not None
    assert blurred.high < 0.7


def test_settings_are_checked() -> None:
    for wrong in ({"seed": -1}, {"limit": 2}, {"num_inference_steps": 0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="expected at least"):
            replace(Sampling(), **wrong)
    for wrong in ({"num_samples": 0}, {"report_samples": 0}, {"bootstrap": 0}):
        with pytest.raises(InputError, match="expected at least"):
            replace(RunSettings(), **wrong)
