"""The privacy gate: what it refuses, that what it refuses is drawn again, and that what it accepts can be replayed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import xgem
from xgem.cli import main
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest, Row
from xgem.pipeline import privacy_gate
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.privacy_gate import LATENT_TOLERANCE, PrivacyGate, Thresholds, _features
from xgem.pipeline.replay import replay
from xgem.types import InputError, PrivacyError

QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False}
COPIES = Thresholds(latent=1e-4, pixel=0.02)
"""Near enough for copies alone: the tiny model's own samples are all alike."""


def smooth(n: int, seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).normal(128, 45, (n, 6, 6)).clip(0, 255).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in small])


def manifest_of(folder: Path, images: dict[str, list[np.ndarray]]) -> Path:
    rows: list[Row] = []
    for split, found in images.items():
        for number, image in enumerate(found):
            name = f"{split}{number}"
            Image.fromarray(image).save(folder / f"{name}.png")
            values: dict[str, Any] = {"study": name, "subject": name, "split": split, "file": f"{name}.png"}
            rows.append(Row(view="frontal", source="toy", **values))
    Manifest(tuple(rows), folder).write(folder / "studies.jsonl")
    return folder / "studies.jsonl"


@pytest.fixture(scope="module")
def data(pipeline: XgemPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images, among them what the model draws from seed 7: it gives a training image first."""
    made = pipeline({}, ["frontal", "report"], seed=7, num_samples=3, **QUICK)
    drawn = pipeline({}, "frontal", seed=7, num_samples=3, **QUICK)
    planted = [np.asarray(one) for one in (made.frontal[0], drawn.frontal[1])]
    images = {"train": [*smooth(12, 0), *planted], "val": list(smooth(30, 1))}
    return manifest_of(tmp_path_factory.mktemp("data"), images)


def test_a_training_image_is_drawn_again_and_replayed(pipeline: XgemPipeline, data: Path, tmp_path: Path) -> None:
    gate = PrivacyGate.from_manifest(data, thresholds=COPIES)
    plain = pipeline({}, "frontal", seed=7, num_samples=3, **QUICK)
    made = pipeline({}, "frontal", seed=7, num_samples=3, privacy_gate=gate, **QUICK)
    same = [a.tobytes() == b.tobytes() for a, b in zip(made.frontal, plain.frontal, strict=True)]
    assert same == [True, False, True]
    said = [made.sample_metadata("frontal", i) for i in range(3)]
    assert [one["privacy_gate"]["tries"] for one in said] == [1, 2, 1]
    assert [one["sample"] for one in said] == [0, 1, 2]
    assert said[0]["seed"] == said[2]["seed"] == made.metadata["seed"] == 7
    assert said[1]["seed"] != 7
    assert said[1]["batch"] == {"size": 1, "position": 0}
    for one in said:
        verdict = one["privacy_gate"]
        assert verdict["latent_distance"] > verdict["latent_threshold"] == COPIES.latent
        assert verdict["pixel_distance"] > verdict["pixel_threshold"] == COPIES.pixel
        assert verdict["training_images"] == 14
    files = made.save(tmp_path / "out")
    for file in files:
        again = replay(file, model=pipeline, progress=False)
        assert again.identical
        (path,) = again.generation.save(tmp_path / f"again-{file.stem}")
        assert path.read_bytes() == file.read_bytes()


def test_the_draw_is_the_same_every_time(pipeline: XgemPipeline, data: Path) -> None:
    gate = PrivacyGate.from_manifest(data, thresholds=COPIES)
    one, two = (pipeline({}, "frontal", seed=7, num_samples=2, privacy_gate=gate, **QUICK) for _ in range(2))
    assert [a.tobytes() for a in one.frontal] == [b.tobytes() for b in two.frontal]
    assert one.samples == two.samples


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_every_output_type_is_checked(pipeline: XgemPipeline, data: Path, output_type: str) -> None:
    gate = PrivacyGate.from_manifest(data, thresholds=COPIES)
    made = pipeline({}, "frontal", seed=7, num_samples=2, privacy_gate=gate, output_type=output_type, **QUICK)
    assert [made.sample_metadata("frontal", i)["privacy_gate"]["tries"] for i in range(2)] == [1, 2]


def test_joint_outputs_are_drawn_again_together(pipeline: XgemPipeline, data: Path, tmp_path: Path) -> None:
    gate = PrivacyGate.from_manifest(data, thresholds=COPIES)
    plain = pipeline({}, ["frontal", "report"], seed=7, **QUICK)
    made = pipeline({}, ["frontal", "report"], seed=7, privacy_gate=gate, **QUICK)
    assert made.metadata["joint"]
    assert made.frontal[0].tobytes() != plain.frontal[0].tobytes()
    image, report = made.sample_metadata("frontal"), made.sample_metadata("report")
    assert image["seed"] == report["seed"] != 7
    assert image["privacy_gate"]["tries"] == report["privacy_gate"]["tries"] == 2
    fresh = pipeline({}, ["frontal", "report"], seed=image["seed"], **QUICK)
    assert fresh.report == made.report
    for file in made.save(tmp_path / "out"):
        assert replay(file, model=pipeline, progress=False).identical


def test_a_batch_redraws_only_what_is_refused(pipeline: XgemPipeline, data: Path) -> None:
    gate = PrivacyGate.from_manifest(data, thresholds=COPIES)
    seeds = [5, 7, 6]
    plain = pipeline([{}] * 3, "frontal", seed=seeds, num_samples=2, **QUICK)
    made = pipeline([{}] * 3, "frontal", seed=seeds, num_samples=2, privacy_gate=gate, **QUICK)
    same = [
        [a.tobytes() == b.tobytes() for a, b in zip(x.frontal, y.frontal, strict=True)]
        for x, y in zip(made, plain, strict=True)
    ]
    assert same == [[True, True], [True, False], [True, True]]


def test_giving_up_writes_nothing(
    pipeline: XgemPipeline, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = PrivacyGate.from_manifest(data, thresholds=Thresholds(latent=9, pixel=0), tries=3)
    with pytest.raises(PrivacyError, match="2 samples were too close to a training image in each of 3 tries"):
        pipeline({}, "frontal", seed=1, num_samples=2, privacy_gate=everything, **QUICK)
    command = ["generate", "--outputs", "frontal", "--out", str(tmp_path / "out"), "--model", str(pipeline.root)]
    command += ["--num-inference-steps", "1", "--no-progress", "--device", "cpu", "--privacy-gate", str(data)]
    assert main([*command, "--privacy-threshold", "latent=9"]) == 1
    assert "in each of 10 tries" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_held_out_images_say_what_is_too_close(pipeline: XgemPipeline, data: Path) -> None:
    gate = PrivacyGate.from_manifest(data, quantile=0.1).indexed(pipeline, ["frontal", "report"])
    index = gate.indexes["frontal"]
    images = [np.asarray(Image.open(file)) for file in gate.held_out["frontal"]]
    verdicts = [gate.check(pipeline, "frontal", Image.fromarray(one)) for one in images]
    near = [one.latent <= index.latent_threshold + LATENT_TOLERANCE for one in verdicts]
    close = [one.pixel <= index.pixel_threshold for one in verdicts]
    assert sum(near) == sum(close) == 3
    assert [one.refused for one in verdicts] == [a or b for a, b in zip(near, close, strict=True)]
    training = [np.asarray(Image.open(file)) for file in gate.training["frontal"]]
    assert all(gate.check(pipeline, "frontal", one).refused for one in training)
    for changed in (np.roll(training[0], 1, axis=1), (training[1] * 0.8 + 20).astype(np.uint8)):
        assert gate.check(pipeline, "frontal", changed).refused


def test_the_batch_of_an_encoding_does_not_decide(pipeline: XgemPipeline, data: Path) -> None:
    """An image at the threshold is refused alone as it is among others; one that is 1 % farther is not."""
    index = PrivacyGate.from_manifest(data, thresholds=COPIES).indexed(pipeline, ["frontal"]).indexes["frontal"]
    far = np.zeros_like(index.pixels[0])  # no training image is near by its pixels
    images = smooth(30, 2)
    _, together = _features(pipeline, "frontal", images)
    for image, encoded in zip(images, together, strict=True):
        _, (alone,) = _features(pipeline, "frontal", image[None])
        assert np.abs(alone - encoded).max() < LATENT_TOLERANCE
        distance = index.verdict(far, encoded).latent
        for share, refused in ((1.0, True), (0.99, False)):
            at = replace(index, latent_threshold=distance * share, pixel_threshold=0.0)
            assert at.verdict(far, alone).refused == at.verdict(far, encoded).refused == refused


def test_an_index_stands_for_the_images(
    pipeline: XgemPipeline, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = PrivacyGate.from_manifest(data, thresholds=COPIES).indexed(pipeline, ["frontal"])
    gate.save(tmp_path / "gate.safetensors")
    loaded = PrivacyGate.open(tmp_path / "gate.safetensors")
    assert loaded.indexes["frontal"].sha256 == gate.indexes["frontal"].sha256
    monkeypatch.setattr("xgem.pipeline.privacy_gate._read", None)  # no image is read again
    one, two = (pipeline({}, "frontal", seed=7, num_samples=2, privacy_gate=which, **QUICK) for which in (gate, loaded))
    assert one.samples == two.samples
    stricter = PrivacyGate.open(tmp_path / "gate.safetensors", thresholds=Thresholds(pixel=1.5))
    assert stricter.indexes["frontal"].pixel_threshold == 1.5
    assert stricter.indexes["frontal"].latent_threshold == COPIES.latent


def test_images_are_read_once_for_one_model(
    pipeline: XgemPipeline, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[str, int]] = []

    def counted(pipeline: Any, view: str, files: Any, reading: Any) -> Any:
        reads.append((view, len(files)))
        return read(pipeline, view, files, reading)

    read = privacy_gate._read
    monkeypatch.setattr(privacy_gate, "_read", counted)
    gate = PrivacyGate.from_manifest(data, thresholds=COPIES)
    for seed in (1, 2):
        made = pipeline({}, "frontal", seed=seed, privacy_gate=gate, **QUICK)
        assert made.sample_metadata("frontal", 0)["privacy_gate"]["tries"] == 1
    assert reads == [("frontal", 14)]


def test_what_the_gate_cannot_check_is_refused(pipeline: XgemPipeline, data: Path, tmp_path: Path) -> None:
    gate = PrivacyGate.from_manifest(data, thresholds=COPIES)
    with pytest.raises(InputError, match="no training images of lateral, only of frontal"):
        pipeline({}, ["frontal", "lateral"], seed=1, privacy_gate=gate, **QUICK)
    with pytest.raises(InputError, match=r"no output is an image \(report\)"):
        pipeline({}, "report", seed=1, privacy_gate=gate, **QUICK)
    folder = PrivacyGate.open(data.parent)
    with pytest.raises(InputError, match="0 held-out images of frontal, expected at least 20"):
        pipeline({}, "frontal", seed=1, privacy_gate=folder, **QUICK)
    gate.indexed(pipeline, ["frontal"]).save(tmp_path / "gate.safetensors")
    random_checkpoint(tmp_path / "other", load_preset("debug"), seed=1)
    other = XgemPipeline.from_pretrained(tmp_path / "other", device="cpu")
    with pytest.raises(InputError, match="is of a different encoder"):
        other({}, "frontal", seed=1, privacy_gate=PrivacyGate.open(tmp_path / "gate.safetensors"), **QUICK)
    with pytest.raises(InputError, match="no held-out images for a quantile"):
        PrivacyGate.open(tmp_path / "gate.safetensors", quantile=0.1)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not the index of a privacy gate"):
        PrivacyGate.open(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="no index yet"):
        gate.save(tmp_path / "x.safetensors")
    for options in ({"tries": 0}, {"quantile": 1.0}, {"thresholds": Thresholds(latent=-1)}):
        with pytest.raises(InputError, match="at least one try"):
            PrivacyGate.open(data, **options)


def test_the_command_and_its_index(
    pipeline: XgemPipeline, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "gate.safetensors"
    threshold = ["--privacy-threshold", f"latent={COPIES.latent},pixel={COPIES.pixel}"]
    command = ["generate", "--outputs", "frontal", "--model", str(pipeline.root), "--num-inference-steps", "2"]
    command += ["--no-progress", "--device", "cpu", "--seed", "7", "--num-samples", "2", "--json"]
    made = [*command, "--privacy-gate", str(data), *threshold, "--save-privacy-index", str(index)]
    assert main([*made, "--out", str(tmp_path / "one")]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [one["privacy_gate"]["tries"] for one in first["files"]["frontal"]] == [1, 2]
    assert main([*command, "--privacy-gate", str(index), "--out", str(tmp_path / "two")]) == 0
    assert json.loads(capsys.readouterr().out) == first
    file = tmp_path / "one" / "frontal-001.png"
    again = ["replay", str(file), "--model", str(pipeline.root), "--no-progress", "--out", str(tmp_path / "again")]
    assert main(again) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--privacy-threshold", "0.1"], "need --privacy-gate"),
        (["--privacy-gate", "DATA", "--privacy-threshold", "near"], "expected a fraction like 0.01"),
        (["--privacy-gate", "DATA", "--privacy-threshold", "color=1"], "expected a fraction like 0.01"),
        (["--privacy-gate", "DATA", "--privacy-threshold", "2"], "a quantile between 0 and 1"),
        (["--privacy-gate", "DATA", "--save-privacy-index", "x.bin"], "ends in .safetensors"),
        (["--privacy-gate", "none.parquet"], "no such manifest"),
    ],
)
def test_bad_options_end_in_one_line(
    pipeline: XgemPipeline,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    given = [str(data) if one == "DATA" else one for one in options]
    command = ["generate", "--outputs", "frontal", "--model", str(pipeline.root), "--out", str(tmp_path / "out")]
    assert main([*command, *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_package_names_it() -> None:
    assert xgem.PrivacyGate is PrivacyGate
    assert issubclass(xgem.PrivacyError, xgem.XgemError)
