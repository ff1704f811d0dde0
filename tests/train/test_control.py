"""The stage that trains a ControlNet: what it draws, what learns, what stays bitwise as it was."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.batches import batch_of
from tests.train.conftest import make_rows
from xgem.checkpoints.store import load_component, read_index
from xgem.configs.preset import Preset, load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.data.annotations import Annotation, Box, render
from xgem.data.manifest import Manifest
from xgem.data.study import read_study
from xgem.train.annotated import _moved, _moved_image
from xgem.train.banks import TargetBank
from xgem.train.context import StageContext
from xgem.train.control import ControlStage
from xgem.train.corpus import Corpus
from xgem.train.diffusion import DiffusionStage
from xgem.train.loop import LoopOptions
from xgem.train.share import fixed_rngs
from xgem.train.stages import make_stage, planned, run
from xgem.types import ConfigError, DataError, InputError
from xgem.utils.hashing import module_hash

QUIET = LoopOptions(progress=False, tensorboard=False)


@pytest.fixture(scope="module")
def preset() -> Preset:
    return load_preset("debug-chexgen")


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest in which of three studies one has masks, one a box and a score, one nothing."""
    folder = tmp_path_factory.mktemp("annotated")
    rows = []
    for split, count in (("train", 21), ("val", 7)):
        for number, row in enumerate(row for row in make_rows(folder, split, count) if row.view == "frontal"):
            if row.study in {other.study for other in rows}:
                continue
            added: dict[str, Any] = {}
            if number % 3 == 0:
                for name, columns in (("left lung", slice(24, 36)), ("right lung", slice(4, 16))):
                    mask = np.zeros((40, 40), np.uint8)
                    mask[8:32, columns] = 255
                    Image.fromarray(mask).save(folder / f"{row.study} {name}.png")
                    added.setdefault("masks", {})[name] = (f"{row.study} {name}.png",)
                if number == 0:
                    added["masks"]["airways"] = added["masks"]["left lung"]
            elif number % 3 == 1:
                added = {"boxes": (Box("mass", 0.25, 0.5, 0.25, 0.25),), "severity": 9.0, "sex": "F"}
            rows.append(row.model_copy(update=added))
    Manifest(tuple(rows), folder).write(folder / "annotated.jsonl")
    return folder / "annotated.jsonl"


