from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from xgem.data.sets import EvalSet, Item
from xgem.eval.utility import runner
from xgem.eval.utility.protocols import suite
from xgem.eval.utility.runner import run_protocols
from xgem.judges.networks import batches, image_network, last_layer, load_weights
from xgem.judges.settings import Stage, UtilitySettings, preset
from xgem.judges.tasks.classification import Classification
from xgem.judges.tasks.data import Data
from xgem.judges.tasks.gradcam import grad_cam
from xgem.judges.tasks.training import balanced_chances, train
from xgem.metrics.bootstrap import Estimate
from xgem.metrics.significance import wilcoxon
from xgem.types import CheckpointError, DataError, InputError, NotComputed

CLASSES = ("Edema", "Lung Lesion")
SETTINGS = UtilitySettings(
    "classification",
    "small",
    32,
    Stage(steps=70, batch_size=16, learning_rate=3e-3, schedule="one_cycle"),
    width=6,
    runs=2,
    draws=200,
)


def discs(folder: Path, name: str, n: int, seed: int, *, useless: bool = False) -> EvalSet:
    """A bright disc somewhere on the left is Edema; Lung Lesion is nowhere. ``useless``: noise with random labels."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    items: list[Item] = []
    y, x = np.mgrid[:32, :32]
    for k in range(n):
        positive = bool(rng.random() < 0.5)
        pixels = rng.integers(60, 150, (32, 32))
        if positive and not useless:
            pixels[(y - rng.integers(8, 24)) ** 2 + (x - rng.integers(6, 12)) ** 2 <= 16] += 40
        file = folder / f"{name}-{k}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        labels = {"Edema": float(positive), "Lung Lesion": 0.0}
        items.append(Item(f"{name}-{k}", file, subject=f"{name}-{k}", labels=labels))
    return EvalSet(name, tuple(items))


@pytest.fixture(scope="module", name="sets")
def _sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EvalSet]:
    folder = tmp_path_factory.mktemp("discs")
    return {
        "real": discs(folder, "real", 8, 0),
        "useful": discs(folder, "useful", 240, 1),
        "useless": discs(folder, "useless", 240, 2, useless=True),
        "test": discs(folder, "test", 120, 3),
    }


def test_useful_synthetic_images_help_and_useless_ones_do_not(sets: dict[str, EvalSet], tmp_path: Path) -> None:
    task = Classification(SETTINGS, CLASSES)
    gains: dict[str, Estimate] = {}
    for kind in ("useful", "useless"):
        protocols = suite("augmentation", sets["real"], sets[kind], multiples=[30.0])
        tested = run_protocols(task, protocols, (sets["real"], sets[kind]), sets["test"], cache=tmp_path)
        bootstrap = tested.bootstrap()
        found = {name: tested.measures(name, bootstrap)[0]["AUROC macro", ""] for name in tested.runs}
        gains[kind] = (found["real + 30x"] - found["real"]).estimate()
        if kind == "useful":
            assert found["real + 30x"].value > 0.93
            assert found["synthetic"].value > 0.93
            assert wilcoxon(tested.cases("real + 30x").mean(axis=0), tested.cases("real").mean(axis=0)).p < 0.001
            assert tested.cases("real + 30x").mean() < tested.cases("real").mean()
        else:
            assert 0.25 < found["synthetic"].value < 0.75
    assert gains["useful"].above_zero
    assert gains["useful"].value > 0.1
    assert gains["useless"].value < 0.05
    assert not gains["useless"].above_zero


def test_a_stopped_evaluation_goes_on(
    sets: dict[str, EvalSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, training=Stage(steps=3, batch_size=8))
    task = Classification(settings, CLASSES)
    protocols = suite("augmentation", sets["real"], sets["useful"], multiples=[1.0])
    known = (sets["real"], sets["useful"])
    trained: list[int] = []

    def counted(*args: Any, **options: Any) -> nn.Module:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(options["seed"])
        return train(*args, **options)

    monkeypatch.setattr(runner, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        run_protocols(task, protocols, known, sets["test"], cache=tmp_path)
    assert trained == [0, 1, 0]
    trained.clear()
    resumed = run_protocols(task, protocols, known, sets["test"], cache=tmp_path)
    assert trained == [1, 0, 1]  # three protocols of two runs, three of which were there
    monkeypatch.setattr(runner, "train", train)
    unbroken = run_protocols(task, protocols, known, sets["test"])
    for name, runs in unbroken.runs.items():
        for one, other in zip(runs.predictions, resumed.runs[name].predictions, strict=True):
            np.testing.assert_array_equal(one["scores"], other["scores"])

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runner, "train", fail)
    run_protocols(task, protocols, known, sets["test"], cache=tmp_path)
    more = Classification(replace(settings, runs=1, draws=10), CLASSES)  # neither changes what a network answers
    run_protocols(more, protocols, known, sets["test"], cache=tmp_path)
    other = Classification(replace(settings, training=Stage(steps=4, batch_size=8)), CLASSES)
    with pytest.raises(AssertionError, match="trained again"):
        run_protocols(other, protocols, known, sets["test"], cache=tmp_path)
    first = sets["real"].items[0]
    relabelled = replace(first, labels={"Edema": 1 - first.labels["Edema"], "Lung Lesion": 0.0})
    changed = replace(sets["real"], items=(relabelled, *sets["real"].items[1:]))
    with pytest.raises(AssertionError, match="trained again"):
        run_protocols(task, suite("augmentation", changed, sets["useful"]), known, sets["test"], cache=tmp_path)


def test_the_test_set_may_not_be_trained_on(sets: dict[str, EvalSet]) -> None:
    task = Classification(SETTINGS, CLASSES)
    protocols = suite("augmentation", sets["real"], sets["test"])
    with pytest.raises(DataError, match="share subject 'test-0'"):
        run_protocols(task, protocols, (sets["real"], sets["test"]), sets["test"])


def test_too_few_synthetic_images_are_a_reason(sets: dict[str, EvalSet]) -> None:
    task = Classification(replace(SETTINGS, training=Stage(steps=1), runs=1), CLASSES)
    protocols = suite("augmentation", sets["real"], sets["useful"], multiples=[100.0])
    tested = run_protocols(task, protocols, (sets["real"], sets["useful"]), sets["test"])
    assert set(tested.runs) == {"real", "synthetic"}
    assert tested.failed == {"real + 100x": "needs 800 synthetic images, useful has 240"}


def test_pretraining_reaches_the_network(sets: dict[str, EvalSet]) -> None:
    settings = replace(
        SETTINGS, runs=1, pretraining=SETTINGS.training, finetuning=Stage(steps=5, batch_size=8, learning_rate=1e-4)
    )
    task = Classification(settings, CLASSES)
    protocols = suite("pretraining", sets["real"], sets["useful"], fractions=[0.5])
    tested = run_protocols(task, protocols, (sets["real"], sets["useful"]), sets["test"])
    bootstrap = tested.bootstrap()
    found = {name: tested.measures(name, bootstrap)[0]["AUROC macro", ""].value for name in tested.runs}
    assert found["pretrained, 50 % real"] > 0.9 > found["50 % real"] + 0.1
    assert (tested.runs["pretrained, 50 % real"].size, tested.runs["pretrained, 50 % real"].pretraining) == (4, 240)
    with pytest.raises(InputError, match="no pretraining and fine-tuning"):
        run_protocols(
            Classification(replace(SETTINGS, runs=1), CLASSES),
            protocols[1:],
            (sets["real"], sets["useful"]),
            sets["test"],
        )


def test_labels_of_both_readings() -> None:
    items = EvalSet("x", (Item("a", Path("a"), labels={"Edema": -1.0}), Item("b", Path("b"), labels={"Edema": 1.0})))
    known = Classification(SETTINGS, CLASSES).labels(items)
    np.testing.assert_array_equal(known, [[np.nan, np.nan], [1, np.nan]])
    assert len(Classification(SETTINGS, CLASSES).usable(items)) == 1
    counted = Classification(replace(SETTINGS, unmentioned="negative"), CLASSES).labels(items)
    np.testing.assert_array_equal(counted, [[np.nan, 0], [1, 0]])
    with pytest.raises(InputError, match="none of its 1 items has an image and labels"):
        Classification(SETTINGS, CLASSES).usable(EvalSet("x", (Item("a", Path("a")),)))


def test_balanced_sampling_shows_every_class_equally_often() -> None:
    presence = np.zeros((100, 2), dtype=bool)
    presence[:50, 0] = True
    presence[50:55, 1] = True
    chances = balanced_chances(presence)
    shares = [chances[:50].sum(), chances[50:55].sum(), chances[55:].sum()]
    np.testing.assert_allclose(shares, np.ones(3))


def test_grad_cam_lights_up_the_disc() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(90, 120, (200, 64, 64), dtype=np.uint8)
    places, disc = rng.integers(10, 54, (200, 2)), np.arange(200) % 2 == 0
    y, x = np.mgrid[:64, :64]
    for image, (row, column), round_ in zip(images, places, disc, strict=True):
        bar = (abs(y - row) <= 18) & (abs(x - column) <= 2)
        image[(y - row) ** 2 + (x - column) ** 2 <= 49 if round_ else bar] += 80
    training = Stage(steps=120, batch_size=16, learning_rate=3e-3, schedule="one_cycle")
    task = Classification(replace(SETTINGS, width=8, size=64, training=training), CLASSES)
    data = Data(images[:160], {"labels": np.stack([disc, ~disc], axis=1)[:160].astype(np.float32)})
    network = train(task, data, seed=0, device=torch.device("cpu"))
    shown, where = images[160:][disc[160:]], places[160:][disc[160:]]
    inputs = next(batches(shown, 64, torch.device("cpu")))
    heat = grad_cam(network, last_layer(task.settings, network), inputs, torch.zeros(len(shown), dtype=torch.long))
    assert heat.shape == (20, 64, 64)
    assert heat.min() >= 0
    np.testing.assert_allclose(heat.max(axis=(1, 2)), 1, atol=1e-6)
    for one, (row, column) in zip(heat, where, strict=True):
        assert one[row - 8 : row + 8, column - 8 : column + 8].mean() > 1.5 * one.mean()


class _Two(nn.Module):
    """Output 0 is the mean of the first channel, output 1 that of the second times 3 minus that of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            assert self.layer.bias is not None
            self.layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.nn.functional.relu(self.layer(x), inplace=True).mean(dim=(2, 3)).T
        return torch.stack([a, 3 * b - a], dim=1)


