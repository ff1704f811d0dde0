"""open_clip towers from a directory in the real format: same vectors as open_clip's own model, also after saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from xgem.checkpoints.store import init_checkpoint, load_component, save_component
from xgem.configs.components import ImageEncoderConfig, TextEncoderConfig
from xgem.configs.preset import load_preset
from xgem.encoders.image import ImageEncoder
from xgem.encoders.text import TextEncoder
from xgem.types import CheckpointError

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
TEXTS = ["Large left pleural effusion.", "No acute cardiopulmonary abnormality."]


@pytest.fixture(scope="module", params=["CLIP", "CustomTextCLIP"])
def towers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory as the hub has it, and the model that was saved there."""
    torch.manual_seed(0)
    model = getattr(open_clip, request.param)(**MODEL_CFG).eval()
    folder = tmp_path_factory.mktemp("towers")
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, model


def saved_and_loaded(component: Any, name: str, root: Path) -> Any:
    init_checkpoint(root, load_preset("debug"))
    save_component(root, name, component)
    return load_component(root, name)


@torch.no_grad()
def test_image_tower(towers: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = towers
    encoder = ImageEncoder.from_config(ImageEncoderConfig(pretrained=str(folder))).eval()
    assert (encoder.config.image_size, encoder.config.embed_dim) == (32, 24)
    x = torch.rand(2, 1, 32, 32) * 2 - 1
    normalised = ((x + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = model.encode_image(normalised, normalize=True)
    again: Any = saved_and_loaded(encoder, "image_encoder", tmp_path / "root")
    (folder / "open_clip_model.safetensors").rename(folder / "gone")  # the checkpoint needs nothing from elsewhere
    try:
        again = load_component(tmp_path / "root", "image_encoder")
    finally:
        (folder / "gone").rename(folder / "open_clip_model.safetensors")
    for one in (encoder, again):
        made = one.encode(x)
        torch.testing.assert_close(made.pooled, expected)
        assert made.tokens.shape == (2, 4, 32)
        assert made.mask.all()
    torch.testing.assert_close(again.encode(x).tokens, encoder.encode(x).tokens, rtol=0, atol=0)


@torch.no_grad()
def test_text_tower(towers: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = towers
    encoder = TextEncoder.from_config(TextEncoderConfig(pretrained=str(folder))).eval()
    assert (encoder.config.max_length, encoder.config.embed_dim) == (16, 24)
    ids = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    expected = model.encode_text(ids, normalize=True)
    again = saved_and_loaded(encoder, "text_encoder", tmp_path / "root")
    for one in (encoder, again):
        made = one.encode(TEXTS)
        torch.testing.assert_close(made.pooled, expected)
        assert made.tokens.shape == (2, 16, 16)
        assert (made.mask == (ids != 0)).all()
    torch.testing.assert_close(again.encode(TEXTS).tokens, encoder.encode(TEXTS).tokens, rtol=0, atol=0)


def test_images_of_another_size_are_resized(towers: tuple[Path, Any]) -> None:
    config = ImageEncoderConfig(pretrained=str(towers[0]), resize=True)
    encoder = ImageEncoder.from_config(config).eval()
    x = F.interpolate(torch.rand(1, 1, 8, 8), (48, 48), mode="bicubic").clamp(0, 1) * 2 - 1
    assert encoder.encode(x).pooled.shape == (1, 24)


def broken(towers: tuple[Path, Any], folder: Path) -> Path:
    folder.mkdir()
    for file in towers[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("kind", [ImageEncoder, TextEncoder])
def test_pickled_towers_are_refused(towers: tuple[Path, Any], kind: Any, tmp_path: Path) -> None:
    folder = broken(towers, tmp_path / "pickled")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(towers[1].state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {ImageEncoder: ImageEncoderConfig, TextEncoder: TextEncoderConfig}[kind](pretrained=str(folder))
    with pytest.raises(CheckpointError, match=r"open_clip_model\.safetensors is missing"):
        kind.from_config(config)


def test_towers_that_do_not_fit_their_configuration(towers: tuple[Path, Any], tmp_path: Path) -> None:
    folder = broken(towers, tmp_path / "unfit")
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"]["vision_cfg"]["width"] = 48
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="size mismatch") as caught:
        ImageEncoder.from_config(ImageEncoderConfig(pretrained=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", '{"model_cfg": {}}', '{"model_cfg": null}'])
def test_towers_without_a_proper_configuration(towers: tuple[Path, Any], content: str, tmp_path: Path) -> None:
    folder = broken(towers, tmp_path / "odd")
    (folder / "open_clip_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="open_clip configuration"):
        TextEncoder.from_config(TextEncoderConfig(pretrained=str(folder)))


def test_towers_that_are_nowhere() -> None:
    with pytest.raises(CheckpointError, match="no such directory") as caught:
        ImageEncoder.from_config(ImageEncoderConfig(pretrained="nobody/has-this"))
    assert "\n" not in str(caught.value)
