"""What the rules and the judge see, and what a plan makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.curation.conftest import Pixels
from xgem.curation.content import ContentJudge, Scores, Seen, Verdict, judged_pixels, rules
from xgem.curation.plan import ContentPlan
from xgem.types import CheckpointError

PLAN = ContentPlan()


def floats(image: Pixels) -> np.ndarray:
    return image.astype(np.float32) / 255


@pytest.fixture(scope="module")
def judge() -> ContentJudge:
    return ContentJudge.shipped()


def scores(**changed: float) -> Scores:
    plain = {
        "chest": 1,
        "collage": 0,
        "text": 0,
        "mirrored": 0,
        "inverted": 0,
        "lateral": 0,
        "quarters": 0,
        "oriented": 1,
    }
    return Scores(**{**plain, **changed})  # pyright: ignore[reportArgumentType]


def test_generated_radiographs_are_seen_for_what_they_are(
    judge: ContentJudge, frontals: list[Pixels], laterals: list[Pixels]
) -> None:
    images = [*frontals, *laterals]
    for quarters in range(4):
        for negative in (False, True):
            changed = [np.rot90(255 - one if negative else one, quarters) for one in images]
            found = judge(np.stack([judged_pixels(floats(one)) for one in changed]))
            assert [one.quarters for one in found] == [quarters] * 12
            assert all((one.inverted > 0.5) == negative and one.chest > 0.7 for one in found)
            assert [one.lateral > 0.5 for one in found] == [False] * 6 + [True] * 6


def test_what_is_none_is_seen_too(judge: ContentJudge) -> None:
    rng = np.random.default_rng(0)
    noise = [np.kron(rng.random((side, side)), np.ones((240 // side, 240 // side))) for side in (240, 60, 30, 12)]
    assert all(one.chest < 0.7 for one in judge(np.stack([judged_pixels(one.astype(np.float32)) for one in noise])))


@pytest.mark.parametrize(
    ("seen", "view", "verdict"),
    [
        (scores(), "frontal", Verdict()),
        (
            scores(chest=0.2, inverted=1),
            "frontal",
            Verdict("not a chest radiograph (one with probability 0.20)", "not_chest"),
        ),
        (scores(collage=0.9), "frontal", Verdict("several images in one (0.90)", "collage")),
        (scores(quarters=3, oriented=0.9), "frontal", Verdict(turn=3)),
        (scores(quarters=3, oriented=0.6), "frontal", Verdict()),
        (scores(inverted=0.8), "frontal", Verdict(invert=True)),
        (scores(lateral=0.9), "frontal", Verdict(view="lateral")),
        (scores(lateral=0.8), "frontal", Verdict(notes=("shows a lateral view (0.80), stated as frontal",))),
        (scores(lateral=0.8), None, Verdict(view="lateral")),
        (scores(lateral=0.9), None, Verdict(view="lateral")),
        (scores(lateral=0.6), "frontal", Verdict()),
        (scores(mirrored=0.9), "frontal", Verdict(notes=("mirrored, or with the heart on the right (0.90)",))),
        (scores(mirrored=0.9, lateral=1), "lateral", Verdict()),
        (scores(text=0.9), "frontal", Verdict(notes=("text burned into the image (0.90)",))),
    ],
)
def test_verdicts(seen: Scores, view: str | None, verdict: Verdict) -> None:
    assert Seen("", scores=seen).verdict(PLAN, view) == verdict


def test_policies() -> None:
    turned = Seen("", scores=scores(quarters=1, oriented=0.9, lateral=0.9))
    reason = "rotated by 90 degrees (0.90)"
    assert turned.verdict(ContentPlan(rotated="drop", view="note"), "frontal") == Verdict(
        reason, "rotated", notes=("shows a lateral view (0.90), stated as frontal",)
    )
    assert turned.verdict(ContentPlan(rotated="note", view="drop"), "frontal").kind == "view"


def test_rules() -> None:
    y, x = np.mgrid[:200, :200] / 200
    picture = ((y + x) / 2).astype(np.float32)
    assert rules(picture, PLAN) == ()
    assert rules(picture[:100], PLAN) == (("small", "100 x 200 pixels, fewer than 128 on a side"),)
    assert rules(np.where(y > 0.2, 0, picture).astype(np.float32), PLAN)[0][0] == "blank"
    assert rules(np.where(y > 0.4, 1, picture).astype(np.float32), PLAN) == (("blank", "60 % of the pixels are white"),)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"content\.json"):
        ContentJudge.load(tmp_path)
    (tmp_path / "content.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a judge of content"):
        ContentJudge.load(tmp_path)
