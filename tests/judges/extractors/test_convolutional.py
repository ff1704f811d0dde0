"""Weights are read without running their code, and looked for in their packages' own folders."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.judges.test_extractors import varied
from xgem.judges.extractors.convolutional import densenet, inception, read_state, xrv_network
from xgem.types import CheckpointError, NotComputed

STATE = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.tensor([1.0, -1.0])}


def module() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 2))
    network.load_state_dict(STATE)
    return network


@pytest.mark.parametrize("form", ["safetensors", "state", "module"])
def test_a_state_dict_is_the_same_in_every_form(form: str, tmp_path: Path) -> None:
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(STATE, file)
    else:
        torch.save(STATE if form == "state" else module(), file)
    found = read_state(file, [nn.Sequential, nn.Linear])
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


def test_a_module_of_other_classes_is_refused(tmp_path: Path) -> None:
    torch.save(module(), tmp_path / "weights.pt")
    for classes in (None, [nn.Sequential]):
        with pytest.raises(CheckpointError, match="without running the file's code"):
            read_state(tmp_path / "weights.pt", classes)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_files_that_hold_no_state_dict(name: str, content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / name
    if content is None:
        torch.save(torch.ones(3), file)
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read_state(file)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DenseNet of random weights, in a folder laid out as the package's."""
    with warnings.catch_warnings():
        models = pytest.importorskip("torchxrayvision.models")
    torch.manual_seed(0)
    network: Any = varied(models.DenseNet(num_classes=18))
    file = tmp_path_factory.mktemp("home") / ".torchxrayvision" / "models_data"
    file.mkdir(parents=True)
    file /= models.model_urls["densenet121-res224-all"]["weights_url"].rpartition("/")[2]
    torch.save(network.state_dict() | {"op_threshs": torch.ones(18)}, file)
    return file


def test_densenet_is_found_in_the_home_directory(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: weights.parents[2])
    found = xrv_network("judge", None, "all")
    given = xrv_network("judge", str(weights), "all")
    assert not found.training
    assert "op_threshs" not in found.state_dict()
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in found.state_dict().items())
    with pytest.raises(NotComputed, match=r"^judge: no weights \(none in the library's cache\); get mimic"):
        xrv_network("judge", None, "mimic_ch")


def test_densenet_refuses_weights_of_another_network(weights: Path, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"^judge: .*other\.pt holds other weights than densenet121-res224-all's"):
        xrv_network("judge", str(tmp_path / "other.pt"), "all")


def test_densenet_sees_the_central_square(weights: Path) -> None:
    extractor = densenet("all", str(weights), "cpu")
    square = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    high, wide = np.full((80, 48), 255, dtype=np.uint8), np.zeros((48, 56), dtype=np.uint8)
    high[16:64], wide[:, 4:52] = square, square
    expected = extractor(square[None])
    for image in (high, wide):
        np.testing.assert_allclose(extractor(image[None]), expected, rtol=1e-5, atol=1e-6)
    assert (extractor.name, extractor.dim, extractor.size) == ("xrv-densenet-all", 1024, 224)
    high[16:64] = square.T
    assert np.abs(extractor(high[None]) - expected).max() > 1e-3


@pytest.mark.parametrize("package", ["weights-inception", "pt_inception"])
def test_inception_is_found_in_the_folder_of_torch_hub(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(NotComputed, match=r"no weights \(none in the library's cache\); get weights-inception-2015"):
        inception(None, "cpu")
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / f"{package}-2015-12-05-6726825d.pth"
    torch.save(STATE, file)
    with pytest.raises(CheckpointError, match=f"{file.name} does not hold the FID's Inception"):
        inception(None, "cpu")
