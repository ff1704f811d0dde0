"""The re-identification network that is fitted in closed form, and the one that ships."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.test_reid import manifest_of
from xgem.cli import main
from xgem.judges.reid import MOBILENET, SHIPPED, WEIGHTS_NAME, load_reid
from xgem.metrics.privacy import reidentification_score
from xgem.train import reid_fit
from xgem.train.reid_pairs import Patients


def patients_of(features: dict[str, list[list[float]]]) -> tuple[Patients, np.ndarray, np.ndarray]:
    """Patients whose maps are given: rows in the order of the patients."""
    rows: dict[str, list[int]] = {}
    maps: list[list[float]] = []
    for name, images in features.items():
        rows[name] = list(range(len(maps), len(maps) + len(images)))
        maps += images
    images = torch.zeros(len(maps), 1, 1, dtype=torch.uint8)
    patients = Patients(images, rows, dict.fromkeys(range(len(maps)), "one"), tuple(sorted(rows)), "")
    return patients, np.array(maps, dtype=np.float32), reid_fit._owners(patients, len(maps))


def test_the_projection_keeps_what_differs_between_patients_not_within() -> None:
    rng = np.random.default_rng(0)
    # The first feature tells patients apart; the second varies more, but within patients
    features = {f"p{k}": [[float(k % 7), 4 * rng.normal(), rng.normal() * 0.1] for _ in range(4)] for k in range(21)}
    _, maps, owner = patients_of(features)
    weight, bias = reid_fit._projection(maps, owner, 1)
    direction = np.abs(weight[0]) * maps.std(axis=0)
    assert direction[0] > 5 * direction[1]
    assert (maps @ weight.T + bias).mean() == pytest.approx(0, abs=1e-3)


def test_probabilities_fall_with_distance_and_are_of_patients_not_fitted_on() -> None:
    rng = np.random.default_rng(1)
    features = {}
    for k in range(24):
        centre = rng.normal(size=8) * 2
        features[f"p{k:02d}"] = [(centre + rng.normal(size=8) * 0.5).tolist() for _ in range(3)]
    patients, maps, owner = patients_of(features)
    slope, offset = reid_fit._calibrated(patients, maps, owner, 4, seed=0)
    assert slope < 0 < offset
    again = reid_fit._calibrated(patients, maps, owner, 4, seed=0)
    assert (slope, offset) == again


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fit")
    data = manifest_of(root, {"train": 12, "val": 6}, 3)
    command = [
        "train",
        "reid",
        "--preset",
        "mobilenet",
        "--data",
        str(data),
        "--out",
        str(root / "run"),
        "--no-progress",
    ]
    assert main(command) == 0
    return root / "run"


def test_the_command_fits_a_network_that_recognises_patients(fitted: Path) -> None:
    record = json.loads((fitted / "reid.json").read_text())
    assert record["train"] == "closed form"
    assert record["auc"]["value"] > 0.9
    assert record["auc"]["n"] == 6
    network = load_reid(fitted)
    rng = np.random.default_rng(0)
    features = network(rng.integers(0, 255, (3, 40, 40), dtype=np.uint8))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    # The score of an image with itself is the highest, and that of the network's own forward
    scores = reidentification_score(features, features, network.weight, network.bias, power=network.power)
    assert (scores.rows == np.arange(3)).all()
    own = reidentification_score(
        features, features, network.weight, network.bias, power=network.power, own_prompt=[1, 2, 0]
    ).values
    pairs = network.network.compare(torch.tensor(features), torch.tensor(features[[1, 2, 0]]))
    np.testing.assert_allclose(own, torch.sigmoid(pairs).numpy(), rtol=1e-4)
    assert (own < scores.values).all()


def test_weights_are_small_and_without_the_shipped_trunk(fitted: Path) -> None:
    assert (fitted / WEIGHTS_NAME).stat().st_size < 1_300_000
    assert load_reid(fitted).config == MOBILENET


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = manifest_of(tmp_path, {"train": 4, "val": 4}, 2)
    command = ["train", "reid", "--preset", "mobilenet", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*command, "--steps", "5"]) == 2
    assert "is fitted, not trained: leave out --steps" in capsys.readouterr().err
    assert main([*command, "--init", str(tmp_path), "--no-progress"]) == 2
    assert "is fitted anew" in capsys.readouterr().err
    assert main([*command, "--no-progress"]) == 2
    assert "4 training patients have several images: preset 'mobilenet' needs at least 8" in capsys.readouterr().err


def test_the_shipped_network_is_the_record_s() -> None:
    record = json.loads((SHIPPED / "reid.json").read_text())
    assert record["auc"]["low"] > 0.75
    network = load_reid("xgem")
    assert network.config.model_dump(mode="json") == record["network"]
    assert network.name == "siamese-mobilenet-v2"
    assert network.bias > 0 > network.weight.max()
