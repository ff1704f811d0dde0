"""The judge of sides: it learns sides that are planted, and refuses what it cannot use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from xgem.judges.sides import (
    GROUPS,
    RECORD,
    SHIPPED,
    SideConfig,
    SideJudge,
    SideNetwork,
    accuracy_of,
    group_of,
    sides_of,
    targets_of,
    train_sides,
)
from xgem.labels.sides import BOTH, SIDES, Side
from xgem.types import CheckpointError, InputError

SIZE = 32
LEFT, RIGHT, NONE = frozenset({"left"}), frozenset({"right"}), frozenset[str]()
CONFIG = SideConfig(size=SIZE, width=8, epochs=12, batch_size=16, learning_rate=3e-3, dropout=0.0)


def planted(count: int, seed: int) -> tuple[np.ndarray, list[dict[str, frozenset[Side]]]]:
    """Noise with a heart on the patient's left, and on one side a bright effusion at the bottom."""
    rng = np.random.default_rng(seed)
    images = rng.normal(90, 15, (count, SIZE, SIZE))
    images[:, 14:22, 17:24] += 60
    named: list[dict[str, frozenset[Side]]] = []
    for image in images:
        side = SIDES[int(rng.integers(2))]
        column = int(rng.integers(2, 8)) + (16 if side == "left" else 0)
        image[23:29, column : column + 6] += 70
        named.append({"Pleural Effusion": frozenset({side})})
    return images.clip(0, 255).astype(np.uint8), named


@pytest.fixture(scope="module")
def judge() -> SideJudge:
    images, named = planted(192, 0)
    return train_sides(images, targets_of(named, [{}] * len(named)), config=CONFIG)


def test_planted_sides_are_found_and_mirrored_ones_on_the_other_side(judge: SideJudge) -> None:
    images, named = planted(64, 1)
    truth = sides_of(named)
    found = accuracy_of(judge, images, truth)
    assert found["effusion"]["n"] == 64
    assert found["effusion"]["accuracy"] > 0.9
    assert found["all"] == found["effusion"]
    assert found["opacity"] == {"n": 0, "accuracy": None}
    turned = accuracy_of(judge, images[..., ::-1].copy(), truth)["effusion"]["accuracy"]
    assert turned < 0.3


def test_it_is_kept_in_files(judge: SideJudge, tmp_path: Path) -> None:
    images, _ = planted(8, 2)
    judge.save(tmp_path, {"accuracy": {"here": 1}})
    kept = SideJudge.load(tmp_path)
    assert kept.groups == tuple(GROUPS)
    assert kept.accuracy == {"here": 1}
    np.testing.assert_allclose(kept.leftness(images), judge.leftness(images), atol=0.05)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="not a judge of sides"):
        SideJudge.load(tmp_path)


def test_the_halves_are_those_of_the_patient() -> None:
    network = SideNetwork(1, SideConfig(size=SIZE, width=8)).eval()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        network.place[..., :1] = 5.0  # the left of the image
    left, right = network(torch.zeros(1, 1, SIZE, SIZE))[0, 0].tolist()
    assert (round(left, 4), round(right, 4)) == (0, 5)


def test_targets_say_what_is_known_of_each_half() -> None:
    named = [{"Pleural Effusion": LEFT}, {"Atelectasis": BOTH}, {"Pleural Effusion": NONE}, {}, {}]
    labels = [{}, {}, {"Pleural Effusion": 1.0}, {"Pleural Effusion": 0.0}, {"Atelectasis": 0.0}]
    targets = targets_of(named, labels)  # type: ignore[arg-type]
    effusion, opacity = (list(GROUPS).index(name) for name in ("effusion", "opacity"))
    np.testing.assert_array_equal(targets[0, effusion], [1, 0, np.nan])
    np.testing.assert_array_equal(targets[1, opacity], [1, 1, np.nan])
    np.testing.assert_array_equal(targets[2, effusion], [np.nan, np.nan, 1])  # present, on a side that nobody names
    np.testing.assert_array_equal(targets[3, effusion], [0, 0, np.nan])
    assert np.isnan(targets[4, opacity]).all()  # other opacities are not denied
    assert sides_of(named)[:, effusion].tolist()[0] == 1  # type: ignore[arg-type]
    assert np.isnan(sides_of(named)[1, opacity])  # type: ignore[arg-type]


def test_groups_of_classes() -> None:
    assert [group_of(name) for name in ("Pneumonia", "Pneumothorax", "Cardiomegaly")] == [
        "opacity",
        "pneumothorax",
        None,
    ]


def test_what_cannot_be_learned_is_refused() -> None:
    images, _ = planted(8, 3)
    with pytest.raises(InputError, match="expected"):
        train_sides(images, np.zeros((8, 1, 3)), config=CONFIG)
    with pytest.raises(InputError, match="on one side alone"):
        train_sides(images, targets_of([{"Pleural Effusion": BOTH}] * 8, [{}] * 8), config=CONFIG)


def test_the_one_that_ships() -> None:
    record = json.loads((SHIPPED / RECORD).read_text(encoding="utf-8"))
    shipped = SideJudge.load()
    assert shipped.groups == tuple(GROUPS)
    assert shipped.leftness(np.zeros((2, 100, 90), np.uint8)).shape == (2, len(GROUPS))
    assert record["accuracy"]["nih_boxes"]["effusion"]["accuracy"] > 0.6
    assert shipped.told == ("effusion", "opacity")
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 2_000_000