@pytest.fixture(scope="module")
def source(preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "checkpoint"
    random_checkpoint(root, preset, seed=5)
    return root


@pytest.fixture(scope="module")
def corpora(annotated: Path, preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus]:
    cache = tmp_path_factory.mktemp("cache")
    manifest = Manifest.read(annotated)
    train, val = (Corpus.load(manifest, split, preset, cache, progress=False) for split in ("train", "val"))
    return train, val


@pytest.fixture(scope="module")
def stage(preset: Preset, corpora: tuple[Corpus, Corpus], source: Path) -> ControlStage:
    made = make_stage("control", StageContext(preset, *corpora, source, 0))
    assert isinstance(made, ControlStage)
    return made


def test_studies_are_drawn_by_what_is_annotated(stage: ControlStage) -> None:
    bank = stage.train[0]
    assert bank.kinds["boxes"]["mass"] == bank.kinds["severity"]["severity"]
    assert set(bank.kinds["masks"]) == {"left lung", "right lung", "airways"}
    assert not set(bank.kinds["boxes"]["mass"]) & set(bank.kinds["masks"]["left lung"])
    images = {image for study in bank.kinds["masks"]["left lung"] for image, _ in bank.pairs[study]}
    (only,) = bank.kinds["masks"]["airways"]
    rare = {image for image, _ in bank.pairs[only]}
    seen: Counter[bool] = Counter()
    of_rare = 0
    kept: Counter[bool] = Counter()
    for step in range(60):
        batch = batch_of(stage, step)
        assert torch.equal(batch["z0"], batch_of(stage, step)["z0"])
        for latents in batch["z0"]:
            seen[any(torch.equal(latents, bank.targets[image]) for image in images)] += 1
            of_rare += any(torch.equal(latents, bank.targets[image]) for image in rare)
        kept.update(batch["keep"]["report"].tolist())
    assert abs(seen[True] - 120) < 5 * 60**0.5  # masks 2, boxes 1, severity 1: half of 240
    assert of_rare > seen[True] * 0.3  # a third for its airways, and a seventh of the others' turns
    assert kept[True] > kept[False] > 0


def test_without_variants_every_image_comes_once_with_all_of_its_annotation(
    preset: Preset, corpora: tuple[Corpus, Corpus], source: Path
) -> None:
    config = preset.train["control"].model_copy(update={"loss": {"vary": 0.0}})
    changed = preset.model_copy(update={"train": {**preset.train, "control": config}})
    stage = make_stage("control", StageContext(changed, *corpora, source, 0))
    assert isinstance(stage, ControlStage)
    bank, train = stage.train[0], corpora[0]
    assert sorted(pair for pairs in bank.pairs.values() for pair in pairs) == [(i, i) for i in range(len(bank.pairs))]
    for index, ((image, row),) in bank.pairs.items():
        x = train.images.floats(train.rows(index, "frontal")[:1])
        drawing = render(read_study(train.studies[index], preset.transform), preset.transform.size)
        with torch.no_grad():
            expected = [stage.codec.encode(part)[0] for part in (x, torch.from_numpy(drawing)[None, None])]
        torch.testing.assert_close(bank.targets[image], expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(bank.annotations[row], expected[1], rtol=1e-4, atol=1e-4)
    assert batch_of(stage, 0)["annotation"].shape[0] == config.batch_size


def test_added_names_are_learnt_and_unknown_ones_refused(
    preset: Preset, annotated: Path, source: Path, tmp_path: Path
) -> None:
    manifest = Manifest.read(annotated)
    rows = [
        row.model_copy(
            update={
                "masks": {"rib" if name == "airways" else name: files for name, files in row.masks.items()},
                "boxes": tuple(dataclasses.replace(box, label="fracture") for box in row.boxes),
            }
        )
        for row in manifest.rows
    ]
    renamed = Manifest(tuple(rows), manifest.root)
    train, val = (Corpus.load(renamed, split, preset, tmp_path, progress=False) for split in ("train", "val"))
    with pytest.raises(InputError, match="unknown structure 'rib': this model knows left lung"):
        make_stage("control", StageContext(preset, train, val, source, 0))
    record = preset.model_dump(mode="json")
    assert not {"structures", "box_classes"} & set(record["components"]["control"])  # so fingerprints stay
    record["components"]["control"] |= {"structures": ["rib"], "box_classes": ["fracture"]}
    stage = make_stage("control", StageContext(Preset.parse(record, "more"), train, val, source, 0))
    assert isinstance(stage, ControlStage)
    assert set(stage.train[0].kinds["masks"]) == {"left lung", "right lung", "rib"}
    assert set(stage.train[0].kinds["boxes"]) == {"fracture"}
    loss, _ = stage.loss(stage.module, batch_of(stage, 0))
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in stage.model.parameters())
    assert Preset.parse(record, "more").components["control"].model_dump()["structures"] == ("rib",)


def test_every_kind_is_shown_alone_too(stage: ControlStage) -> None:
    bank = stage.train[0]
    study = bank.kinds["severity"]["severity"][0]
    assert {bank.holds[row] for _, row in bank.pairs[study]} == {
        frozenset({"boxes"}),
        frozenset({"severity"}),
        frozenset({"boxes", "severity"}),
    }
    for kind in ("boxes", "severity"):  # what a study is drawn for is on its annotation
        batch = stage._collate(stage.train, [study] * 40, [kind] * 40, fixed_rngs(0, count=40))
        drawn = [row for _, row in bank.pairs[study] if kind in bank.holds[row]]
        for latents in batch["annotation"]:
            assert any(torch.equal(latents, bank.annotations[row]) for row in drawn)


def test_annotations_move_with_their_image() -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:16, 4:12] = True
    box = Box("mass", 4 / 32, 8 / 32, 8 / 32, 8 / 32)
    move = (0.75, 0.0625, -0.0625)
    moved = _moved(Annotation({"left lung": mask}, (box,)), *move)
    image = _moved_image(torch.from_numpy(mask).float()[None, None], *move, mode="bilinear")[0, 0].numpy() > 0.5
    own = moved.masks["left lung"]
    assert (image ^ own).sum() <= 2
    rows, columns = np.nonzero(own)
    (found,) = moved.boxes
    np.testing.assert_allclose(
        [found.x * 32, found.y * 32, (found.x + found.w) * 32, (found.y + found.h) * 32],
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
        atol=1,
    )
    assert not _moved(Annotation({"left lung": mask}, (box,)), 1.0, -1.0, 0.0).masks


def test_a_study_is_read_onto_the_grid(corpora: tuple[Corpus, Corpus], preset: Preset) -> None:
    read = [read_study(study, preset.transform) for study in corpora[0].studies]
    masks = next(annotation for annotation in read if annotation.masks)
    assert set(masks.masks) >= {"left lung", "right lung"}
    assert masks.size == (32, 32)
    assert any(not (one.masks or one.boxes or one.severity) for one in read)
    assert render(masks, 32).max() > -1