def test_grad_cam_in_closed_form() -> None:
    network = _Two()
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]).view(1, 1, 2, 2)
    heat = grad_cam(network, network.layer, x, torch.tensor([0]))
    # Channel 0 has gradient 1/4 where it is positive (3 of 4 places), channel 1 none: the map is x's positive part
    np.testing.assert_allclose(heat[0], [[0.5, 1.0], [0.0, 0.25]], atol=1e-6)
    with pytest.raises(InputError, match="layer that the network passes through"):
        grad_cam(network, nn.Conv2d(1, 1, 1), x, torch.tensor([0]))


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_published_networks_take_grey_images_and_weights_of_other_classes(name: str, tmp_path: Path) -> None:
    import torchvision
    from safetensors.torch import save_file

    settings = replace(SETTINGS, network=name)
    torch.manual_seed(0)
    other = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    save_file(other.state_dict(), tmp_path / "weights.safetensors")
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    for file in ("weights.safetensors", "weights.pt"):
        network: Any = image_network(replace(settings, weights=str(tmp_path / file)), 2).eval()
        own = network.network.state_dict()
        assert all(torch.equal(own[k], v) for k, v in other.state_dict().items() if own[k].shape == v.shape)
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    assert network(x).shape == (2, 2)
    assert grad_cam(network, last_layer(settings, network), x, torch.tensor([0, 1])).shape == (2, 64, 64)


def test_imagenet_weights_are_torchvisions_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    settings = replace(SETTINGS, network="densenet121", weights="imagenet")
    published = torchvision.models.get_model("densenet121", weights=None).state_dict()
    old = {
        re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", name): value
        for name, value in published.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    asked: list[dict[str, Any]] = []

    def download(url: str, **options: Any) -> dict[str, torch.Tensor]:
        asked.append(options)
        return old

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    network: Any = image_network(settings, 2)
    own = network.network.state_dict()
    name = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(own[name], published[name])
    assert own["classifier.weight"].shape == (2, 1024)
    assert asked[0]["weights_only"]

    def offline(url: str, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(NotComputed, match="cannot be downloaded"):
        image_network(settings, 2)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    network = image_network(SETTINGS, 2)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="do not fit the network"):
        load_weights(network, tmp_path / "other.pt", head="head")
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(network, tmp_path / "broken.pt", head="head")
    with pytest.raises(InputError, match="expected small, resnet18"):
        image_network(replace(SETTINGS, network="vgg"), 2)


def test_small_preset_is_ready_to_run() -> None:
    settings = preset("classification")
    assert image_network(settings, 14)(torch.zeros(2, 1, 64, 64)).shape == (2, 14)
