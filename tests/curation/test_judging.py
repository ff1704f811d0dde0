"""A vision model at an endpoint as judge of content, played by a server that looks at the pictures it gets."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.chat_server import ChatServer, Reply, chat_server
from tests.curation.conftest import Pixels, Source, smooth
from tests.curation.test_content import scores
from xgem.cli import main
from xgem.curation.content import Opinion, Seen, Verdict, shown_pixels
from xgem.curation.judging import merged
from xgem.curation.plan import ContentPlan, read_plan
from xgem.curation.run import curate
from xgem.types import DataError, EndpointError

pytest.importorskip("openai", reason="the extra chat is not installed")

FINE = {"chest_radiograph": True, "collage": False, "view": "frontal", "turn_clockwise": 0, "negative": False,
        "mirrored": False, "text": False, "quality": 4, "reason": "sharp"}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "good": {},
    "hand": {"chest_radiograph": False},
    "collage": {"collage": True},
    "lateral": {"view": "lateral"},
    "oblique": {"view": "other"},
    "text": {"text": True},
    "poor": {"quality": 1, "reason": "blurred"},
    "turned": {},
    "negative": {},
    "mirrored": {},
    "nonsense": {},
}
ORIGINALS = dict(zip(KINDS, (smooth(np.random.default_rng(k)) for k in range(len(KINDS))), strict=True))
PLANTED = ORIGINALS | {
    "turned": np.rot90(ORIGINALS["turned"]),
    "negative": 255 - ORIGINALS["negative"],
    "mirrored": ORIGINALS["mirrored"][:, ::-1],
}


def shown(request: dict[str, Any]) -> Pixels:
    """The picture of a request."""
    content = request["messages"][-1]["content"]
    url = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def correlation(a: Pixels, b: Pixels) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def look(request: dict[str, Any], before: int) -> Reply:
    """Finds which original the picture shows, and in which orientation."""
    del before
    picture = shown(request)
    found = {
        (name, turn, mirrored): correlation(np.rot90(picture[:, ::-1] if mirrored else picture, -turn), original)
        for name, original in ORIGINALS.items()
        for turn in range(4)
        for mirrored in (False, True)
    }
    (name, turn, mirrored), certain = max(found.items(), key=lambda one: abs(one[1]))
    if name == "nonsense":
        return Reply("a picture")
    seen = {"turn_clockwise": 90 * turn, "mirrored": mirrored, "negative": certain < 0}
    return Reply(json.dumps(FINE | seen | KINDS[name]))


@pytest.fixture
def plan_of(source: Source, write_plan: Callable[..., Path]) -> Callable[..., Path]:
    def make(server: ChatServer, names: list[str], **content: Any) -> Path:
        endpoint = {"base_url": server.url, "model": "seer", "retries": 0, "price_input": 1.0, "price_output": 10.0}
        parts = {"min_side": 32, "endpoint": endpoint | content.pop("endpoint", {}), **content}
        manifest = source("set", {name: PLANTED[name] for name in names}, labels=("Mass",))
        return write_plan(manifest, content=parts, part=4)

    return make


def table(out: Path) -> dict[str, dict[str, Any]]:
    return {one["study"].removeprefix("set-"): one for one in pq.read_table(out / "decisions.parquet").to_pylist()}


def test_what_is_planted_is_found(
    plan_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with chat_server(look) as server:
        assert main(["data", "curate", str(plan_of(server, list(KINDS))), "--out", str(out), "--json"]) == 0
        assert len(server.requests) == len(KINDS)
    found = table(out)
    assert {name: (one["decision"], one["kind"]) for name, one in found.items()} == {
        "good": ("kept", None),
        "hand": ("dropped", "not_chest"),
        "collage": ("dropped", "collage"),
        "lateral": ("fixed", "view"),
        "oblique": ("kept", None),
        "text": ("kept", None),
        "poor": ("dropped", "non_diagnostic"),
        "turned": ("fixed", "rotated"),
        "negative": ("fixed", "inverted"),
        "mirrored": ("kept", None),
        "nonsense": ("kept", None),
    }
    assert found["poor"]["reason"] == "quality 1 of 5: blurred"
    assert (found["poor"]["judge_quality"], found["poor"]["judge_reason"]) == (1, "blurred")
    assert found["oblique"]["notes"] == ["shows neither a frontal nor a lateral view, stated as frontal"]
    assert found["text"]["notes"] == ["text burned into the image (1.00)"]
    assert found["mirrored"]["notes"] == ["mirrored, or with the heart on the right (1.00)"]
    assert found["nonsense"]["notes"][0].startswith("not judged by seer: expected JSON of PictureContent")
    assert found["nonsense"]["judge_quality"] is None
    assert json.loads(capsys.readouterr().out)["not judged"] == 1
    file = next((out / "images").glob("*.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(file)), ORIGINALS["turned"])
    judged = len(KINDS) - 1
    costs = json.loads((out / "costs.json").read_text())["content"]
    assert (costs["images"], costs["not judged"], costs["input tokens"]) == (judged, 1, 10 * judged)
    assert costs["cost"] == pytest.approx(judged * (10 * 1 + 2 * 10) / 1e6)
    assert (costs["judge"]["model"], costs["prompts"]) == ("seer", 1)
    assert "judged by seer, prompts of version 1: 10 images, 1 more without" in (out / "README.md").read_text()


def test_an_endpoint_that_goes_down_stops_it_and_nothing_is_asked_twice(
    plan_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down = Reply.error(401, "no longer")
    names = ["good", "hand", "collage", "text", "turned", "negative"]
    with chat_server(lambda request, before: down if before >= 5 else look(request, before)) as server:
        plan = plan_of(server, names, endpoint={"concurrency": 1})
        assert main(["data", "curate", str(plan), "--out", str(tmp_path / "out")]) != 0
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "seer at 127.0.0.1" in said
        assert "no longer" in said
        answered = [shown(request).tobytes() for request in server.requests[:5]]
        server.answer, before = look, len(server.requests)
        curate(read_plan(plan), tmp_path / "out")
        again = [shown(request).tobytes() for request in server.requests[before:]]
        assert len(again) == 1
        assert not set(again) & set(answered)
        curate(read_plan(plan), tmp_path / "whole")
    assert (tmp_path / "out" / "decisions.parquet").read_bytes() == (
        tmp_path / "whole" / "decisions.parquet"
    ).read_bytes()


def test_an_endpoint_that_was_never_there_is_said(plan_of: Callable[..., Path], tmp_path: Path) -> None:
    with chat_server() as server:
        plan = plan_of(server, ["good", "text"])
    with pytest.raises(EndpointError, match=r"seer at 127.*cannot be reached"):
        curate(read_plan(plan), tmp_path / "out")
    assert not (tmp_path / "out" / "decisions.parquet").exists()


def test_beside_the_network_either_finds(
    plan_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 160), dtype=np.uint8)
    monkeypatch.setitem(PLANTED, "good", noise)

    def fine(request: dict[str, Any], before: int) -> Reply:
        del request, before
        return Reply(json.dumps(FINE))

    with chat_server(fine) as server:
        plan = read_plan(plan_of(server, ["good"], judge=True, not_chest="note"))
        curate(plan, tmp_path / "both")
        alone = plan.model_copy(update={"content": plan.content.model_copy(update={"judge": None})})
        curate(alone, tmp_path / "alone")
    both, one = (table(tmp_path / name)["good"] for name in ("both", "alone"))
    assert both["notes"][0].startswith("not a chest radiograph (one with probability 0.")
    assert both["judge_quality"] == 4
    assert (one["notes"], one["score_chest"]) == ([], 1)


def test_what_the_rules_drop_is_not_asked(plan_of: Callable[..., Path], tmp_path: Path) -> None:
    with chat_server(look) as server:
        plan = plan_of(server, ["good"], min_side=65, small="note")
        curate(read_plan(plan), tmp_path / "out")
        assert len(server.requests) == 1
        strict = read_plan(plan).model_copy(update={"content": ContentPlan(min_side=65, endpoint=server.settings())})
        with pytest.raises(DataError, match="no row is left"):
            curate(strict, tmp_path / "none")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("said", "network", "view", "expected"),
    [
        (scores(), scores(chest=0.1, text=0.9), "frontal", scores(chest=0.1, text=0.9)),
        (scores(inverted=1), scores(collage=0.3), "frontal", scores(inverted=1, collage=0.3)),
        (scores(quarters=1), scores(quarters=3, oriented=0.9), "frontal", scores(quarters=1)),
        (scores(), scores(quarters=3, oriented=0.9), "frontal", scores(quarters=3, oriented=0.9)),
        (scores(), scores(quarters=3, oriented=0.5), "frontal", scores()),
        (scores(), scores(lateral=0.9), "frontal", scores(lateral=0.9)),
        (scores(), scores(lateral=0.9), "lateral", scores()),
        (scores(), scores(lateral=0.9), None, scores()),
        (None, scores(text=0.2), "frontal", scores(text=0.2)),
        (scores(text=1), None, "frontal", scores(text=1)),
    ],
)
def test_two_judges_as_one(said: Any, network: Any, view: str | None, expected: Any) -> None:
    assert merged(said, network, 0.7, view) == expected


def test_policies_of_what_only_the_model_says() -> None:
    plan = ContentPlan.model_validate(
        {"endpoint": {"base_url": "http://h/v1", "model": "m"}, "non_diagnostic": "note", "least_quality": 4,
         "view": "drop"}
    )  # fmt: skip
    assert not plan.network
    poor = Seen("").judged(scores(), Opinion(quality=3, reason="blurred"))
    assert poor.verdict(plan, "frontal") == Verdict(notes=("quality 3 of 5: blurred",))
    oblique = Seen("").judged(scores(lateral=0.5), Opinion(quality=4, other_view=True))
    assert oblique.verdict(plan, None).drop == "shows neither a frontal nor a lateral view, view not stated"


def test_the_model_is_shown_at_most_768_pixels() -> None:
    ramp = np.linspace(0.4, 0.6, 1000 * 10, dtype=np.float32).reshape(10, 1000).repeat(200, axis=0)
    picture = shown_pixels(ramp)
    assert (picture.shape, picture.min(), picture.max()) == ((768, 384), 0, 255)
    assert shown_pixels(ramp[:100, :50]).shape == (100, 50)