def test_captions_come_with_and_without_what_is_known_and_that_alone(corpora: tuple[Corpus, Corpus]) -> None:
    train = corpora[0]
    index = next(i for i, study in enumerate(train.studies) if study.sex and study.impression)
    text = train.studies[index].impression
    alone = ["sex:Female.", "severity:9.", "sex:Female, severity:9."]
    assert train.texts(index) == [text, f"sex:Female, severity:9. {text}", *alone]
    study = dataclasses.replace(train.studies[index], race="Asian", severity=None)
    of_race = dataclasses.replace(train, studies=(*train.studies[:index], study, *train.studies[index + 1 :]))
    assert of_race.texts(index)[1:] == [
        f"sex:Female, race:Asian. {text}", "sex:Female.", "race:Asian.", "sex:Female, race:Asian."
    ]  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.75])
def test_studies_of_known_patients_can_be_drawn_more_often(
    share: float, preset: Preset, corpora: tuple[Corpus, Corpus], source: Path
) -> None:
    record = preset.model_dump(mode="json")
    record["train"]["frontal"] |= {"batch_size": 100, "loss": {"known": share}}
    stage = make_stage("frontal", StageContext(Preset.parse(record, "known"), *corpora, source, 0))
    assert isinstance(stage, DiffusionStage)
    known = [i for i, study in enumerate(corpora[0].studies) if study.sex and i in stage.usable]
    targets = stage.train.targets
    assert isinstance(targets, TargetBank)
    latents = targets.latents[[row for i in known for row in stage.train.targets.rows[i]]]
    batch = batch_of(stage, 0)
    assert torch.equal(batch["z0"], batch_of(stage, 0)["z0"])
    found = sum(any(torch.equal(own, z0) for own in latents) for z0 in batch["z0"]) / 100
    assert abs(found - (share + (1 - share) * len(known) / len(stage.usable))) < 0.2


@torch.no_grad()
def let_through(stage: ControlStage) -> None:
    """Zero layers let neither an annotation nor a gradient through."""
    for layer in (stage.model.enter, *stage.model.leave):
        layer.weight.normal_(std=0.1)  # type: ignore[operator, union-attr]


def test_gradient_reaches_the_control_alone(stage: ControlStage) -> None:
    let_through(stage)
    loss, _ = stage.loss(stage.module, batch_of(stage, 0))
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in stage.generator.parameters())
    trained = {name: p.grad for name, p in stage.module.named_parameters() if p.grad is not None}
    assert any(name.startswith("control.leave") for name in trained)
    assert any(name.startswith("control.blocks.0") for name in trained)
    assert not any("frozen" in name for name, _ in stage.module.named_parameters())


