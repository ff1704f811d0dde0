"""Where networks in the hub's layout are looked for, and that they see what their preprocessing says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

from tests.judges.test_extractors import preprocessing
from xgem.judges.extractors import Extractor
from xgem.judges.extractors.hub import clip, folder_of, rad_dino
from xgem.types import NotComputed

MEAN, STD = 0.46, 0.27


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What the hub is asked for; it has everything."""
    requests: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        requests.append({"repository": repository, **options})
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return requests


def test_a_folder_is_taken_as_it_is(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert folder_of("rad-dino", str(tmp_path), "microsoft/rad-dino") == tmp_path
    assert asked == []


@pytest.mark.parametrize(("source", "local"), [(None, True), ("someone/copy", False)])
def test_only_a_hub_id_that_was_given_is_fetched(
    asked: list[dict[str, Any]], tmp_path: Path, source: str | None, local: bool
) -> None:
    assert folder_of("rad-dino", source, "microsoft/rad-dino") == tmp_path / "fetched"
    (request,) = asked
    assert request["repository"] == (source or "microsoft/rad-dino")
    assert request["local_files_only"] is local
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in request["allow_patterns"]), "no pickles"


@pytest.mark.parametrize("source", ["weights.bin", "a/b/c", "../up", "not/an id"])
def test_what_is_neither_folder_nor_hub_id_is_not_asked_for(asked: list[dict[str, Any]], source: str) -> None:
    with pytest.raises(NotComputed, match="is neither a folder nor a hub id"):
        folder_of("rad-dino", source, "microsoft/rad-dino")
    assert asked == []


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (None, r"microsoft/rad-dino: it is not in the local cache, TimeoutError\); .* rad-dino=microsoft/rad-dino to"),
        ("someone/copy", r"someone/copy: the hub did not provide it, TimeoutError\); .* rad-dino=someone/copy to"),
    ],
)
def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, source: str | None, why: str) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(NotComputed, match=why):
        folder_of("rad-dino", source, "microsoft/rad-dino")


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **sizes)).save_pretrained(tmp_path / "dino")
    preprocessing(tmp_path / "dino", "BitImageProcessor", 42, 28, MEAN, STD)
    return tmp_path / "dino"


@pytest.fixture
def vision(tmp_path: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=12, intermediate_size=32, **sizes)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    preprocessing(tmp_path / "clip", "CLIPImageProcessor", 42, 28, MEAN, STD)
    return tmp_path / "clip"


def flat(*greys: int) -> tuple[np.ndarray, torch.Tensor]:
    """Images of one grey each, and what a network sees of them: whatever is resized and cropped, they stay flat."""
    images = np.stack([np.full((60, 50), grey, dtype=np.uint8) for grey in greys])
    seen = [torch.full((3, 28, 28), (grey / 255 - MEAN) / STD) for grey in greys]
    return images, torch.stack(seen)


def check_output(extractor: Extractor, kind: Any, folder: Path, output: str) -> None:
    """The extractor's features are an output of the network in the folder."""
    images, seen = flat(0, 90, 255)
    with torch.no_grad():
        expected = kind.from_pretrained(folder).eval()(pixel_values=seen)[output]
    np.testing.assert_allclose(extractor(images), expected.numpy(), atol=1e-5)
    assert (extractor.dim, extractor.size) == (expected.shape[1], 28)


def test_rad_dino_is_the_pooled_output(dino: Path) -> None:
    from transformers import AutoModel

    check_output(rad_dino(str(dino), "cpu"), AutoModel, dino, "pooler_output")


def test_clip_is_the_projected_embedding(vision: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    check_output(clip(str(vision), "cpu"), CLIPVisionModelWithProjection, vision, "image_embeds")


def test_the_preprocessing_is_told_by_what_changes_pixels(vision: Path) -> None:
    steps = clip(str(vision), "cpu").preprocessing
    for step in ("do_center_crop True", "shortest_edge", f"image_mean [{MEAN}, {MEAN}, {MEAN}]", "resample 3"):
        assert step in steps
    assert "image_processor_type" not in steps


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_folder_that_lacks_a_file_is_named(dino: Path, file: str) -> None:
    (dino / file).unlink()
    with pytest.raises(NotComputed, match=f"^rad-dino: {dino} cannot be loaded") as caught:
        rad_dino(str(dino), "cpu")
    assert "\n" not in str(caught.value)
