"""BioViL-T's joint space of images and texts (Bannur et al. 2023), without running the code on its hub page.

Of the image tower only the path of a single image is built: ResNet-50, a projection to 256 channels, concatenated with
the learned embedding of a missing prior image, and the projector of patches, whose mean is the image's vector. The text
tower is BERT with a projection of its first token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xgem.judges.extractors import Extractor, Images
from xgem.judges.extractors.convolutional import read_state
from xgem.judges.extractors.hub import folder_of
from xgem.types import NotComputed
from xgem.utils.hashing import module_hash

IMAGE_FILE: Final = "biovil_t_image_model_proj_size_128.pt"
_TEXT_FILES: Final = ("model.safetensors", "pytorch_model.bin")
_DEFAULT: Final = "microsoft/BiomedVLP-BioViL-T"
_UNUSED: Final = (
    "encoder.vit_pooler.",
    "encoder.encoder.fc.",
    "classifier.",
    "cls.",
    "bert.pooler.",
    "bert.embeddings.position_ids",
)


def biovil_t(source: str | None, device: str) -> Extractor:
    """The 128-d projections of both towers, as used for CheXGenBench's alignment.

    An image's range is stretched to 0..255 (as by the authors' reader), its shorter side resized to 512 (bilinear,
    antialiased), and the central 448 x 448 cropped. Punctuation at the end of a text is dropped, and texts are
    truncated to the tower's maximum length.

    Args:
        source: a folder with ``biovil_t_image_model_proj_size_128.pt``, ``config.json``, ``vocab.txt`` and
            ``model.safetensors`` or ``pytorch_model.bin``, all of microsoft/BiomedVLP-BioViL-T; or that hub id.
    """
    # Both towers from local files
    folder = folder_of("biovil-t", source, _DEFAULT, (IMAGE_FILE, "*.json", "vocab.txt", *_TEXT_FILES))
    text_file = next((folder / name for name in _TEXT_FILES if (folder / name).is_file()), None)
    absent = [name for name in (IMAGE_FILE, "config.json", "vocab.txt") if not (folder / name).is_file()]
    if absent or text_file is None:
        raise NotComputed(f"biovil-t: {folder} lacks {', '.join(absent) or ' and '.join(_TEXT_FILES)}; see {_DEFAULT}")
    image_tower = _loaded(ImageTower(), read_state(folder / IMAGE_FILE), folder / IMAGE_FILE)
    text_tower = _loaded(TextTower(_config(folder)), read_state(text_file), text_file)
    towers: Any = nn.ModuleList([image_tower, text_tower]).to(device).eval()
    tokenizer = _tokenizer(folder)

    @torch.inference_mode()
    def encode(images: Images) -> NDArray[Any]:
        return towers[0](prepare(torch.from_numpy(np.array(images)).to(device))).cpu().numpy()

    @torch.inference_mode()
    def encode_texts(texts: Sequence[str]) -> NDArray[Any]:
        tokens = tokenizer(
            [text.rstrip("!?.") for text in texts],
            padding=True,
            truncation=True,
            max_length=text_tower.length,
            return_tensors="pt",
        )
        return towers[1](tokens["input_ids"].to(device), tokens["attention_mask"].to(device)).cpu().numpy()

    steps = "range to 0..255, shorter side bilinear to 512, central 448"
    dim = image_tower.projector.model[-1].out_channels
    return Extractor("biovil-t", module_hash(towers)[:16], int(dim), 448, steps, encode, encode_texts)


def prepare(images: Tensor) -> Tensor:
    """(b, h, w) uint8 -> (b, 3, 448, 448) in [0, 1]."""
    from torchvision.transforms.v2 import functional as transforms

    x = images.float().unsqueeze(1)  # (b, 1, h, w)
    x = x - x.amin(dim=(2, 3), keepdim=True)
    x = torch.floor(x / x.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6) * 255)
    x = transforms.resize(x, [512], antialias=True).round()
    return transforms.center_crop(x, [448, 448]).expand(-1, 3, -1, -1) / 255


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        network: Any = resnet50(weights=None)
        del network.fc
        self.encoder = network
        self.backbone_to_vit = nn.Conv2d(2048, 256, 1, bias=False)
        self.missing_previous_emb = nn.Parameter(torch.zeros(1, 256, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, 512, h / 32, w / 32)."""
        net = self.encoder
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        x = self.backbone_to_vit(net.layer4(net.layer3(net.layer2(net.layer1(x)))))
        return torch.cat([x, self.missing_previous_emb.expand_as(x)], dim=1)


class _Projector(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(512, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1)
        )


class ImageTower(nn.Module):
    """(b, 3, h, w) in [0, 1] -> (b, 128), of length 1; modules are named as in the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Encoder()
        self.projector = _Projector(128)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.projector.model(self.encoder(x))  # (b, 128, h / 32, w / 32)
        return F.normalize(patches.mean(dim=(2, 3)), dim=1)


class _Head(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.dense_to_hidden = nn.Linear(hidden, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.dense_to_output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_to_output(self.LayerNorm(F.gelu(self.dense_to_hidden(x))))


class TextTower(nn.Module):
    """(b, n) token ids and their mask -> (b, 128), of length 1; modules are named as in the published file."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        settings = {key: value for key, value in config.items() if key not in {"model_type", "auto_map"}}
        bert_config = BertConfig(**settings)
        self.length = bert_config.max_position_embeddings
        self.bert = BertModel(bert_config, add_pooling_layer=False)
        self.cls_projection_head = _Head(bert_config.hidden_size, int(config.get("projection_size", 128)))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        cls_token = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]  # (b, n, d) -> (b, d)
        return F.normalize(self.cls_projection_head(cls_token), dim=1)


def _loaded(tower: Any, state: dict[str, Tensor], file: Path) -> Any:
    """The tower with the weights that it uses, in evaluation mode."""
    used = {key: value for key, value in state.items() if not key.startswith(_UNUSED)}
    try:
        tower.load_state_dict(used)
    except RuntimeError as error:
        raise NotComputed(f"biovil-t: {file} does not fit ({' '.join(str(error).split())[:200]})") from error
    return tower.eval()


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotComputed(f"biovil-t: {folder / 'config.json'} is not JSON ({error})") from error


def _tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(folder, local_files_only=True)
