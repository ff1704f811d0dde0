"""Judges choose among synthetic images; every score is kept with its reason, and failures are named."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.chat_server import ChatServer, Reply, chat_server
from tests.publishing.conftest import GOOD, SIZE, drawn
from xgem.cli import main
from xgem.data.manifest import Manifest
from xgem.judges.extractors import Extractor
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.publishing.card import _chosen
from xgem.publishing.judging import ByFindings, ByRealImages, Judged, Picture, _agreement, pictures_of
from xgem.publishing.publish import _scores
from xgem.publishing.selection import Condition, select
from xgem.types import DataError, InputError

pytest.importorskip("openai", reason="the extra chat is not installed")
WriteSet = Callable[..., Path]
BLACK = np.zeros((SIZE, SIZE), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
DARK, ODD = drawn(2000) // 4, drawn(2001)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ChatServer]:
    monkeypatch.setenv("XGEM_CACHE", str(tmp_path / "cache"))
    with chat_server(graded) as server:
        yield server


def graded(request: dict[str, Any], before: int) -> Reply:
    """Noise is no radiograph, dark images have a low quality; about one image the server says nothing."""
    url = request["messages"][-1]["content"][0]["image_url"]["url"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    if np.array_equal(image, NOISE):
        return Reply(json.dumps({"grade": "not relevant", "reason": "noise"}))
    if np.array_equal(image, ODD):
        return Reply("I cannot tell.")
    return Reply(json.dumps({"grade": "low" if np.array_equal(image, DARK) else "high", "reason": "seen"}))


def test_the_command_keeps_what_a_model_grades_well(
    server: ChatServer,
    synthetic: WriteSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = synthetic(NOISE, ODD, DARK, BLACK)
    arguments = ["data", "filter", str(source.parent), "--judge", f"chat:{server.url}#tiny", "--json"]
    assert main([*arguments, "--keep", "quality>=2", "--out", str(tmp_path / "good")]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["images"], counts["kept"], counts["without score"]) == (GOOD + 4, GOOD, {"chat:tiny": 2})
    assert "no score for 2 of 16 images, first: no answer: expected JSON of Quality" in caplog.text
    assert (counts["asked"]["failed"], counts["asked"]["cached"]) == (1, 0)
    kept = Manifest.read(tmp_path / "good" / "manifest.parquet")
    kept.check()
    assert [row.study for row in kept.rows] == [f"s{number:03}" for number in range(GOOD)]
    scores = pq.read_table(tmp_path / "good" / "scores.parquet").to_pylist()
    assert [row["value"] for row in scores[GOOD:]] == [0, None, 1, None]
    assert [row["reason"][:9] for row in scores[GOOD:]] == ["noise", "no answer", "seen", "cannot be"]
    assert [row["kept"] for row in scores] == [True] * GOOD + [False] * 4
    record = json.loads((tmp_path / "good" / "filter.json").read_text(encoding="utf-8"))
    assert record["keep"] == ["quality>=2"]
    assert record["judges"][0]["name"] == "chat:tiny"
    asked = len(server.requests)
    assert main([*arguments, "--top", "3", "--out", str(tmp_path / "top")]) == 0
    assert len(server.requests) == asked + 5, "only the image without an answer is asked for again"
    assert [row.study for row in Manifest.read(tmp_path / "top" / "manifest.parquet").rows] == ["s000", "s001", "s002"]


def test_an_endpoint_that_is_down_ends_it_and_what_was_answered_is_kept(
    server: ChatServer, synthetic: WriteSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"{{base_url: '{server.url}', model: tiny, retries: 0, concurrency: 1}}")
    server.answer = lambda request, before: graded(request, before) if before < 4 else Reply.error(503, "gone")
    arguments = ["data", "filter", str(synthetic()), "--judge", f"chat:{plan}", "--keep", "quality>=2"]
    assert main([*arguments, "--out", str(tmp_path / "good")]) == 1
    assert "unavailable" in capsys.readouterr().err
    assert not (tmp_path / "good").exists()
    server.answer, before = graded, len(server.requests)
    assert main([*arguments, "--out", str(tmp_path / "good")]) == 0
    assert len(server.requests) - before == GOOD - 4


def test_malformed_images_are_unlike_real_ones(
    real: Path, synthetic: WriteSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In grey levels, and in a space of small images in place of the network's."""

    def small(images: NDArray[np.uint8]) -> NDArray[Any]:
        return images[:, 4::12, 4::12].reshape(len(images), -1).astype(np.float32) / 255

    space = Extractor("small", "0" * 64, 64, SIZE, "every twelfth pixel", small)
    monkeypatch.setattr("xgem.publishing.judging.open_extractor", lambda name, device: space)
    source = synthetic(drawn(3000) // 8, NOISE)
    judge = ByRealImages(real, ["frontal"], SIZE)
    manifest = Manifest.read(source)
    counts = select(source, manifest, [judge], [Condition.parse("malformed < 1")], tmp_path / "out")
    kept = {row.study for row in Manifest.read(tmp_path / "out" / "manifest.parquet").rows}
    assert not kept & {"s012", "s013"}
    assert counts["kept"] >= GOOD - 2
    scores = _scores(tmp_path / "out", pictures_of(manifest))
    assert scores[12]["malformed"] > 1


def test_agreement_is_of_the_findings_that_are_known(synthetic: WriteSet) -> None:
    shown = {"Cardiomegaly": True, "Edema": True, "Fracture": False}
    assert _agreement({"Cardiomegaly": 1, "Edema": 0}, shown) == Judged(0.5, "Edema shown, not asked for")
    assert _agreement({"Fracture": 1}, shown) == Judged(0.0, "Fracture not shown")
    assert _agreement({"Pneumonia": 1, "Edema": -1}, shown).value is None
    unknown = _agreement({"Pneumonia": 1, "Fracture": 0}, shown)
    assert unknown == Judged(None, "the classifier does not know Pneumonia"), "what is absent says nothing of it"
    assert _agreement({"Edema": 0, "Fracture": 0}, shown).value == 0.5
    pictures = pictures_of(Manifest.read(synthetic()))[:3]
    judge = ByFindings(["frontal"])
    judged = list(judge.judge(pictures))
    assert all(one.value is not None and 0 <= one.value <= 1 for one in judged)
    assert "frontal" in judge.version


def test_agreement_has_equal_weight_for_what_is_asked_for_and_what_is_absent() -> None:
    """One finding that is missing is no better than all the absent ones that are shown."""
    asked = dict.fromkeys(CHEXPERT_CLASSES, 0.0) | {"Pneumothorax": 1.0}
    nothing, all_ = dict.fromkeys(CHEXPERT_CLASSES, False), dict.fromkeys(CHEXPERT_CLASSES, True)
    assert _agreement(asked, nothing) == Judged(0.5, "Pneumothorax not shown")
    assert _agreement(asked, all_).value == 0.5
    assert _agreement(asked, nothing | {"Pneumothorax": True}) == Judged(1.0)
    assert _agreement(asked | {"Edema": 1.0}, nothing | {"Edema": True}).value == 0.75
    normal = dict.fromkeys(CHEXPERT_CLASSES, 0.0) | {"No Finding": 1.0}
    assert _agreement(normal, nothing) == Judged(0.5, "No Finding not shown")
    assert _agreement(normal, nothing | {"No Finding": True}) == Judged(1.0)


def test_labels_come_from_the_text_where_a_row_has_none(synthetic: WriteSet) -> None:
    picture: Picture = pictures_of(Manifest.read(synthetic(labels=(), impression="Cardiomegaly. No effusion.")))[0]
    assert picture.labels["Cardiomegaly"] == 1
    assert picture.labels["Pleural Effusion"] == 0


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("quality>=2", 2, True),
        ("q < 1.5", 1.5, False),
        ("q==-1", -1, True),
        ("q<=1", None, False),
        ("q>0", np.nan, False),
    ],
)
def test_conditions(text: str, value: float | None, holds: bool) -> None:
    assert Condition.parse(text).holds(value) is holds


