"""A LoRA or a whole denoiser of every family: trained, saved, loaded and replayed."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xgem
from tests.peers.conftest import pipelines
from tests.peers.tiny import MAKE, tiny
from xgem.cli import main
from xgem.data.manifest import Manifest, Row
from xgem.peers.loading import load_pipeline
from xgem.peers.locate import locate_peer
from xgem.peers.record import ADAPTER_NAME, read_record
from xgem.pipeline.kinds import PEER_RECORD
from xgem.pipeline.replay import replay
from xgem.train.loop import LoopOptions
from xgem.train.peers.run import run
from xgem.train.peers.settings import LoraTraining, PeerTraining, settings_of
from xgem.types import CheckpointError, ConfigError, InputError, OutputError

__all__ = ["pipelines"]

Pipelines = Callable[[str], Path]
Trained = Callable[[str], Path]
QUIET = LoopOptions(progress=False, tensorboard=False, log_every=5)
TEXTS = ("Large left pleural effusion.", "Cardiomegaly.", "Normal.", "Clear lungs.")
QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False, "seed": 7}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four studies to train on, two held out; and one of each split that has no frontal, or no text."""
    folder = tmp_path_factory.mktemp("studies")
    y, x = np.mgrid[0:32, 0:32] / 32
    rows: list[Row] = []
    for number in range(8):
        split = "train" if number < 5 else "val"
        grey = (255 * (0.5 + 0.4 * np.sin((4 + number) * x + number) * np.cos(3 * y))).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{number}.png")
        text = "" if number in (4, 7) else TEXTS[number % 4]
        common: dict[str, Any] = {"study": f"s{number}", "subject": f"s{number}", "split": split, "source": "toy"}
        rows.append(Row(view="frontal", file=f"{number}.png", impression=text, **common))
    Manifest(tuple(rows), folder).write(folder / "data.jsonl")
    return folder / "data.jsonl"


def debug(kind: Any = "lora", **changes: Any) -> Callable[[str, int], PeerTraining]:
    def settings(pipeline: str, studies: int) -> PeerTraining:
        assert studies == 5
        resolution = 16 if pipeline == "FluxPipeline" else None
        rank = {"rank": 4} if kind == "lora" else {}
        return settings_of(kind, "debug", pipeline, studies).model_copy(
            update={"resolution": resolution, "learning_rate": 1e-2, **rank, **changes}
        )

    return settings


def train(
    base: Path | str, data: Path, out: Path, kind: Any = "lora", loop: LoopOptions = QUIET, **changes: Any
) -> Path:
    name = base if isinstance(base, str) else f"diffusers:{base}"
    run(kind, name, Manifest.read(data), out, loop, settings=debug(kind, **changes), seed=3)
    return out


