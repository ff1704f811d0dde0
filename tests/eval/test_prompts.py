"""Sentences: a painter that shows what is asked is told from ones that ignore it, or show the other side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from xgem.cli.evaluate import app
from xgem.data.manifest import Manifest, Row
from xgem.eval.families.prompts import Looks, RealImages, asked_labels, evaluate
from xgem.eval.record import FamilyResult
from xgem.eval.report import as_markdown
from xgem.eval.sentences import SENTENCES, Sentence, check_sentences, read_sentences
from xgem.judges.sides import GROUPS, group_of
from xgem.labels.rules import label_report
from xgem.labels.sides import named_sides
from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING
from xgem.types import DataError, InputError, NotComputed

SIZE, SEEDS = 16, 6
KNOWN = tuple(name for name in CHEXPERT_CLASSES if name != "Fracture")
OTHER = {"left": "right", "right": "left", None: None}


class Reader:
    """Judge of findings and of sides at once: it reads the marks that painters leave."""

    name, weights, hash, size = "reader", "0" * 16, "1" * 16, SIZE
    classes = KNOWN
    groups = told = tuple(GROUPS)

    def scores(self, images: np.ndarray) -> np.ndarray:
        """A finding's score is the grey level of its own row, on the brighter side."""
        rows = [CHEXPERT_CLASSES.index(name) for name in self.classes]
        return images[:, rows].max(axis=2) / 255.0

    def leftness(self, images: np.ndarray) -> np.ndarray:
        half = SIZE // 2
        found = []
        for classes in GROUPS.values():
            rows = [CHEXPERT_CLASSES.index(name) for name in classes]
            marked = images[:, rows].astype(np.float64)
            found.append(marked[..., half:].mean(axis=(1, 2)) - marked[..., :half].mean(axis=(1, 2)))
        return np.stack(found, axis=1)


def mark(image: np.ndarray, findings: tuple[str, ...], side: str | None) -> None:
    for name in findings:
        row, half = CHEXPERT_CLASSES.index(name), SIZE // 2
        image[row, slice(half, None) if side == "left" else slice(half) if side == "right" else slice(None)] = 250


def painted(shown: Callable[[Sentence, int], Sentence | None]) -> np.ndarray:
    """(sentences, seeds, s, s): noise of the seed, with the marks of what is shown for a sentence."""
    pictures = np.empty((len(SENTENCES), SEEDS, SIZE, SIZE), np.uint8)
    for k in range(SEEDS):
        noise = np.random.default_rng(k).integers(0, 200, (SIZE, SIZE), dtype=np.uint8)
        for row, sentence in enumerate(SENTENCES):
            pictures[row, k] = noise
            drawn = shown(sentence, k)
            if drawn is not None:
                mark(pictures[row, k], drawn.findings, drawn.side)
    return pictures


def flipped(sentence: Sentence, _: int) -> Sentence:
    return Sentence(sentence.text, sentence.findings, OTHER[sentence.side])  # type: ignore[arg-type]


def any_side(sentence: Sentence, seed: int) -> Sentence:
    """The finding, on a side that the text does not decide."""
    rng = np.random.default_rng([seed, SENTENCES.index(sentence)])
    return Sentence(sentence.text, sentence.findings, ("left", "right")[int(rng.integers(2))])


def real_images() -> RealImages:
    """Real images as the reader sees them: 60 with a finding of their own, and the side that is drawn."""
    rng = np.random.default_rng(9)
    images = rng.integers(0, 200, (60, SIZE, SIZE), dtype=np.uint8)
    labels, sides = np.zeros((60, 14)), np.full((60, len(GROUPS)), np.nan)
    for row in range(60):
        name = (NO_FINDING, "Pleural Effusion", "Cardiomegaly", "Atelectasis", "Pneumothorax")[row % 5]
        side = ("left", "right")[int(rng.integers(2))]
        mark(images[row], (name,), side)
        labels[row, CHEXPERT_CLASSES.index(name)] = 1
        if group_of(name):
            sides[row, list(GROUPS).index(str(group_of(name)))] = 1 if side == "left" else -1
    return RealImages(images, labels, sides)