class Constant:
    """Gives each image its number."""

    name, version, measure, upwards = "constant", "1", "number", False

    def judge(self, pictures: Any) -> Iterator[Judged]:
        return (Judged(float(number)) for number in range(len(pictures)))


class Halves(Constant):
    """Gives the same score to two images in a row."""

    def judge(self, pictures: Any) -> Iterator[Judged]:
        return (Judged(float(number // 2)) for number in range(len(pictures)))


def test_ties_are_cut_by_id_and_counted(synthetic: WriteSet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = Manifest.read(synthetic())
    backwards = Manifest(manifest.rows[::-1], manifest.root)
    backwards.write(tmp_path / "backwards.parquet")
    counts = select(tmp_path / "backwards.parquet", backwards, [Halves()], [], tmp_path / "a", top=3)
    assert counts == {"images": GOOD, "kept": 3, "tied": {"images": 2, "kept": 1}}
    assert [row.study for row in Manifest.read(tmp_path / "a" / "manifest.parquet").rows] == ["s011", "s010", "s008"]
    assert "the best 3: 2 images have the last number, of which the first 1 by id are kept" in caplog.text
    record = json.loads((tmp_path / "a" / "filter.json").read_text(encoding="utf-8"))
    assert "the best 3 by number (2 had the score of the last one: 1 of them are kept" in _chosen(record)
    assert "tied" not in select(tmp_path / "backwards.parquet", backwards, [Halves()], [], tmp_path / "b", top=4)


def test_the_best_are_the_lowest_where_less_is_better(
    synthetic: WriteSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = synthetic()
    manifest = Manifest.read(source)
    assert select(source, manifest, [Constant()], [Condition.parse("number>2")], tmp_path / "a", top=2)["kept"] == 2
    kept = [row.study for row in Manifest.read(tmp_path / "a" / "manifest.parquet").rows]
    assert kept == ["s003", "s004"]
    assert "of which the first" not in caplog.text, "no two images have one score"
    with pytest.raises(DataError, match=r"none of 12 images is kept; .*scores\.parquet has their scores"):
        select(source, manifest, [Constant()], [Condition.parse("number>99")], tmp_path / "b")
    assert len(pq.read_table(tmp_path / "b" / "scores.parquet")) == GOOD
    for judges, conditions, top, reason in (
        ([], ["number>1"], None, "judges of nothing"),
        ([Constant(), Constant()], ["number>1"], None, "judges of number"),
        ([Constant()], ["quality>1"], None, "no judge gives quality; they give number"),
        ([Constant()], [], None, "nothing says what is kept"),
    ):
        with pytest.raises(InputError, match=reason):
            select(source, manifest, judges, [Condition.parse(one) for one in conditions], tmp_path / "c", top=top)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--judge", "xgem", "--keep", "agreement over 1"], "expected a condition like"),
        (["--judge", "clip", "--top", "1"], "expected chat:FILE.yaml"),
        (["--judge", "malformed", "--top", "1"], "give their manifest (--real)"),
        (["--keep", "quality>1"], "name a judge"),
    ],
)
def test_wrong_options_are_named(
    synthetic: WriteSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["data", "filter", str(synthetic()), "--out", str(tmp_path / "x"), *arguments]) == 2
    assert reason in capsys.readouterr().err
