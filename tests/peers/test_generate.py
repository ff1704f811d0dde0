"""Peers generate by xgem's own call, reproducibly, and say what they cannot do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xgem
from tests.peers.tiny import MAKE
from xgem.checkpoints.locate import fetched
from xgem.peers.locate import locate_peer
from xgem.peers.pipeline import PeerPipeline
from xgem.pipeline.options import CallOptions
from xgem.pipeline.replay import replay
from xgem.types import CheckpointError, InputError, NotComputed

Pipelines = Callable[[str], Path]
TEXTS = ("Large left pleural effusion.", "Normal.")
QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False}


def opened(folder: Path) -> PeerPipeline:
    pipe = xgem.load(f"diffusers:{folder}", device="cpu")
    assert isinstance(pipe, PeerPipeline)
    return pipe


@pytest.fixture(scope="module")
def peer(pipelines: Pipelines) -> PeerPipeline:
    return opened(pipelines("stable-diffusion"))


@pytest.mark.parametrize("name", MAKE)
def test_every_family_generates_and_replays(pipelines: Pipelines, name: str, tmp_path: Path) -> None:
    pipe = opened(pipelines(name))
    inputs = [{"report": text} for text in TEXTS]
    first, second = pipe(inputs, ["frontal"], seed=[7, 7], num_samples=2, **QUICK)
    image = first.frontal[0]
    assert image.mode == "L"
    assert image.size == (pipe.preset.transform.size,) * 2
    assert np.asarray(image).std() > 1
    # The same noise, another prompt; the same prompt, other noise
    assert not np.array_equal(image, second.frontal[0])
    assert not np.array_equal(image, first.frontal[1])
    file = second.save(tmp_path / "out")[1]
    again = replay(file, model=pipe, progress=False)
    assert again.identical
    about = again.generation.metadata["peer"]
    assert about["pipeline"] == pipe.preset.name
    assert about["scheduler"]["class"] == again.generation.metadata["sampler"]


def test_a_sample_depends_on_nothing_else_in_its_batch(peer: PeerPipeline) -> None:
    alone = peer({"report": TEXTS[1]}, "frontal", seed=5, output_type="np", **QUICK).frontal[0]
    among = peer(
        [{"report": text} for text in (*TEXTS, *TEXTS)], "frontal", seed=[3, 5, 4, 6], output_type="np", **QUICK
    )
    np.testing.assert_allclose(among[1].frontal[0], alone, atol=1e-5)
    assert among[1].samples["frontal"][0]["batch"] == {"size": 4, "position": 1}


def test_rows_that_see_the_longest_prompt_are_of_one_prompt(pipelines: Pipelines) -> None:
    pipe = opened(pipelines("lumina-2"))
    made = pipe([{"report": text} for text in TEXTS], "frontal", seed=1, num_samples=3, batch_size=2, **QUICK)
    sizes = [[sample["batch"]["size"] for sample in one.samples["frontal"]] for one in made]
    assert sizes == [[2, 2, 1], [2, 2, 1]]


def test_defaults_are_the_pipelines_own_and_recorded(peer: PeerPipeline) -> None:
    request = peer.checked({"report": TEXTS[0]}, ["frontal"], CallOptions())
    assert request.steps == 50
    assert request.guidance_scale == {"frontal": 7.5}
    made = peer({}, ["frontal"], seed=1, guidance_scale=1.5, **QUICK)
    assert made.samples["frontal"][0]["guidance_scale"] == 1.5
    assert made.metadata["inputs"] == {}
    assert made.metadata["peer"]["base"] == peer.location.folder.hash
    assert made.metadata["peer"]["grey"] == "mean of the colour channels"


def test_other_types_of_output(peer: PeerPipeline) -> None:
    shapes = {"np": (16, 16), "pt": (1, 16, 16), "latent": (4, 8, 8)}
    for kind, shape in shapes.items():
        made = peer({"report": TEXTS[0]}, "frontal", seed=1, output_type=kind, **QUICK).frontal[0]
        assert tuple(made.shape) == shape


def test_a_callback_sees_every_step_and_may_end_a_request(peer: PeerPipeline) -> None:
    seen: list[int] = []
    peer({}, "frontal", seed=1, callback_on_step_end=lambda p, step, t, v: seen.append(step), **QUICK)
    assert seen == [0, 1]

    def stop(*_: Any) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        peer({}, "frontal", seed=1, callback_on_step_end=stop, **QUICK)


def test_long_prompts_are_noted(peer: PeerPipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = peer({"report": "effusion " * 20}, "frontal", seed=1, **QUICK)
    note = "truncated: tokenizer (CLIPTokenizer) reads 77 of 162 tokens"
    assert f"report: {note}" in caplog.text
    assert made.metadata["inputs"]["report"]["notes"] == [note]
    assert made.metadata["inputs"]["report"]["truncated"] is True


REFUSED = {
    "image": ({"frontal": "a.png"}, r"image: .* starts from noise alone; leave it out"),
    "joint": (True, "joint: .* has one output"),
    "num_candidates": (2, "num_candidates: .* no prompt encoders"),
    "privacy_gate": (object(), "privacy_gate: .* no image encoder"),
    "guidance_rescale": (0.5, "guidance_rescale: .* the pipeline's own"),
    "sampler": ("ddim", "sampler 'ddim': .* its own DDIMScheduler"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_of_xgems_own_checkpoints_are_refused(peer: PeerPipeline, name: str) -> None:
    value, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        peer({"report": TEXTS[0]}, "frontal", **{name: value})


def test_other_outputs_and_inputs_are_refused(peer: PeerPipeline) -> None:
    foreign: dict[str, Any] = {"negative_prompt": "blurry"}
    with pytest.raises(InputError, match="cannot generate 'lateral', only: frontal"):
        peer({"report": TEXTS[0]}, "lateral")
    with pytest.raises(InputError, match="takes no 'mask'"):
        peer({"mask": "mask.png"}, "frontal")
    with pytest.raises(InputError, match="unexpected keyword argument 'negative_prompt'"):
        peer({"report": TEXTS[0]}, "frontal", **foreign)
    with pytest.raises(NotComputed, match="no prompt encoders"):
        peer.embed("report", TEXTS)
    with pytest.raises(InputError, match="not a checkpoint of xgem: copy its folder"):
        peer.save_pretrained("copy")
    with pytest.raises(InputError, match="compile is for xgem's own"):
        xgem.load(f"diffusers:{peer.root}").from_pretrained(f"diffusers:{peer.root}", compile=True)


def test_a_callback_where_the_pipeline_takes_none(pipelines: Pipelines) -> None:
    with pytest.raises(InputError, match="callback_on_step_end: a PixArtSigmaPipeline does not take it"):
        opened(pipelines("pixart-sigma"))({}, "frontal", callback_on_step_end=print)


# ------------------------------------------------------------------------------------------------------ bad folders


def damaged(pipelines: Pipelines, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipelines("stable-diffusion"), tmp_path / "damaged"))


def test_what_is_no_pipeline(pipelines: Pipelines, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no model_index.json; expected the folder of a diffusers pipeline"):
        xgem.load(f"diffusers:{tmp_path}")
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        xgem.load("diffusers:nowhere")
    with pytest.raises(InputError, match="which is not a hub id"):
        xgem.load(f"diffusers:{pipelines('stable-diffusion')}", revision="main")
    with pytest.raises(CheckpointError, match="nobody/nothing: cannot be fetched from the hub"):
        xgem.load("diffusers:nobody/nothing")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("AudioLDMPipeline", "takes audio_length_in_s; expected a pipeline that makes images from text alone"),
        ("StableDiffusionInpaintPipeline", "takes image; expected"),
        ("MyOwnPipeline", "is 'MyOwnPipeline', which this version of diffusers"),
    ],
)
def test_pipelines_of_another_kind(pipelines: Pipelines, tmp_path: Path, name: str, message: str) -> None:
    folder = damaged(pipelines, tmp_path)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', f'"{name}"'))
    with pytest.raises(CheckpointError, match=message):
        xgem.load(f"diffusers:{folder}")


def test_pickled_weights_are_not_read(pipelines: Pipelines, tmp_path: Path) -> None:
    folder = damaged(pipelines, tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model.bin: pickled weights can run code and are never read"):
        xgem.load(f"diffusers:{folder}")


def test_weights_that_are_missing(pipelines: Pipelines, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = damaged(pipelines, tmp_path)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing, first 'conv_in.weight'"):
        opened(folder)({}, "frontal", **QUICK)


def test_the_hash_is_of_all_that_decides_on_images(pipelines: Pipelines, tmp_path: Path) -> None:
    folder = damaged(pipelines, tmp_path)
    before = locate_peer(f"diffusers:{folder}").hash
    assert before == locate_peer(f"diffusers:{pipelines('stable-diffusion')}").hash
    (folder / "README.md").write_text("a card")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"of another format")
    assert locate_peer(f"diffusers:{folder}").hash == before
    settings = folder / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text().replace('"trailing"', '"leading"'))
    assert locate_peer(f"diffusers:{folder}").hash != before


def test_a_hub_that_has_pickles_alone() -> None:
    def fetch() -> str:
        raise OSError("Could not find the necessary `safetensors` weights")

    with pytest.raises(CheckpointError, match="owner/name at main: cannot be fetched from the hub: Could not find"):
        fetched("owner/name", "main", fetch)