def measured(shown: Callable[[Sentence, int], Sentence | None], **looks: Any) -> FamilyResult:
    reader = Reader()
    given = {"judge": reader, "sides": reader, "malformed": _dark, "malformed_real": {}} | looks
    return evaluate(painted(shown), SENTENCES, Looks(**given), real_images(), draws=60)


def _dark(images: np.ndarray) -> dict[str, np.ndarray]:
    dark = images.mean(axis=(1, 2)) < 95
    return {"features": dark, "grey levels": np.zeros(len(images), bool), "any": dark}


def value(result: FamilyResult, key: str) -> float:
    estimate = result[key].value
    assert estimate is not None
    return estimate.value


@pytest.fixture(scope="module")
def obeys() -> FamilyResult:
    return measured(lambda sentence, _: sentence)


@pytest.fixture(scope="module")
def ignores() -> FamilyResult:
    return measured(lambda sentence, _: None)


def test_a_model_that_obeys(obeys: FamilyResult) -> None:
    assert value(obeys, "asked_side") == 1
    assert value(obeys, "asked_side/Pleural Effusion") == 1
    assert value(obeys, "asked_side_auroc") == value(obeys, "asked_side_auroc/effusion") == 1
    assert obeys["asked_side_auroc/opacity"].references["ceiling"].value.value == 1
    assert obeys["asked_side_auroc"].references["shuffled"].value.value == pytest.approx(0.5, abs=0.1)
    for name in ("Pleural Effusion", "Cardiomegaly", "Support Devices", NO_FINDING):
        assert value(obeys, f"asked_auroc/{name}") == 1, name
    macro = obeys["asked_auroc_macro"]
    assert macro.settings["findings"] == [NO_FINDING, "Cardiomegaly", "Atelectasis", "Pneumothorax", "Pleural Effusion"]
    assert macro.references["ceiling"].value.value == 1
    assert obeys["asked_side"].references["ceiling"].value.value == 1
    assert macro.references["shuffled"].value.value == pytest.approx(0.5, abs=0.1)
    assert obeys["asked_side"].references["shuffled"].value.value == pytest.approx(0.5, abs=0.1)
    assert obeys["asked_side"].settings["sentences"] == 22


def test_a_model_that_ignores_the_text(ignores: FamilyResult) -> None:
    assert value(ignores, "asked_auroc/Pleural Effusion") == 0.5  # the same images for all sentences
    assert value(ignores, "asked_side") == pytest.approx(0.5, abs=0.01)  # both sides ask for the same images
    assert value(ignores, "asked_side_auroc") == 0.5
    assert value(ignores, "text_effect") == 0
    assert value(ignores, "text_over_seed") == 0
    assert value(ignores, "seed_effect") > 30


def test_a_model_that_shows_the_finding_on_any_side() -> None:
    found = measured(any_side)
    assert value(found, "asked_side") == pytest.approx(0.5, abs=0.12)
    assert value(found, "asked_auroc/Pleural Effusion") == 1
    side = found["asked_side"].value
    assert side is not None
    assert side.low < 0.5 < side.high


def test_a_judge_that_leans_to_one_side_still_orders_them() -> None:
    """All images seem left to it, those that are left more so: the share on the asked side says nothing, AUROC does."""

    class Leaning(Reader):
        def leftness(self, images: np.ndarray) -> np.ndarray:
            return super().leftness(images) + 1000

    found = measured(lambda sentence, _: sentence, sides=Leaning())
    assert value(found, "asked_side") == 0.5
    assert value(found, "asked_side_auroc") == 1