@pytest.fixture(scope="session")
def trained(pipelines: Pipelines, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder of a LoRA on a family's tiny pipeline, of 20 steps; read only."""
    root = tmp_path_factory.mktemp("trained")
    return lambda name: root / name if (root / name).is_dir() else train(pipelines(name), data, root / name)


def losses(folder: Path, kind: str = "lora") -> list[float]:
    lines = (folder / "training" / kind / "log.jsonl").read_text().splitlines()
    return [entry["val/loss"] for entry in map(json.loads, lines) if "val/loss" in entry]


@pytest.mark.parametrize("name", MAKE)
def test_a_lora_of_every_family(pipelines: Pipelines, trained: Trained, name: str, tmp_path: Path) -> None:
    folder = trained(name)
    first, last = losses(folder)
    assert last < first
    peer = xgem.load(folder, device="cpu")
    assert peer.name == name
    made = peer([{"report": text} for text in TEXTS[:2]], "frontal", **QUICK)
    if name != "flux":  # whose size without a record is 128
        base = xgem.load(f"diffusers:{pipelines(name)}", device="cpu")
        assert base.hash != peer.hash
        before = base({"report": TEXTS[0]}, "frontal", **QUICK).frontal[0]
        assert not np.array_equal(before, made[0].frontal[0])
    assert not np.array_equal(made[0].frontal[0], made[1].frontal[0])
    again = replay(made[1].save(tmp_path / "out")[0], model=folder, progress=False)
    assert again.identical
    about = again.generation.metadata["peer"]
    assert about["adapter"] == name
    assert about["training"]["rank"] == 4
    record = read_record(folder)
    assert record is not None
    assert (record.base_hash, record.steps) == (locate_peer(f"diffusers:{pipelines(name)}").hash, 20)


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-3", "sana", "flux"])
def test_diffusers_reads_a_lora_to_the_same_pipeline(
    pipelines: Pipelines, trained: Trained, name: str, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    shutil.copy(trained(name) / ADAPTER_NAME, tmp_path / "plain")
    theirs = locate_peer(f"diffusers:{pipelines(name)}+{tmp_path / 'plain'}")
    assert theirs.name == f"diffusers:{name}+plain"
    pipes = [load_pipeline(one, device="cpu", dtype=torch.float32) for one in (locate_peer(trained(name)), theirs)]
    denoisers = [pipe.components[theirs.folder.denoiser].state_dict() for pipe in pipes]
    ours, others = ({key.replace("default_0", "default"): value for key, value in one.items()} for one in denoisers)
    assert sum("lora_B" in key for key in ours) > 0
    torch.testing.assert_close(ours, others, rtol=0, atol=0)


def test_diffusers_reads_an_alpha_that_is_not_the_rank(pipelines: Pipelines, data: Path, tmp_path: Path) -> None:
    folder = train(pipelines("stable-diffusion"), data, tmp_path / "run", alpha=2.0, steps=1)
    (tmp_path / "plain").mkdir()
    shutil.copy(folder / ADAPTER_NAME, tmp_path / "plain")
    plain = f"diffusers:{pipelines('stable-diffusion')}+{tmp_path / 'plain'}"
    images = [xgem.load(one, device="cpu")({}, "frontal", **QUICK).frontal[0] for one in (folder, plain)]
    pipes = [load_pipeline(locate_peer(one), device="cpu", dtype=torch.float32) for one in (folder, plain)]
    scales = [{v for m in pipe.unet.modules() for v in getattr(m, "scaling", {}).values()} for pipe in pipes]
    assert scales == [{0.5}, {0.5}]
    assert np.array_equal(*images)


@pytest.mark.parametrize("name", ["stable-diffusion", "flux"])
def test_all_of_a_denoiser(pipelines: Pipelines, data: Path, tmp_path: Path, name: str) -> None:
    folder = train(pipelines(name), data, tmp_path / "full", "full", learning_rate=3e-3)
    first, last = losses(folder, "full")
    assert last < first
    peer = xgem.load(folder, device="cpu")
    made = peer({"report": TEXTS[0]}, "frontal", **QUICK)
    assert replay(made.save(tmp_path / "out")[0], model=folder, progress=False).identical
    # It is a pipeline as any other, and only its denoiser has changed
    plain = xgem.load(f"diffusers:{folder}", device="cpu")
    assert plain.hash == peer.hash
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        before, after = (load(root / part) for root in (pipelines(name), folder))
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def load(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


@pytest.mark.parametrize("name", MAKE)
def test_the_loss_on_a_few_pictures_falls(pipelines: Pipelines, data: Path, tmp_path: Path, name: str) -> None:
    from tests.train.peers.overfit import overfit

    before, after = overfit(pipelines(name), Manifest.read(data), tmp_path, debug("full", null_probability=0.0))
    assert after < 0.7 * before


def test_a_resumed_run_equals_an_unbroken_one(
    pipelines: Pipelines, trained: Trained, data: Path, tmp_path: Path
) -> None:
    base = pipelines("stable-diffusion-3")
    stopped = replace(QUIET, until=time.monotonic())  # after one step
    train(base, data, tmp_path / "run", loop=stopped)
    assert not (tmp_path / "run" / PEER_RECORD).exists()
    with pytest.raises(CheckpointError, match="continue it with --resume"):
        train(base, data, tmp_path / "run")
    train(base, data, tmp_path / "run", loop=replace(QUIET, resume=True))
    whole = trained("stable-diffusion-3") / ADAPTER_NAME
    assert (tmp_path / "run" / ADAPTER_NAME).read_bytes() == whole.read_bytes()


def test_shares_and_recomputed_activations_change_little(
    pipelines: Pipelines, trained: Trained, data: Path, tmp_path: Path
) -> None:
    loop = replace(QUIET, micro_batch_size=1, checkpoint_activations=True)
    parted = train(pipelines("stable-diffusion"), data, tmp_path / "parted", loop=loop)
    torch.testing.assert_close(
        load(parted / ADAPTER_NAME), load(trained("stable-diffusion") / ADAPTER_NAME), rtol=1e-2, atol=2e-3
    )


def test_mixed_precision_keeps_what_is_frozen_in_half(pipelines: Pipelines, data: Path, tmp_path: Path) -> None:
    folder = train(pipelines("stable-diffusion-3"), data, tmp_path / "half", loop=replace(QUIET, precision="bf16"))
    weights = load(folder / ADAPTER_NAME)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    first, last = losses(folder)
    assert last < first


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_lora_for_another_base(trained: Trained, tmp_path: Path) -> None:
    other = tiny("stable-diffusion", tmp_path, seed=1)
    lora = trained("stable-diffusion")
    own = read_record(lora)
    assert own is not None
    message = rf"is a LoRA for {own.base} \(hash {own.base_hash}\), not for diffusers:{other} \(hash"
    with pytest.raises(CheckpointError, match=message):
        xgem.load(f"diffusers:{other}+{lora}")


def test_a_lora_of_other_shapes(pipelines: Pipelines, trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained("stable-diffusion"), tmp_path / "edited"))
    record = json.loads((folder / PEER_RECORD).read_text())
    (folder / PEER_RECORD).write_text(json.dumps({**record, "rank": 8}))
    with pytest.raises(CheckpointError, match=r"does not fit diffusers:.*'unet.*' is \(.*\), expected \(8"):
        xgem.load(folder, device="cpu")({}, "frontal", **QUICK)
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copy(trained("stable-diffusion") / ADAPTER_NAME, plain)
    with pytest.raises(CheckpointError, match=r"stable-diffusion-xl: is a LoRA for .*, not for diffusers:.*radedit"):
        xgem.load(f"diffusers:{pipelines('radedit')}+{trained('stable-diffusion-xl')}", device="cpu")
    pixart = f"diffusers:{pipelines('pixart-sigma')}+{plain}"
    with pytest.raises(CheckpointError, match="diffusers reads no LoRA for a PixArtSigmaPipeline"):
        xgem.load(pixart, device="cpu")({}, "frontal", **QUICK)


def test_a_base_that_is_gone(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained("stable-diffusion"), tmp_path / "moved"))
    record = json.loads((folder / PEER_RECORD).read_text())
    (folder / PEER_RECORD).write_text(json.dumps({**record, "base": f"diffusers:{tmp_path / 'gone'}"}))
    with pytest.raises(
        CheckpointError, match=r"its base 'diffusers:.*gone' is not found .*; give it: diffusers:BASE\+"
    ):
        xgem.load(folder)
    (folder / PEER_RECORD).write_text("{}")
    with pytest.raises(CheckpointError, match=r"xgem_peer.json: kind: Field required"):
        xgem.load(folder)
    with pytest.raises(CheckpointError, match=r"has no pytorch_lora_weights.safetensors"):
        xgem.load(f"{json.loads(json.dumps(record))['base']}+{tmp_path}")


def test_what_cannot_be_trained(pipelines: Pipelines, trained: Trained, data: Path, tmp_path: Path) -> None:
    base = pipelines("stable-diffusion")
    with pytest.raises(ConfigError, match="targets to_nowhere: no layer of UNet2DConditionModel"):
        train(base, data, tmp_path / "a", targets=("to_nowhere",))
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="has a LoRA already"):
        train(str(trained("stable-diffusion")), data, tmp_path / "b")
    with pytest.raises(OutputError, match=r"holds a lora of diffusers:.*; choose another --out"):
        train(pipelines("radedit"), data, trained("stable-diffusion"))


