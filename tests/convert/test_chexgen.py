"""ChexGen's published layout at a tiny size: the same function after conversion, and no file that is half right."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from xgem import generate
from xgem.checkpoints.store import load_component, read_index, verify, verify_component
from xgem.configs.preset import load_preset
from xgem.convert.chexgen import convert_chexgen, dit_weights
from xgem.convert.published import named
from xgem.encoders.tokenizer import train_tokenizer
from xgem.types import CheckpointError, ConfigError, Encoded, OutputError, XgemError

WIDTH, DEPTH, HEADS, SIDE, CAPTION, CAPTION_WIDTH = 16, 3, 2, 4, 6, 10


def published_weights(seed: int = 0, width: int = WIDTH) -> dict[str, Tensor]:
    """Random weights by ChexGen's names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (width, 4, 2, 2), "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256), "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width), "t_embedder.mlp.2.bias": (width,),
        "t_block.1.weight": (6 * width, width), "t_block.1.bias": (6 * width,),
        "y_embedder.y_embedding": (CAPTION, CAPTION_WIDTH),
        "y_embedder.y_proj.fc1.weight": (width, CAPTION_WIDTH), "y_embedder.y_proj.fc1.bias": (width,),
        "y_embedder.y_proj.fc2.weight": (width, width), "y_embedder.y_proj.fc2.bias": (width,),
        "final_layer.shift_scale_table": (2, width),
        "final_layer.linear.weight": (4 * 8, width), "final_layer.linear.bias": (4 * 8,),
    }  # fmt: skip
    for i in range(DEPTH):
        shapes |= {f"blocks.{i}.shift_scale_gate_table": (6, width)}
        for layer, rows, columns in (
            ("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("cross_attn.q_linear", 1, 1), ("cross_attn.kv_linear", 2, 1),
            ("cross_attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4),
        ):  # fmt: skip
            shapes |= {f"blocks.{i}.{layer}.weight": (rows * width, columns * width)}
            shapes |= {f"blocks.{i}.{layer}.bias": (rows * width,)}
    draw = torch.Generator().manual_seed(seed)
    weights = {key: torch.randn(shape, generator=draw) / max(shape[-1], 4) ** 0.5 for key, shape in shapes.items()}
    return weights | {"pos_embed": positions(width)[None]}


def positions(width: int, scale: float = 2.0) -> Tensor:
    """(n, width): sines and cosines of the column in the first half, of the row in the second."""
    side, quarter = SIDE // 2, width // 4
    rates = 10000.0 ** -(torch.arange(quarter) / quarter)
    row, column = (index.flatten() / scale for index in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    angles = [coordinate[:, None] * rates for coordinate in (column, row)]
    return torch.cat([torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles], dim=1)


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One sample's softmax attention, (n, width) each."""
    q, k, v = (x.view(len(x), HEADS, -1).transpose(0, 1) for x in (query, key, value))
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return (weights @ v).transpose(0, 1).flatten(1)


def reference(w: dict[str, Tensor], z: Tensor, t: Tensor, caption: Tensor, annotation: Tensor | None = None) -> Tensor:
    """The published network for one latent (4, s, s), time () and caption (n, c): adaLN-single blocks (PixArt 2.3).

    With an ``annotation`` (4, s, s) its copied blocks read that, the first one beside what block 0 made, and what they
    make enters blocks 1, 2, ... (ChexGen, methods; PixArt-delta, the transformer's ControlNet).
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def embedded(latents: Tensor) -> Tensor:
        weight, bias = w["x_embedder.proj.weight"], w["x_embedder.proj.bias"]
        return F.conv2d(latents[None], weight, bias, stride=2)[0].flatten(1).T + w["pos_embed"][0]

    def through(block: str, x: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = w[f"{block}.shift_scale_gate_table"] + modulation
        own = attended(*linear(f"{block}.attn.qkv", norm(x, shift_a, scale_a)).chunk(3, dim=1))
        x = x + gate_a * linear(f"{block}.attn.proj", own)
        text = linear(f"{block}.cross_attn.kv_linear", y).chunk(2, dim=1)
        x = x + linear(f"{block}.cross_attn.proj", attended(linear(f"{block}.cross_attn.q_linear", x), *text))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(x, shift_m, scale_m)), approximate="tanh")
        return x + gate_m * linear(f"{block}.mlp.fc2", hidden)

    angles = t * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()]))))
    modulation = linear("t_block.1", F.silu(time)).view(6, -1)
    y = linear("y_embedder.y_proj.fc2", F.gelu(linear("y_embedder.y_proj.fc1", caption), approximate="tanh"))
    x = through("blocks.0", embedded(z))
    c = None if annotation is None else x + linear("controlnet.0.before_proj", embedded(annotation))
    for i in range(1, DEPTH):
        if c is not None:
            c = through(f"controlnet.{i - 1}.copied_block", c)
            x = x + linear(f"controlnet.{i - 1}.after_proj", c)
        x = through(f"blocks.{i}", x)
    shift, scale = w["final_layer.shift_scale_table"] + time
    patches = linear("final_layer.linear", norm(x, shift, scale))
    side = SIDE // 2
    return patches.view(side, side, 2, 2, 8).permute(4, 0, 2, 1, 3).reshape(8, SIDE, SIDE)  # c (h p) (w q)


@pytest.fixture
def preset(tmp_path: Path) -> str:
    """A preset file of the tiny sizes."""
    values = load_preset("chexgen-small").model_dump(mode="json")
    values["transform"]["size"] = 16
    values["components"] = {
        "t5": {"kind": "t5_encoder", "vocab_size": 40, "width": CAPTION_WIDTH, "layers": 1, "heads": 2, "d_ff": 8},
        "vae": {
            "kind": "image_vae", "image_size": 16, "patch": 1, "block_out_channels": [8, 8, 8], "latent_channels": 4,
        },
        "dit": {
            "kind": "dit_generator", "modality": "frontal", "prompts": ["report"], "latent_shape": [4, SIDE, SIDE],
            "width": WIDTH, "depth": DEPTH, "heads": HEADS, "context_dim": CAPTION_WIDTH, "caption_tokens": CAPTION,
            "position_scale": 2.0,
        },
    }  # fmt: skip
    values["modalities"] = {"frontal": {"codec": "vae", "generator": "dit"}, "report": {"encoder": "t5"}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def written(folder: Path, content: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
def test_it_is_the_published_function(preset: str, tmp_path: Path, prefix: str) -> None:
    weights = published_weights()
    file = written(tmp_path, {"state_dict": {f"{prefix}{key}": value for key, value in weights.items()}, "epoch": 3})
    converted = convert_chexgen(file, tmp_path / "out", preset=preset)
    assert (converted.components, converted.unused) == (("dit",), ())
    verify_component(tmp_path / "out", "dit")
    model: Any = load_component(tmp_path / "out", "dit")
    draw = torch.Generator().manual_seed(1)
    z, tokens = torch.randn(2, 4, SIDE, SIDE, generator=draw), torch.randn(2, 5, CAPTION_WIDTH, generator=draw)
    lengths, t = [5, 3], torch.tensor([7, 900])
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    context = model.fuse({"report": Encoded(torch.zeros(2, 8), tokens, mask)})
    made = model.net.predict(z, t, context)
    unconditional = model.net.predict(z, t, model.null(2))
    for i, n in enumerate(lengths):
        torch.testing.assert_close(made[i], reference(weights, z[i], t[i], tokens[i, :n]), rtol=1e-4, atol=1e-4)
        null = reference(weights, z[i], t[i], weights["y_embedder.y_embedding"])
        torch.testing.assert_close(unconditional[i], null, rtol=1e-4, atol=1e-4)


def test_every_number_has_its_place() -> None:
    """Weights that are all different: each lands once, in one order, under one name."""
    weights = {key: value for key, value in published_weights().items() if key != "pos_embed"}
    start, counted = 0, {}
    for key, value in weights.items():
        counted[key] = torch.arange(start, start + value.numel()).float().view_as(value)
        start += value.numel()
    ours, source = dit_weights(counted)
    assert set(source.values()) == set(weights)
    assert torch.equal(
        torch.cat([value.flatten() for value in ours.values()]).sort().values, torch.arange(start).float()
    )
    for i in range(DEPTH):
        for joint, parts in (
            ("attn.qkv", "attn1.to_q attn1.to_k attn1.to_v"),
            ("cross_attn.kv_linear", "attn2.to_k attn2.to_v"),
        ):
            names = [f"net.pixart.transformer_blocks.{i}.{part}.weight" for part in parts.split()]
            assert torch.equal(torch.cat([ours[name] for name in names]), counted[f"blocks.{i}.{joint}.weight"])


def test_pixarts_own_names_are_the_same() -> None:
    theirs = {"blocks.0.scale_shift_table": torch.zeros(6, 2), "final_layer.scale_shift_table": torch.zeros(2, 2)}
    ours, _ = dit_weights(theirs)
    assert set(ours) == {"net.pixart.transformer_blocks.0.scale_shift_table", "net.pixart.scale_shift_table"}


def test_averaged_weights_are_taken_unless_told_otherwise(preset: str, tmp_path: Path) -> None:
    raw, averaged = published_weights(0), published_weights(5)
    file = written(tmp_path, {"state_dict": raw, "state_dict_ema": averaged})
    for ema, weights in ((True, averaged), (False, raw)):
        convert_chexgen(file, tmp_path / f"out-{ema}", preset=preset, ema=ema)
        model: Any = load_component(tmp_path / f"out-{ema}", "dit")
        assert torch.equal(model.fusion.null_caption, weights["y_embedder.y_embedding"])


def control_published() -> dict[str, Tensor]:
    """Random weights of a ControlNet of two blocks."""
    copied = {
        key.replace("blocks.", "controlnet.").replace(f".{i}.", f".{i}.copied_block.", 1): value
        for i in range(2)
        for key, value in published_weights(9).items()
        if key.startswith(f"blocks.{i}.")
    }
    draw = torch.Generator().manual_seed(4)
    for name in ("0.before_proj", "0.after_proj", "1.after_proj"):
        copied[f"controlnet.{name}.weight"] = torch.randn(WIDTH, WIDTH, generator=draw) / WIDTH**0.5
        copied[f"controlnet.{name}.bias"] = torch.randn(WIDTH, generator=draw)
    return copied


def with_control(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the annotation-guided checkpoints."""
    return {f"base_model.{key}": value for key, value in weights.items()} | control_published()


@torch.no_grad()
def test_a_controlnet_is_the_published_function(preset: str, tmp_path: Path) -> None:
    values = yaml.safe_load(Path(preset).read_text(encoding="utf-8"))
    values["components"]["control"] = {
        "kind": "controlnet", "annotations": ["mask"], "blocks": 2, "latent_shape": [4, SIDE, SIDE], "width": WIDTH,
        "heads": HEADS, "position_scale": 2.0,
    }  # fmt: skip
    values["modalities"] |= {"frontal": {"codec": "vae", "generator": "dit", "control": "control"}, "mask": {}}
    Path(preset).write_text(yaml.safe_dump(values), encoding="utf-8")
    weights = published_weights()
    converted = convert_chexgen(written(tmp_path, with_control(weights)), tmp_path / "out", preset=preset)
    assert (converted.components, converted.unused) == (("dit", "control"), ())
    model: Any = load_component(tmp_path / "out", "dit")
    control: Any = load_component(tmp_path / "out", "control")
    draw = torch.Generator().manual_seed(1)
    z, annotation = torch.randn(2, 2, 4, SIDE, SIDE, generator=draw)
    tokens, t = torch.randn(2, 5, CAPTION_WIDTH, generator=draw), torch.tensor([7, 900])
    context = model.fuse({"report": Encoded(torch.zeros(2, 8), tokens, torch.ones(2, 5, dtype=torch.bool))})
    with control.steering(model.net, annotation):
        made = model.net.predict(z, t, context)
    for i in range(2):
        expected = reference(weights | control_published(), z[i], t[i], tokens[i], annotation[i])
        torch.testing.assert_close(made[i], expected, rtol=1e-4, atol=1e-4)


def test_a_controlnet_that_the_preset_lacks_is_left_over(preset: str, tmp_path: Path, xgem: Any) -> None:
    weights = published_weights()
    file, out = written(tmp_path, with_control(weights)), tmp_path / "out"
    ran = xgem("convert", "chexgen", file, out, "--preset", preset)
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    for name in ("controlnet.{0-1}.after_proj.weight", "controlnet.0.before_proj.weight", "--allow-unused"):
        assert name in ran.err
    assert not out.exists()
    ran = xgem("convert", "chexgen", file, out, "--preset", preset, "--allow-unused")
    assert ran.code == 0
    assert "controlnet.{0-1}.copied_block.attn.proj.bias" in ran.err
    model: Any = load_component(out, "dit")
    assert torch.equal(model.fusion.null_caption, weights["y_embedder.y_embedding"])


MISFITS: dict[str, tuple[Any, str]] = {
    "missing": (
        {"blocks.1.mlp.fc1.bias": None},
        r"missing net\.pixart\.transformer_blocks\.1\.ff\.net\.0\.proj\.bias",
    ),
    "shape": ({"t_block.1.bias": torch.zeros(6)}, r"t_block\.1\.bias \(6,\), expected \(96,\)"),
    "deeper": ({"blocks.3.mlp.fc1.bias": torch.zeros(64)}, r"unexpected blocks\.3\.mlp\.fc1\.bias"),
    "unknown": ({"head.weight": torch.zeros(2)}, r"weights without a counterpart \(1\): head\.weight"),
    "positions": ({"pos_embed": positions(WIDTH, 1.0)[None]}, r"pos_embed \(1, 4, 16\) is not that of"),
    "no tensor": ({"blocks": 3}, r"'blocks' is a int, expected a tensor"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_one_weight_that_does_not_fit(preset: str, tmp_path: Path, case: str) -> None:
    changes, said = MISFITS[case]
    content = {key: value for key, value in (published_weights() | changes).items() if value is not None}
    refused(content, said, preset, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (published_weights(width=24), "shape mismatch"),
        ([1, 2], "holds a list, expected a state dict"),
        ({}, "missing"),
    ],
)
def test_other_contents(preset: str, tmp_path: Path, content: Any, said: str) -> None:
    refused(content, said, preset, tmp_path)


def refused(content: Any, said: str, preset: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        convert_chexgen(written(tmp_path, content), tmp_path / "out", preset=preset)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml", "weights.pth"]


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path("trapped").touch, ())


def test_files_that_would_run_code_are_refused(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trapped = written(tmp_path, {"state_dict": published_weights(), "hook": Trap()})
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": 1}))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for name in ("trapped", "plain", "empty", "junk", "gone"):
        path = trapped if name == "trapped" else tmp_path / f"{name}.pth"
        with pytest.raises(CheckpointError, match=r"more than plain data|no such file|'state_dict' is a int") as raised:
            convert_chexgen(path, tmp_path / "out", preset=preset)
        assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "trapped").exists()


def test_a_truncated_file_is_refused_and_leaves_nothing(preset: str, tmp_path: Path) -> None:
    data = written(tmp_path, published_weights()).read_bytes()
    for length in np.random.default_rng(0).integers(1, len(data), 30):
        (tmp_path / "cut.pth").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"\A.*cut\.pth.*\Z"):  # in one line
            convert_chexgen(tmp_path / "cut.pth", tmp_path / "out", preset=preset)
        assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_refused_or_gives_a_whole_checkpoint(preset: str, tmp_path: Path) -> None:
    data = written(tmp_path, published_weights()).read_bytes()
    random = np.random.default_rng(0)
    messages = []
    for number in range(30):
        damaged = bytearray(data)
        for place in random.integers(0, 2000, 8):
            damaged[place] = random.integers(256)
        (tmp_path / "damaged.pth").write_bytes(damaged)
        try:
            convert_chexgen(tmp_path / "damaged.pth", tmp_path / f"out{number}", preset=preset)
        except XgemError as error:
            messages.append(str(error))
        else:  # only values of weights have changed
            verify_component(tmp_path / f"out{number}", "dit")
    assert all("damaged.pth" in message for message in messages)
    assert 10 < len(messages) == 30 - len(list(tmp_path.glob("out*")))


def test_the_preset_follows_from_the_positions(tmp_path: Path) -> None:
    file = written(tmp_path, published_weights())
    with pytest.raises(CheckpointError, match=r"has 4 positions, expected 256 \(chexgen-xl2-256\).*--preset"):
        convert_chexgen(file, tmp_path / "out")
    with pytest.raises(ConfigError, match="expected a dit_generator"):
        convert_chexgen(file, tmp_path / "out", preset="debug")


def test_a_pretrained_codec_and_encoder_make_it_whole(preset: str, tmp_path: Path) -> None:
    vae: Any = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8), norm_num_groups=4,  # type: ignore[arg-type]
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,  # type: ignore[arg-type]
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    sizes: dict[str, Any] = {"d_model": CAPTION_WIDTH, "d_kv": 5, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=300, **sizes)).save_pretrained(tmp_path / "t5")
    train_tokenizer(["no acute disease"], 300).save_pretrained(str(tmp_path / "t5"))
    values = yaml.safe_load(Path(preset).read_text(encoding="utf-8"))
    for part in ("vae", "t5"):
        values["components"][part]["pretrained"] = str(tmp_path / part)
    Path(preset).write_text(yaml.safe_dump(values), encoding="utf-8")
    file = written(tmp_path, published_weights())
    convert_chexgen(file, tmp_path / "bare", preset=preset, pretrained=False)
    with pytest.raises(CheckpointError, match="components t5, vae are missing"):
        verify(tmp_path / "bare")
    assert set(convert_chexgen(file, tmp_path / "out", preset=preset).components) == {"dit", "vae", "t5"}
    verify(tmp_path / "out")
    made = generate({"report": "Clear lungs."}, "frontal", model=tmp_path / "out", num_inference_steps=2, seed=0)
    assert made.frontal[0].size == (16, 16)


def test_a_failure_on_the_way_leaves_nothing(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, published_weights())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("xgem.checkpoints.store.write_weights", full)
        with pytest.raises(OutputError, match="No space left"):
            convert_chexgen(file, tmp_path / "out", preset=preset)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml", "weights.pth"]
    convert_chexgen(file, tmp_path / "out", preset=preset)
    with pytest.raises(OutputError, match="is not an empty folder"):
        convert_chexgen(file, tmp_path / "out", preset=preset)
    assert read_index(tmp_path / "out").preset["name"] == "chexgen-small"


def test_keys_are_named_in_short() -> None:
    keys = [*(f"blocks.{i}.w" for i in (0, 1, 2, 5, 11)), "blocks.7.b", "a.1.c.2", "pos_embed"]
    assert named(keys) == "a.1.c.2, blocks.{0-2,5,11}.w, blocks.7.b, pos_embed"