def test_a_model_that_takes_left_for_right() -> None:
    found = measured(flipped)
    assert value(found, "asked_side") == value(found, "asked_side_auroc") == 0
    assert value(found, "asked_auroc/Pleural Effusion") == 1


def test_effects_are_those_of_the_pixels(obeys: FamilyResult) -> None:
    pictures = painted(lambda sentence, _: sentence).astype(np.float64)
    n = len(SENTENCES)
    text = np.mean(
        [
            np.abs(pictures[a, k] - pictures[b, k]).mean()
            for k in range(SEEDS)
            for a in range(n)
            for b in range(n)
            if a != b
        ]
    )
    seeds = [(k, m) for k in range(SEEDS) for m in range(SEEDS) if k != m]
    noise = np.mean([np.abs(pictures[a, k] - pictures[a, m]).mean() for a in range(n) for k, m in seeds])
    assert value(obeys, "text_effect") == pytest.approx(text, rel=1e-5)
    assert value(obeys, "seed_effect") == pytest.approx(noise, rel=1e-5)
    assert value(obeys, "text_over_seed") == pytest.approx(text / noise, rel=1e-5)
    pairs = [(a, [s.text for s in SENTENCES].index(s.partner)) for a, s in enumerate(SENTENCES) if s.partner]
    mirrored = np.mean([np.abs(pictures[a, k] - pictures[b, k]).mean() for k in range(SEEDS) for a, b in pairs])
    assert value(obeys, "text_effect/left against right") == pytest.approx(mirrored, rel=1e-5)


def test_malformed_images_are_counted(obeys: FamilyResult) -> None:
    images = painted(lambda sentence, _: sentence).reshape(-1, SIZE, SIZE)
    assert value(obeys, "malformed") == pytest.approx((images.mean(axis=(1, 2)) < 95).mean())
    assert value(obeys, "malformed/grey levels") == 0


def test_what_is_not_known_is_said(obeys: FamilyResult) -> None:
    assert "does not know this finding" in obeys["asked_auroc/Fracture"].reason
    assert "not tell it better than chance" in obeys["asked_side/Support Devices"].reason
    reader = Reader()
    reader.told = ("effusion",)
    fewer = measured(lambda sentence, _: sentence, sides=reader)
    assert "not tell it better than chance" in fewer["asked_side/Pneumothorax"].reason
    assert fewer["asked_side"].settings["sentences"] == 4
    missing = NotComputed("no weights")
    found = measured(lambda sentence, _: sentence, judge=missing, sides=missing, malformed=missing)
    assert found["asked_auroc/Pleural Effusion"].reason == "no weights"
    assert found["asked_side"].reason == found["malformed"].reason == "no weights"
    assert value(found, "text_effect") > 0
    assert "Pleural Effusion" in as_markdown([obeys])  # single findings are in the table of this family


def test_one_seed_is_refused() -> None:
    reader = Reader()
    with pytest.raises(InputError, match="expected"):
        evaluate(
            painted(flipped)[:, :1],
            SENTENCES,
            Looks(reader, reader, _dark, {}),
            real_images(),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda one: one.text)
def test_a_sentence_says_what_it_is_listed_for(sentence: Sentence) -> None:
    said = {name for name, label in label_report(sentence.text).items() if label == 1}
    if "Support Devices" in said:
        said.discard(NO_FINDING)
    assert said == set(sentence.findings)
    sides = named_sides(sentence.text)
    assert all(sides[name] == ({sentence.side} if sentence.side else sides[name]) for name in sentence.findings)


def test_the_list_is_balanced() -> None:
    check_sentences(SENTENCES)
    assert sum(one.side == "left" for one in SENTENCES) == sum(one.side == "right" for one in SENTENCES) == 14
    labels = asked_labels(SENTENCES)
    pneumonia = [one.findings for one in SENTENCES].index(("Pneumonia",))
    known = dict(zip(CHEXPERT_CLASSES, labels[pneumonia], strict=True))
    assert (known["Pneumonia"], known["Edema"]) == (1, 0)
    assert np.isnan(known["Lung Opacity"])  # a pneumonia is an opacity, which was not asked for


