"""Both prompt encoders: shapes, unit vectors, padding that nothing sees, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from xgem.configs.components import ImageEncoderConfig
from xgem.encoders.image import ImageEncoder
from xgem.types import ConfigError, InputError, ShapeError

SHORT, LONG = "Clear lungs.", "Large left pleural effusion. Cardiomegaly. Clear right lung."


def images(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_image_encoder_shapes(debug_parts: dict[str, Any]) -> None:
    encoded = debug_parts["image_encoder"].encode(images(3))
    assert encoded.pooled.shape == (3, 32)
    assert encoded.tokens.shape == (3, 4, 32)
    assert encoded.mask.shape == (3, 4)
    assert encoded.mask.all()
    torch.testing.assert_close(encoded.pooled.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 16, 16), (1, 32, 32), (1, 1, 32, 16)])
def test_image_encoder_refuses_other_shapes(debug_parts: dict[str, Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(b, 1, 32, 32\)"):
        debug_parts["image_encoder"].encode(torch.zeros(shape))


def test_image_encoder_resizes_only_where_it_is_told_to(debug_parts: dict[str, Any]) -> None:
    own: ImageEncoder = debug_parts["image_encoder"]
    resizing = copy.deepcopy(own)
    resizing.config = own.config.model_copy(update={"resize": True})
    x = images(2, 32)
    torch.testing.assert_close(resizing.encode(x).pooled, own.encode(x).pooled, rtol=0, atol=0)
    big = F.interpolate(x, scale_factor=4, mode="nearest")
    small = F.interpolate(big, (32, 32), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    torch.testing.assert_close(resizing.encode(big).pooled, own.encode(small).pooled)
    assert resizing.encode(images(1, 17)).pooled.shape == (1, 32)
    with pytest.raises(ShapeError):
        resizing.encode(torch.zeros(1, 1, 64, 32))
    with pytest.raises(ShapeError):
        resizing.encode(torch.zeros(1, 3, 64, 64))


def test_text_encoder_shapes(debug_parts: dict[str, Any]) -> None:
    encoder = debug_parts["text_encoder"]
    encoded = encoder.encode([SHORT, LONG])
    ids = encoder.tokenize([SHORT, LONG])
    assert encoded.pooled.shape == (2, 32)
    assert encoded.tokens.shape == (*ids.shape, 32)
    assert (encoded.mask == (ids != encoder.tokenizer.pad_token_id)).all()
    torch.testing.assert_close(encoded.pooled.norm(dim=1), torch.ones(2))


def test_padding_changes_no_text(debug_parts: dict[str, Any]) -> None:
    encoder = debug_parts["text_encoder"]
    alone, batch = encoder.encode([SHORT]), encoder.encode([SHORT, LONG])
    n = alone.tokens.shape[1]
    assert n < batch.tokens.shape[1]
    assert alone.mask.all()
    assert not batch.mask[0, n:].any()
    torch.testing.assert_close(batch.pooled[:1], alone.pooled)
    torch.testing.assert_close(batch.tokens[:1, :n], alone.tokens)


def test_the_short_forward_is_open_clips(debug_parts: dict[str, Any]) -> None:
    encoder = debug_parts["text_encoder"]
    ids = encoder.tokenize([SHORT, LONG])
    full = F.pad(ids, (0, encoder.config.max_length - ids.shape[1]), value=encoder.tokenizer.pad_token_id)
    pooled, tokens = encoder.text(full)
    ours = encoder.encode_ids(ids)
    torch.testing.assert_close(ours.pooled, F.normalize(pooled, dim=-1))
    torch.testing.assert_close(ours.tokens, tokens[:, : ids.shape[1]])


def test_a_long_text_is_cut_before_its_end_token_and_says_so(debug_parts: dict[str, Any]) -> None:
    encoder = debug_parts["text_encoder"]
    text = " ".join([LONG] * 20)
    ids = encoder.tokenize([text])
    assert ids.shape == (1, encoder.config.max_length)
    assert int(ids[0, -1]) == encoder.tokenizer.eos_token_id
    assert encoder.encode([text]).mask.all()
    (note,) = encoder.notes(text)
    assert "truncated" in note
    assert encoder.notes(SHORT) == ()


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused(debug_parts: dict[str, Any], text: str) -> None:
    for name in ("text_encoder", "report_vae"):
        with pytest.raises(InputError, match="empty"):
            debug_parts[name].encode([LONG, text])


def test_a_pyramid_of_convolutions_embeds_the_same_patches() -> None:
    config = ImageEncoderConfig(image_size=64, patch_size=16, width=32, layers=1, heads=2, embed_dim=16, stem="pyramid")
    torch.manual_seed(0)
    encoder = ImageEncoder.from_config(config).eval()
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        encoded = encoder(x)
        embedded = encoder.visual.conv1(x.expand(-1, 3, -1, -1))
    assert encoded.tokens.shape == (2, 16, 32)
    assert embedded.shape == (2, 32, 4, 4)
    again = ImageEncoder.from_config(config)
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x).pooled, encoded.pooled)
    assert "stem" not in ImageEncoderConfig().model_dump()
    for wrong, why in (
        ({"patch_size": 12}, "patch_size is 12"),
        ({"pretrained": "x"}, "a pretrained tower has its own"),
    ):
        with pytest.raises(ConfigError, match=why):
            ImageEncoderConfig.parse({"stem": "pyramid", **wrong}, "preset")
