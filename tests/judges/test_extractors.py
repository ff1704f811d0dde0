"""Every loader on a small or random network in the real files' format."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from xgem.data.sets import EvalSet, Item
from xgem.judges.extractors import NAMES, Extractor, Images, open_extractor
from xgem.types import InputError, NotComputed, ShapeError


@pytest.fixture
def images() -> Images:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 12, 10), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def checked(extractor: Extractor, images: Images, dim: int) -> np.ndarray:
    """What holds for every space: shape, type, and an image's features do not depend on its batch."""
    found = extractor(images)
    assert found.shape == (len(images), dim)
    assert found.dtype == np.float32
    assert extractor.dim == dim
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 0
    alone = np.concatenate([extractor(one[None]) for one in images])
    np.testing.assert_allclose(found, alone, rtol=2e-3, atol=1e-3 * np.abs(found).max())
    assert len(extractor.weights) == 16
    assert extractor.preprocessing
    return found


def varied(network: Any) -> Any:
    """Random norms too, so that nothing is hidden by statistics of 0 and 1."""
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return network.eval()


def preprocessing(folder: Path, kind: str, side: int, crop: int, mean: float, std: float) -> None:
    described = {
        "image_processor_type": kind,
        "crop_size": {"height": crop, "width": crop},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [mean] * 3,
        "image_std": [std] * 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(described))


@pytest.fixture
def rad_dino(tmp_path: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(tmp_path / "rad")
    preprocessing(tmp_path / "rad", "BitImageProcessor", 42, 42, 0.5307, 0.2583)
    return tmp_path / "rad"


def test_rad_dino(rad_dino: Path, images: Images) -> None:
    from transformers import AutoModel

    extractor = open_extractor(f"rad-dino={rad_dino}")
    found = checked(extractor, images, 24)
    assert extractor.size == 42
    # The same by hand: shorter side to 42 (bicubic), central 42, normalised
    expected = []
    for one in images:
        small = Image.fromarray(one).resize((42, 50), Image.Resampling.BICUBIC)
        x = (np.asarray(small, dtype=np.float32)[4:46] / 255 - 0.5307) / 0.2583
        expected.append(np.stack([x] * 3))
    with torch.no_grad():
        model = AutoModel.from_pretrained(rad_dino).eval()
        pooled = model(pixel_values=torch.tensor(np.stack(expected))).pooler_output.numpy()
    np.testing.assert_allclose(found, pooled, atol=0.05)
    assert "shortest_edge" in extractor.preprocessing


def test_clip(tmp_path: Path, images: Images) -> None:
    from transformers import CLIPConfig, CLIPModel

    # The published file holds both towers; only the one of images is read
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 30,
        "intermediate_size": 16,
    }
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    vision |= {"projection_dim": 12}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    whole.save_pretrained(tmp_path)
    preprocessing(tmp_path, "CLIPImageProcessor", 28, 28, 0.46, 0.27)
    extractor = open_extractor(f"clip-vit-l-14={tmp_path}")
    checked(extractor, images, 12)
    with torch.no_grad():
        torch.nn.init.zeros_(whole.visual_projection.weight)
    whole.save_pretrained(tmp_path)
    other = open_extractor(f"clip-vit-l-14={tmp_path}")
    assert not other(images).any()
    assert other.weights != extractor.weights