TABLE = """sentence,findings,side,partner
Left pleural effusion.,Pleural Effusion,left,Right pleural effusion.
Right pleural effusion.,Pleural Effusion,right,Left pleural effusion.
Cardiomegaly with edema.,Cardiomegaly;Edema,,
Normal chest.,No Finding,,
"""


def test_sentences_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "sentences.csv"
    file.write_text(TABLE, encoding="utf-8")
    first, _, third, _ = read_sentences(file)
    assert (first.side, first.partner, third.findings) == ("left", "Right pleural effusion.", ("Cardiomegaly", "Edema"))
    for bad, reason in (
        (TABLE.replace("Cardiomegaly;Edema", "Big Heart"), "line 4"),
        (TABLE.replace(",left,", ",both,"), "line 2.*expected left or right"),
        (TABLE.replace("effusion.,Pleural Effusion,right", "effusion.,Edema,right"), "same on the other side"),
        (TABLE.rsplit("Normal", 1)[0], "expected at least 4"),
    ):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(DataError, match=reason):
            read_sentences(file)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """140 studies of blocks of noise; every other one has an effusion on the left."""
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for i in range(140):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        values = {
            "study": f"s{i:03d}",
            "subject": f"s{i:03d}",
            "split": "val" if i < 110 else "train",
            "view": "frontal",
            "file": f"{i}.png",
            "impression": ("No acute disease.", "Large left pleural effusion.")[i % 2],
            "labels": (("normal",), ("Pleural Effusion",))[i % 2],
            "source": "openi",
        }
        rows.append(Row.model_validate(values))
    Manifest(tuple(rows), folder).write(folder / "studies.jsonl")
    return folder / "studies.jsonl"


def test_the_command_resumes_and_writes_its_tables(debug_checkpoint: Path, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "sentences.csv").write_text(TABLE, encoding="utf-8")
    out = tmp_path / "out"
    arguments = [
        "prompts",
        "--model",
        str(debug_checkpoint),
        "--data",
        str(manifest),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    arguments += ["--seeds", "2", "--num-inference-steps", "2", "--bootstrap", "20", "--json", "--no-progress"]
    arguments += ["--sentences", str(tmp_path / "sentences.csv"), "--cache", str(tmp_path / "cache")]

    def run(*more: str) -> Any:
        return CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)

    record = json.loads(run().stdout)
    metrics = {(one["name"], one.get("of", "")): one for one in record["families"][0]["metrics"]}
    assert metrics["malformed", ""]["value"]["n"] == 8
    assert metrics["asked_side", ""]["value"]["n"] == 4
    assert metrics["asked_side", ""]["references"]["ceiling"]["value"]["n"] == 55
    assert 0 <= metrics["malformed", ""]["references"]["floor"]["value"]["value"] < 0.2
    assert "positives" in metrics["asked_auroc", "Cardiomegaly"]["not_computed"]
    for ending in ("csv", "md", "html", "png"):
        assert (out / f"prompts.{ending}").is_file()
    made = {file: file.stat().st_mtime_ns for file in (out / "pictures").rglob("*.png")}
    assert len(made) == 8
    again = json.loads(run("--overwrite").stdout)
    assert again["families"][0]["metrics"] == record["families"][0]["metrics"]
    assert {file: file.stat().st_mtime_ns for file in (out / "pictures").rglob("*.png")} == made
    with pytest.raises(Exception, match="images of another model, other sentences or settings"):
        run("--overwrite", "--seed", "1")


def test_training_studies_are_not_measured(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use val or test"):
        CliRunner().invoke(
            app,
            ["prompts", "--data", str(manifest), "--out", str(tmp_path), "--split", "train"],
            catch_exceptions=False,
        )
