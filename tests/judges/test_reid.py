"""The Siamese network: its arithmetic, the published form of its weights, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from xgem.judges import reid
from xgem.judges.reid import PUBLISHED, Reid, ReidConfig, SiameseNetwork, load_reid, save_reid, to_input
from xgem.metrics.privacy import reidentification_score
from xgem.types import CheckpointError, ShapeError

TINY = ReidConfig(layers=(1, 1, 1, 1), size=32)


@pytest.fixture(scope="module")
def network() -> SiameseNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SiameseNetwork(TINY).eval()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 40, 40), dtype=np.uint8)


def test_the_published_architecture() -> None:
    """ResNet-50 with 128 outputs, and one layer behind: the published weights' names and sizes."""
    with torch.device("meta"):
        state = SiameseNetwork(PUBLISHED).state_dict()
    assert PUBLISHED.name == "siamese-resnet50"
    assert {key.split(".")[0] for key in state} == {"model", "fc_end"}
    assert state["model.conv1.weight"].shape == (64, 3, 7, 7)
    assert state["model.layer3.5.conv3.weight"].shape == (1024, 256, 1, 1)
    assert state["model.fc.weight"].shape == (128, 2048)
    assert state["fc_end.weight"].shape == (1, 128)


def test_features_and_head_are_the_network(network: SiameseNetwork, images: np.ndarray) -> None:
    judge = Reid(network, TINY)
    features = judge(images)
    assert features.shape == (6, judge.dim) == (6, 128)
    assert features.dtype == np.float32
    x = to_input(torch.from_numpy(images)[:, None].float() / 255, TINY)
    with torch.no_grad():
        expected = torch.stack([torch.sigmoid(network(x[:2], x[j : j + 1].expand(2, -1, -1, -1))) for j in range(2, 6)])
    found = reidentification_score(features[:2], features[2:], judge.weight, judge.bias)
    np.testing.assert_allclose(found.values, expected.max(dim=0).values, rtol=1e-5)
    np.testing.assert_array_equal(found.rows, expected.argmax(dim=0))
    with pytest.raises(ShapeError, match=r"expected \(b, h, w\)"):
        judge(images[0])


def test_normalisation_is_imagenets() -> None:
    grey = torch.full((1, 1, 32, 32), 0.5)
    x = to_input(grey, TINY)
    assert x.shape == (1, 3, 32, 32)
    assert x[0, :, 0, 0].tolist() == pytest.approx(
        [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    )
    assert torch.equal(to_input(grey, TINY.model_copy(update={"normalise": False})), grey.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("form", ["bare", "state_dict"])
def test_weights_in_the_published_form(
    network: SiameseNetwork, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(reid, "PUBLISHED", TINY)  # the same names and form, at a tiny size
    state = network.state_dict()
    torch.save(state if form == "bare" else {"state_dict": state, "epoch": 3}, tmp_path / "published.pth")
    judge = load_reid(tmp_path / "published.pth")
    assert judge.weights == Reid(network, TINY).weights
    np.testing.assert_array_equal(judge(images), Reid(network, TINY)(images))


def test_own_weights_round_trip(network: SiameseNetwork, images: np.ndarray, tmp_path: Path) -> None:
    save_reid(tmp_path / "reid.safetensors", network, TINY)
    for path in (tmp_path, tmp_path / "reid.safetensors"):
        judge = load_reid(path)
        assert judge.config == TINY
        np.testing.assert_array_equal(judge(images), Reid(network, TINY)(images))
    assert [file.name for file in tmp_path.iterdir()] == ["reid.safetensors"]


def test_the_benchmarks_preprocessing_is_another(network: SiameseNetwork, images: np.ndarray, tmp_path: Path) -> None:
    save_reid(tmp_path / "reid.safetensors", network, TINY)
    judge = load_reid(tmp_path, preprocessing="chexgenbench")
    assert (judge.config.size, judge.config.normalise) == (224, False)
    assert judge.weights != load_reid(tmp_path).weights
    assert not np.allclose(judge(images), load_reid(tmp_path)(images))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_what_is_no_network(network: SiameseNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="no such file; train one"):
        load_reid(tmp_path)
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match="tensors only"):
        load_reid(tmp_path / "a.pth")
    assert "executed" not in capsys.readouterr().out
    torch.save([torch.zeros(1)], tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="got list"):
        load_reid(tmp_path / "b.pth")
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable re-identification network"):
        load_reid(tmp_path / "c.safetensors")


def test_weights_that_do_not_fit_are_named(
    network: SiameseNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reid, "PUBLISHED", TINY)
    state = dict(network.state_dict())
    file = tmp_path / "weights.pth"
    torch.save({key.replace("fc_end", "classifier"): value for key, value in state.items()}, file)
    with pytest.raises(
        CheckpointError, match=r"2 weights are missing \(first: fc_end\.bias.*2 unknown.*classifier\.bias"
    ):
        load_reid(file)
    torch.save(state | {"model.conv1.weight": torch.zeros(64, 1, 7, 7)}, file)
    with pytest.raises(
        CheckpointError, match=r"model\.conv1\.weight of shape \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)"
    ):
        load_reid(file)