def test_training_changes_the_control_alone(preset: Preset, annotated: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(["control"], preset, Manifest.read(annotated), out, QUIET, init=source)
    changed = {
        name
        for name in read_index(source).components
        if module_hash(load_component(out, name)) != module_hash(load_component(source, name))
    }
    assert changed == {"control"}


def test_a_transformer_that_computes_activations_again_trains_the_same_control(
    preset: Preset, annotated: Path, tmp_path: Path
) -> None:
    found = []
    for again in (False, True):
        record = preset.model_dump(mode="json")
        record["components"]["frontal_dit"]["gradient_checkpointing"] = again
        record["train"]["control"] |= {"steps": 3, "loss": {"vary": 0}}
        changed, root = Preset.parse(record, "again"), tmp_path / str(again)
        random_checkpoint(root, changed, seed=5)
        run(["control"], changed, Manifest.read(annotated), root, QUIET, seed=0)
        found.append(load_component(root, "control").state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert any(bool(layer.any()) for name, layer in found[0].items() if name.startswith("leave"))


def test_a_resumed_run_equals_an_unbroken_one(preset: Preset, annotated: Path, source: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    manifest = Manifest.read(annotated)
    run(["control"], preset, manifest, whole, QUIET, init=source)
    run(["control"], preset, manifest, broken, QUIET, init=source)
    checkpoints = broken / "training" / "control" / "checkpoints"
    latest = sorted(checkpoints.iterdir())[-1]
    for path in sorted(latest.iterdir()):
        path.unlink()
    latest.rmdir()
    run(["control"], preset, manifest, broken, LoopOptions(progress=False, tensorboard=False, resume=True), init=source)
    assert module_hash(load_component(whole, "control")) == module_hash(load_component(broken, "control"))


def test_a_sheet_shows_what_is_made_of_annotations(stage: ControlStage) -> None:
    sheet = stage.sheet(stage.module)
    count = min(12, len(stage.val[0].pairs))
    assert sheet.size == (count * 32, 3 * 32)


def test_the_sheet_is_made_under_control(stage: ControlStage) -> None:
    """Its third row, and that alone, is another one where the ControlNet adds something else."""
    sheets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        let_through(stage)
        sheets.append(np.asarray(stage.sheet(stage.module)).astype(int))
    changed = np.abs(sheets[0] - sheets[1])
    assert not changed[:64].any()
    assert changed[64:].max() > 2


def test_shuffled_annotations_are_validated_too(stage: ControlStage) -> None:
    let_through(stage)
    found = []
    for _ in range(2):
        torch.manual_seed(4)  # as the loop does before it validates
        found.append(stage.validate(stage.module))
    figures, again = found
    assert set(figures) == {"loss", "shuffled"}
    assert figures == again
    assert figures["loss"] != figures["shuffled"]


def twice_as_large(preset: Preset) -> Preset:
    record = preset.model_dump(mode="json")
    record["transform"]["size"] = 64
    record["components"]["image_vae"]["image_size"] = 64
    for name in ("frontal_dit", "control"):
        record["components"][name] |= {"latent_shape": [4, 8, 8], "position_scale": 2.0}
    return Preset.parse(record, "larger")


def test_twice_the_resolution_goes_on_from_the_same_weights(
    preset: Preset, annotated: Path, source: Path, tmp_path: Path
) -> None:
    larger = twice_as_large(preset)
    run(["frontal"], larger, Manifest.read(annotated), tmp_path / "large", QUIET, init=source)
    assert load_component(tmp_path / "large", "image_vae").config.image_size == 64
    grown, small = (load_component(root, "frontal_dit").state_dict() for root in (tmp_path / "large", source))
    assert {key: value.shape for key, value in grown.items()} == {key: value.shape for key, value in small.items()}
    record = larger.model_dump(mode="json")
    record["components"]["frontal_dit"] |= {"depth": 4}
    deeper = Preset.parse(record, "deeper")
    with pytest.raises(ConfigError, match="of another architecture"):
        run(["frontal"], deeper, Manifest.read(annotated), tmp_path / "deep", QUIET, init=source)


def test_stage_two_from_stage_one_starts_lower_than_from_scratch(
    preset: Preset, annotated: Path, source: Path, tmp_path: Path
) -> None:
    """Stage II of the presets: twice the resolution, positions rescaled, weights inherited."""
    record = preset.model_dump(mode="json")
    record["train"]["frontal"] |= {"steps": 150, "batch_size": 8, "learning_rate": 1e-3, "validate_every": 150}
    manifest = Manifest.read(annotated)
    run(["frontal"], Preset.parse(record, "stage one"), manifest, tmp_path / "one", QUIET, init=source)
    larger = twice_as_large(preset)
    train, val = (Corpus.load(manifest, split, larger, tmp_path, progress=False) for split in ("train", "val"))
    parts = tmp_path / "two"
    random_checkpoint(parts, larger, seed=5)
    for name in ("text_encoder", "image_vae"):  # of one seed, so of the same weights
        assert module_hash(load_component(parts, name)) == module_hash(load_component(source, name))
    losses = []
    for init in (None, tmp_path / "one"):
        stage = make_stage("frontal", StageContext(larger, train, val, parts, 0, init))
        losses.append(stage.validate(stage.module)["loss"])
    assert losses[1] < 0.9 * losses[0]


def test_what_cannot_be_trained(
    preset: Preset, corpora: tuple[Corpus, Corpus], toy: Path, source: Path, tmp_path: Path
) -> None:
    assert planned(preset) == ("frontal", "control")
    manifest = Manifest.read(toy)
    plain = [Corpus.load(manifest, split, preset, tmp_path, progress=False) for split in ("train", "val")]
    with pytest.raises(DataError, match="no annotated frontal image"):
        make_stage("control", StageContext(preset, plain[0], plain[1], source, 0))
    record = preset.model_dump(mode="json")
    record["train"]["frontal"]["loss"] = {"known": 0.5}
    with pytest.raises(DataError, match="setting known to 0"):
        make_stage("frontal", StageContext(Preset.parse(record, "known"), plain[0], plain[1], source, 0))
    with pytest.raises(ConfigError, match="no training settings for stage 'control'"):
        make_stage("control", StageContext(load_preset("debug"), *corpora, source, 0))