def test_weights_that_lack_a_part_are_refused(rad_dino: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(rad_dino / "model.safetensors")
    name = next(key for key in state if "attention" in key)
    del state[name]
    save_file(state, rad_dino / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotComputed, match="lacks 1 of the network's weights"):
        open_extractor(f"rad-dino={rad_dino}")


def test_a_network_of_another_kind_is_not_called_rad_dino(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    ).save_pretrained(tmp_path)
    preprocessing(tmp_path, "BitImageProcessor", 32, 32, 0.5, 0.5)
    with pytest.raises(NotComputed, match="expected dinov2"):
        open_extractor(f"rad-dino={tmp_path}")


# TorchXRayVision


@pytest.fixture(scope="module")
def densenet() -> Any:
    with warnings.catch_warnings():
        models = pytest.importorskip("torchxrayvision.models")
    torch.manual_seed(0)
    return varied(models.DenseNet(num_classes=18))


@pytest.mark.parametrize("form", ["module", "state", "safetensors", "cache folder"])
def test_xrv_densenet_in_all_its_forms(densenet: Any, form: str, tmp_path: Path, images: Images) -> None:
    file = tmp_path / "weights.pt"
    if form == "safetensors":
        from safetensors.torch import save_file

        file = file.with_suffix(".safetensors")
        save_file({key: value.contiguous() for key, value in densenet.state_dict().items()}, file)
    elif form == "state":
        torch.save(densenet.state_dict(), file)
    elif form == "cache folder":
        name = "mimic_ch-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
        (tmp_path / "models_data").mkdir()
        torch.save(densenet, tmp_path / "models_data" / name)
        file = tmp_path
    else:
        torch.save(densenet, file)
    extractor = open_extractor(f"xrv-densenet-mimic={file}")
    found = extractor(images[:1])
    square = torch.from_numpy(images[:1, 8:88].astype(np.float32))[:, None]
    scaled = nn.functional.interpolate(square, size=(224, 224), mode="bilinear", antialias=True) / 255 * 2048 - 1024
    with torch.no_grad():
        expected = densenet.features2(scaled).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_xrv_densenet_as_every_space(densenet: Any, tmp_path: Path, images: Images) -> None:
    torch.save(densenet.state_dict(), tmp_path / "weights.pt")
    extractor = open_extractor(f"xrv-densenet-all={tmp_path / 'weights.pt'}")
    checked(extractor, images, 1024)
    assert extractor.name == "xrv-densenet-all"


def test_a_module_in_the_old_format_is_refused_with_a_way_out(densenet: Any, tmp_path: Path) -> None:
    torch.save(densenet, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(NotComputed, match=r'weights="densenet121-res224-all"\)\.state_dict\(\)'):
        open_extractor(f"xrv-densenet-all={tmp_path / 'old.pt'}")


class _Payload:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return (open, (str(self.place), "w"))


def test_a_weights_file_runs_no_code(tmp_path: Path) -> None:
    torch.save({"weight": _Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    for space in ("xrv-densenet-all", "inception-v3"):
        with pytest.raises(NotComputed, match="without running the file's code"):
            open_extractor(f"{space}={tmp_path / 'evil.pt'}")
    assert not (tmp_path / "ran").exists()


# Inception


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Unloaded(module.FeatureExtractorInceptionV3):
        """The package's network with the random weights that it has before it loads any."""

        def load_state_dict(self, *_: Any, **__: Any) -> Any:
            return None

    folder = tmp_path_factory.mktemp("inception")
    torch.manual_seed(0)
    torch.save({}, folder / "nothing.pth")
    network = varied(Unloaded("random", ["2048"], feature_extractor_weights_path=str(folder / "nothing.pth")))
    torch.save(network.state_dict(), folder / "weights-inception-2015-12-05-6726825d.pth")
    return folder / "weights-inception-2015-12-05-6726825d.pth"


def test_inception_is_that_of_torch_fidelity(inception_file: Path, images: Images) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = open_extractor(f"inception-v3={inception_file.parent}")
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(inception_file))
    expected = theirs(torch.from_numpy(images[:2])[:, None].repeat(1, 3, 1, 1))[0]
    np.testing.assert_allclose(extractor(images[:2]), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert (extractor.dim, extractor.size) == (2048, 299)


def test_torchvisions_inception_is_refused(tmp_path: Path) -> None:
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, aux_logits=False, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "imagenet.pth")
    with pytest.raises(NotComputed, match="does not hold the FID's Inception"):
        open_extractor(f"inception-v3={tmp_path / 'imagenet.pth'}")


# BioViL-T


@pytest.fixture
def biovil(tmp_path: Path) -> Path:
    from xgem.judges.extractors.biovil import IMAGE_FILE, ImageTower, TextTower

    torch.manual_seed(0)
    config = {
        "model_type": "cxr-bert", "vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 9, "projection_size": 128,
    }  # fmt: skip
    image = varied(ImageTower())
    nn.init.normal_(image.encoder.missing_previous_emb)
    # The published file holds more than a single image passes through
    more = {
        "encoder.vit_pooler.type_embed": torch.zeros(2, 1, 256),
        "encoder.encoder.fc.weight": torch.zeros(1000, 2048),
    }
    torch.save(image.state_dict() | more, tmp_path / IMAGE_FILE)
    torch.save(
        TextTower(config).state_dict() | {"cls.predictions.bias": torch.zeros(12)}, tmp_path / "pytorch_model.bin"
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "large", "effusion", "no", "heart", "is", "normal", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return tmp_path


def test_biovil_t_has_images_and_texts(biovil: Path, images: Images) -> None:
    extractor = open_extractor(f"biovil-t={biovil}")
    found = extractor(images[:2])
    texts = extractor.texts(["Large effusion.", "no effusion", "heart is normal heart is normal heart is normal"])
    assert found.shape == (2, 128)
    assert texts.shape == (3, 128)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([found, texts]), axis=1), 1, rtol=1e-5)
    # Case and marks at the end do not count; another batch does not either, though it pads
    np.testing.assert_allclose(extractor.texts(["large effusion"]), texts[:1], atol=1e-6)
    # The image's range is stretched first
    dim = (images[:1] // 2 + 40).astype(np.uint8)
    np.testing.assert_allclose(extractor(dim), found[:1], atol=0.02)


def test_biovil_t_sees_the_central_square_of_448() -> None:
    from xgem.judges.extractors.biovil import prepare

    image = torch.zeros(1, 1024, 1100, dtype=torch.uint8)
    image[:, :, 620:] = 200
    seen = prepare(image)
    assert seen.shape == (1, 3, 448, 448)
    # 1100 columns become 550, of which 51 on each side are cut
    edge = int((seen[0, 0, 0] > 0.5).float().argmax())
    assert abs(edge - (620 / 2 - 51)) <= 1
    assert (float(seen.min()), float(seen.max())) == (0, 1)


@pytest.mark.parametrize("file", ["vocab.txt", "pytorch_model.bin"])
def test_biovil_t_names_the_file_that_is_missing(biovil: Path, file: str) -> None:
    (biovil / file).unlink()
    with pytest.raises(NotComputed, match=file.replace(".", r"\.")):
        open_extractor(f"biovil-t={biovil}")


# xgem's own


def test_prompt_encoder_of_a_checkpoint(debug_checkpoint: Path, images: Images) -> None:
    extractor = open_extractor(f"xgem:{debug_checkpoint}/frontal")
    checked(extractor, images, extractor.dim)
    assert extractor.texts(["Clear lungs.", "Large effusion."]).shape == (2, extractor.dim)
    assert extractor.weights != open_extractor(f"xgem:{debug_checkpoint}/lateral").name
    with pytest.raises(InputError, match="image modalities frontal, lateral"):
        open_extractor(f"xgem:{debug_checkpoint}/report")
    with pytest.raises(InputError, match="expected xgem:MODEL/MODALITY"):
        open_extractor("xgem:frontal")


def labelled(folder: Path, n: int) -> EvalSet:
    rng = np.random.default_rng(1)
    items = []
    for i in range(n):
        pixels = rng.integers(0, 100, (40, 40), dtype=np.uint8) + np.uint8(100 * (i % 2))
        pixels[:20] //= 1 + i % 2
        Image.fromarray(pixels).save(folder / f"{i}.png")
        items.append(Item(str(i), folder / f"{i}.png", labels={"Edema": float(i % 2), "Fracture": -1.0}))
    return EvalSet("training", tuple(items))


def test_the_judge_is_trained_on_the_training_set(tmp_path: Path, images: Images) -> None:
    from xgem.judges.classifier import ClassifierConfig
    from xgem.judges.extractors.own import judge_space
    from xgem.judges.judge import train_judge

    training, config = labelled(tmp_path, 16), ClassifierConfig(size=32, width=4, epochs=1, batch_size=8)
    judge = train_judge(training, config=config)
    extractor = judge_space(judge)
    checked(extractor, images, 32)
    assert extractor.weights == judge.weights
    with pytest.raises(NotComputed, match="real training images"):
        open_extractor("xgem-classifier=train")
    unlabelled = EvalSet("no labels", tuple(Item(item.id, item.file) for item in training.items))
    with pytest.raises(NotComputed, match="no CheXpert class with positives"):
        open_extractor("xgem-classifier=train", training=unlabelled)


def test_the_judges_that_ship_are_of_their_view(images: Images) -> None:
    weights = {view: open_extractor("xgem-classifier", view=view) for view in ("frontal", "lateral")}
    for extractor in weights.values():
        checked(extractor, images, 192)
    assert weights["frontal"].weights != weights["lateral"].weights
    with pytest.raises(NotComputed, match="real training images"):
        open_extractor("xgem-classifier", view="oblique")


# What is not there


@pytest.mark.parametrize("name", ["inception-v3", "rad-dino", "clip-vit-l-14", "xrv-densenet-all", "biovil-t"])
def test_missing_weights_are_said_to_be_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(NotComputed, match=f"{name}[=: ]"):
        open_extractor(name)
    with pytest.raises(NotComputed, match=str(tmp_path)):
        open_extractor(f"{name}={tmp_path}")


def test_unknown_names_and_wrong_images() -> None:
    with pytest.raises(InputError, match="inception-v3, rad-dino"):
        open_extractor("vgg")
    one = Extractor("mean", "w", 1, 8, "none", lambda x: x.mean(axis=(1, 2))[:, None])
    with pytest.raises(ShapeError, match=r"expected \(b, h, w\)"):
        one(cast(Images, np.zeros((2, 8, 8), dtype=np.float32)))
    with pytest.raises(InputError, match="images only"):
        one.texts(["Clear."])
    assert "biovil-t" in NAMES


def test_nothing_heavy_is_imported_with_the_names() -> None:
    code = "import sys, xgem.judges.extractors; print(any(one in sys.modules for one in ('torch', 'transformers')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
