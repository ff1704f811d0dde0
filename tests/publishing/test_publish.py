"""Synthetic sets are published whole, with their card and provenance; copies of training images are not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.publishing.conftest import GOOD, TRAINING, drawn, smuggled
from xgem.cli import main
from xgem.data import load_dataset
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.judges.reid import ReidConfig, SiameseNetwork, save_reid
from xgem.pipeline.generation import read_metadata
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.privacy_gate import PrivacyGate, Thresholds
from xgem.pipeline.replay import replay
from xgem.publishing import SyntheticRadiographs
from xgem.publishing.closeness import Check
from xgem.publishing.judging import pictures_of
from xgem.publishing.publish import publish
from xgem.publishing.verify import verify
from xgem.types import DataError, InputError, OutputError, PrivacyError
from xgem.utils.files import file_sha256

WriteSet = Callable[..., Path]


@pytest.fixture(scope="module")
def index(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images as the privacy gate sees them, with the encoder that ships."""
    file = tmp_path_factory.mktemp("index") / "index.safetensors"
    PrivacyGate.from_manifest(real).indexed(XgemPipeline.from_pretrained(None), ["frontal"]).save(file)
    return file


@pytest.fixture(scope="module")
def check(index: Path) -> Check:
    return Check(index)


@pytest.fixture(scope="module")
def published(synthetic: WriteSet, check: Check, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "drawn-12"
    assert publish(synthetic(), check, out).images == GOOD
    return out


def test_a_published_set_has_all_its_files(published: Path) -> None:
    assert verify(published) == {"files": GOOD + 5, "images": GOOD}
    _, header, body = (published / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["license"] == "cc-by-nc-4.0"
    assert card["images"] == GOOD
    assert card["synthetic"] is True
    assert "Not for diagnosis" in body
    assert f"| frontal | {GOOD} | {TRAINING} | 0 |" in body
    assert "| Cardiomegaly | 12 | 0 |" in body
    assert "| age | 60 to 69 | 12 |" in body
    assert "no judge chose" in body
    provenance = json.loads((published / "provenance.json").read_text(encoding="utf-8"))
    assert {file: read_metadata(published / file) for file in provenance["images"]} == {
        file: one["generated"] for file, one in provenance["images"].items()
    }
    assert str(Path.home()) not in (published / "provenance.json").read_text(encoding="utf-8")


def test_datasets_and_torch_read_it(published: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    program = (
        "import sys, datasets\n"
        "found = datasets.load_dataset(sys.argv[1])\n"
        "print({name: len(part) for name, part in found.items()})\n"
        "one = found['train'][0]\n"
        "print(one['image'].size, one['text'], one['Cardiomegaly'], one['seed'], 'latent_distance' in one)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(published)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["{'train': 9, 'validation': 3}", "(96, 96) Cardiomegaly. 1 1 True"]
    ours = load_dataset(published, "val", size=32)
    assert len(ours) == 3
    images = SyntheticRadiographs(published, "train", transform=lambda image: image.size)
    assert len(images) == 9
    size, target = images[0]
    assert size == (96, 96)
    torch.testing.assert_close(target, images.targets[0], equal_nan=True)
    assert target[images.classes.index("Cardiomegaly")] == 1


def test_copies_of_training_images_are_found_and_good_images_are_kept(
    synthetic: WriteSet, check: Check, tmp_path: Path
) -> None:
    """One copy is the very image, the others are shifted, re-encoded and brighter."""
    copies = [drawn(3), smuggled(drawn(7)), smuggled(drawn(30), 60, (-1, 2)), smuggled(drawn(50), 90, (0, 3))]
    source = synthetic(*copies)
    done = publish(source, check, tmp_path / "set", drop_close=True)
    assert (done.images, done.dropped) == (GOOD, 4)
    assert {row.study for row in Manifest.read(tmp_path / "set" / "manifest.parquet").rows} == {
        f"s{number:03}" for number in range(GOOD)
    }
    card = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert "4 images at or below a threshold were left out" in card
    assert "| frontal | 16 | 60 | 4 |" in card


def test_close_images_end_publishing(synthetic: WriteSet, check: Check, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match=r"1 of 13 images are close to a training image, first .*012\.png"):
        publish(synthetic(smuggled(drawn(7))), check, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_network_of_reidentification_finds_the_same_patient(
    synthetic: WriteSet, real: Path, debug_checkpoint: Path, tmp_path: Path
) -> None:
    """A head that is sure of nearly equal features; the distances are told to see nothing but the very image."""
    config = ReidConfig(block="basic", layers=(1, 1, 1, 1), size=32)
    torch.manual_seed(0)
    network = SiameseNetwork(config)
    torch.nn.init.constant_(network.fc_end.weight, -100.0)
    torch.nn.init.constant_(network.fc_end.bias, 10.0)
    save_reid(tmp_path / "reid.safetensors", network, config)
    blind = Thresholds(latent=0.0, pixel=0.0)
    check = Check(real, str(debug_checkpoint), blind, reid=tmp_path / "reid.safetensors")
    pixels = np.where(drawn(3) < 255, drawn(3) + 1, 255).astype(np.uint8)
    pixels[40:50] = drawn(3)[40:50]
    pictures = pictures_of(Manifest.read(synthetic(pixels)))
    distances, about = check.compare(pictures)
    assert [number for number, one in enumerate(distances) if one.close] == [GOOD]
    assert min(distances[GOOD].latent, distances[GOOD].pixel) > 1e-5, "by re-identification alone"
    assert about["reid"]["network"] == config.name
    assert "reid_score" in distances[0].columns
    with pytest.raises(InputError, match="re-identification compares with images"):
        replace(check, training=real.with_suffix(".csv")).compare(pictures)


def test_what_cannot_be_published_is_named(synthetic: WriteSet, check: Check, real: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(InputError, match=r"120 of 120 images are not marked as synthetic.*first .*no xgem metadata"):
        publish(real, check, out, licence="x")
    with pytest.raises(InputError, match="licences of the rows: ''; say that of the set"):
        publish(synthetic(licence=""), check, out)
    with pytest.raises(InputError, match="not the index of a privacy gate"):
        publish(synthetic(), Check(real.with_name("none.safetensors")), out)
    with pytest.raises(DataError, match="nothing is left"):
        publish(synthetic(), replace(check, thresholds=Thresholds(pixel=2.0)), out, drop_close=True)
    (out / "x").mkdir(parents=True)
    with pytest.raises(OutputError, match="not empty"):
        publish(synthetic(), check, out)


def test_texts_of_real_studies_are_told(
    synthetic: WriteSet, check: Check, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(synthetic(source="openi", masks={"left lung": ("000.png",)}), check, tmp_path / "set")
    row = Manifest.read(tmp_path / "set" / "manifest.parquet").rows[-1]
    assert row.masks == {"left lung": ("masks/00000000-left-lung.png",)}
    assert verify(tmp_path / "set")["files"] == GOOD + 6
    assert "real studies (openi)" in caplog.text
    assert "**Texts or labels are those of real studies (openi)" in (tmp_path / "set" / "README.md").read_text()


def test_a_published_image_is_generated_again(real: Path, debug_checkpoint: Path, tmp_path: Path) -> None:
    pipeline = XgemPipeline.from_pretrained(debug_checkpoint)
    made = pipeline({"report": "Cardiomegaly."}, ["frontal"], num_inference_steps=2, num_samples=2, seed=3)
    files = [file for file in made.save(tmp_path / "made") if file.suffix == ".png"]
    rows = [
        Row(study=f"s{number}", subject=f"s{number}", split="train", view="frontal", file=str(file), licence="free")
        for number, file in enumerate(files)
    ]
    Manifest(tuple(rows), tmp_path).write(tmp_path / "manifest.parquet")
    anything = Check(real, encoder=str(debug_checkpoint), thresholds=Thresholds(latent=0.0, pixel=0.0))
    publish(tmp_path, anything, tmp_path / "set")
    published = sorted((tmp_path / "set" / "train").glob("*.png"))
    assert len(published) == 2
    assert replay(published[1], model=pipeline).identical


@pytest.mark.parametrize("fault", ["altered", "missing", "added", "card", "provenance", "sums"])
def test_verify_finds_what_was_changed(published: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "set"
    shutil.copytree(published, folder)
    image = next(iter(sorted((folder / "train").glob("*.png"))))
    sums = folder / "SHA256SUMS"
    if fault == "altered":
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(image)
    elif fault == "missing":
        image.unlink()
    elif fault == "added":
        (folder / "train" / "real.png").write_bytes(b"x")
    elif fault == "sums":
        sums.write_text("nonsense\n")
    else:
        name = "README.md" if fault == "card" else "provenance.json"
        text = (folder / name).read_text().replace("synthetic: true", "").replace('"synthetic": true', '"synthetic": 0')
        (folder / name).write_text(text)
        lines = [line for line in sums.read_text().splitlines() if not line.endswith(name)]
        sums.write_text("\n".join([*lines, f"{file_sha256(folder / name)}  {name}"]) + "\n")
    said = {"card": "synthetic: true", "provenance": "not marked as synthetic", "sums": "sha256sum"}
    with pytest.raises(DataError, match=said.get(fault, f"1 of {GOOD + 5} files .*(altered|missing|not in)")):
        verify(folder)


def test_the_commands_publish_and_verify(
    synthetic: WriteSet, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = synthetic(smuggled(drawn(7))), tmp_path / "set"
    arguments = ["--training", str(index), "--out", str(out), "--drop-close", "--json"]
    assert main(["data", "publish", str(source.parent), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 1
    assert main(["data", "verify", str(out)]) == 0
    assert main(["data", "verify", str(source.parent)]) == 2