def test_peft_is_missing(pipelines: Pipelines, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"LoRA needs the package peft, which is not installed: install xgem\[peers\]"):
        train(pipelines("stable-diffusion"), data, tmp_path / "out")


# -------------------------------------------------------------------------------------------------------- settings


def test_settings_of_the_benchmark() -> None:
    lora = settings_of("lora", "chexgenbench", "StableDiffusion3Pipeline", 237_388)
    assert isinstance(lora, LoraTraining)
    assert (lora.rank, lora.alpha, lora.batch_size, lora.learning_rate) == (32, None, 128, 1e-4)
    assert lora.targets[:3] == ("to_q", "to_k", "to_v")
    assert lora.steps == 37_092  # 20 epochs
    full = settings_of("full", "chexgenbench", "StableDiffusionPipeline", 1000)
    assert (full.learning_rate, full.final_lr_fraction) == (5e-6, 1.0)
    with pytest.raises(ConfigError, match="trains a SanaPipeline by `full`, not `lora`"):
        settings_of("lora", "chexgenbench", "SanaPipeline", 10)
    with pytest.raises(ConfigError, match="the benchmark trains no StableDiffusionXLPipeline"):
        settings_of("lora", "chexgenbench", "StableDiffusionXLPipeline", 10)
    with pytest.raises(InputError, match="--settings best: expected one of default, chexgenbench, debug"):
        settings_of("lora", "best", "SanaPipeline", 10)


def test_the_command(pipelines: Pipelines, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = f"diffusers:{pipelines('pixart-sigma')}"
    command = ["train", "lora", "--base", base, "--data", str(data), "--out", str(tmp_path / "out"), "--no-progress"]
    options = ["--settings", "debug", "--steps", "2", "--set", "lora.rank=2", "--set", "lora.targets=[to_q]"]
    assert main([*command, *options, "--device", "cpu", "--seed", "4"]) == 0
    record = read_record(tmp_path / "out")
    assert record is not None
    assert (record.rank, record.targets, record.steps, record.seed) == (2, ("to_q",), 2, 4)
    for wrong, message in {
        ("--preset", "debug"): "--preset: stage 'lora' does not take it",
        ("--set", "lora.rankk=2"): "lora has no field 'rankk'",
        ("--settings", "best"): "--settings best: expected one of",
    }.items():
        assert main([*command[:-2], str(tmp_path / "wrong"), "--no-progress", *wrong]) == 2
        assert message in capsys.readouterr().err
    common = ["--data", str(data), "--out", str(tmp_path / "wrong")]
    assert main(["train", "full", *common]) == 2
    assert "name it by --base diffusers:ID-OR-FOLDER" in capsys.readouterr().err
    assert main(["train", "clip", "--preset", "debug", "--base", base, *common]) == 2
    assert "stage 'clip' takes neither --base nor --settings" in capsys.readouterr().err
