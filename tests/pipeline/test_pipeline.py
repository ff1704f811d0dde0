"""The pipeline on a tiny checkpoint of random weights: what decides a sample, and what may not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import xgem
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.generators.sampling import sample
from xgem.modalities import get_modality
from xgem.pipeline.generation import Generation
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import CheckpointError, Context, DeviceError, InputError, OutputError
from xgem.utils.random import derived_seed, sample_noise

QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False}
NORMAL = "No acute cardiopulmonary abnormality."
EFFUSION = "Large left pleural effusion."


def radiograph(seed: int = 0, size: int = 64) -> np.ndarray:
    """A smooth synthetic image in [0, 1]; nothing of a patient's."""
    y, x = np.mgrid[0:size, 0:size] / size
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    return (0.5 + 0.2 * np.sin(5 * x + phase[0]) + 0.2 * np.cos(7 * y + phase[1] + 3 * x)).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model") / "random"
    random_checkpoint(root, load_preset("debug"))
    return root


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> XgemPipeline:
    return XgemPipeline.from_pretrained(checkpoint, device="cpu")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


# --------------------------------------------------------------------------------------------------- shapes


def test_smoke_all_three_outputs_from_nothing(pipeline: XgemPipeline) -> None:
    made = pipeline({}, ["frontal", "lateral", "report"], seed=3, num_samples=2, **QUICK)
    assert isinstance(made, Generation)
    assert list(made) == ["frontal", "lateral", "report"]
    size = pipeline.preset.transform.size
    for image in [*made.frontal, *made.lateral]:
        assert isinstance(image, Image.Image)
        assert (image.mode, image.size) == ("L", (size, size))
    assert [type(text) for text in made.report] == [str, str]
    with pytest.raises(AttributeError, match="no 'mask', only: frontal, lateral, report"):
        _ = made.mask


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_output_types_show_the_same_image(pipeline: XgemPipeline, output_type: str) -> None:
    made = pipeline({"report": NORMAL}, "frontal", seed=3, output_type=output_type, **QUICK).frontal[0]
    size = pipeline.preset.transform.size
    shapes = {"pil": (size, size), "np": (size, size), "pt": (1, size, size)}
    values = pixels(made) if output_type == "pil" else np.asarray(made)
    assert values.shape == shapes[output_type]
    assert values.min() >= 0
    assert values.max() <= 1
    reference = pixels(pipeline({"report": NORMAL}, "frontal", seed=3, **QUICK).frontal[0])
    np.testing.assert_allclose(values.reshape(size, size), reference, atol=0.5 / 255 + 1e-6)


def test_a_batch_gives_a_list(pipeline: XgemPipeline) -> None:
    made = pipeline([{"report": NORMAL}, {"frontal": radiograph()}], "lateral", seed=1, **QUICK)
    assert [list(one) for one in made] == [["lateral"], ["lateral"]]
    assert [list(one.metadata["inputs"]) for one in made] == [["report"], ["frontal"]]
    assert isinstance(pipeline([{}], "lateral", seed=1, **QUICK), list)


# --------------------------------------------------------------------------------- what decides a sample


def same(one: Any, other: Any) -> bool:
    return one.tobytes() == other.tobytes()


def test_the_seed_decides(pipeline: XgemPipeline) -> None:
    first, again, other = (pipeline({"report": NORMAL}, "frontal", seed=s, **QUICK).frontal[0] for s in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


@torch.inference_mode()
def step_by_step(pipeline: XgemPipeline, inputs: dict[str, Any], seed: int, **options: Any) -> Image.Image:
    """A frontal image from the components alone: encode, fuse, sample, decode."""
    preset, encoded = pipeline.preset, {}
    for name, value in inputs.items():
        encoder: Any = pipeline.component(preset.encoder(name))
        encoded[name] = encoder.encode(get_modality(name).collate([get_modality(name).read(value, preset).value]))
    model: Any = pipeline.component(preset.generator("frontal"))
    noise = sample_noise(seed, "frontal", 0, model.latent_shape)[None]
    z = sample(model, model.fuse(encoded) if encoded else model.null(1), noise, **options)
    codec: Any = pipeline.component(preset.codec("frontal"))
    return get_modality("frontal").to_output(codec.decode(z), "pil")[0]


@pytest.mark.parametrize(
    "change",
    [{}, {"num_inference_steps": 3}, {"guidance_scale": 7.0}, {"sampler": "ddim"}],
    ids=lambda c: next(iter(c), "preset's"),
)
def test_sampling_options_reach_the_sample(pipeline: XgemPipeline, change: dict[str, Any]) -> None:
    made = pipeline({"report": NORMAL}, "frontal", seed=1, **{**QUICK, **change}).frontal[0]
    presets = pipeline.preset.sampling
    options = {
        "num_inference_steps": 2,
        "guidance_scale": presets.guidance_scale["frontal"],
        "sampler": presets.sampler,
    }
    assert same(made, step_by_step(pipeline, {"report": NORMAL}, 1, **{**options, **change}))
    if change:
        assert not same(made, step_by_step(pipeline, {"report": NORMAL}, 1, **options))


@pytest.mark.parametrize(
    "inputs", [{}, {"report": EFFUSION}, {"lateral": radiograph(5)}, {"report": NORMAL, "lateral": radiograph(5)}]
)
def test_the_inputs_reach_the_sample(pipeline: XgemPipeline, inputs: dict[str, Any]) -> None:
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0, "sampler": "dpmsolver++"}
    made = pipeline(inputs, "frontal", seed=1, progress=False, **options).frontal[0]
    assert same(made, step_by_step(pipeline, inputs, 1, **options))
    assert not same(made, step_by_step(pipeline, {"report": NORMAL}, 1, **options))


def test_the_order_of_inputs_and_other_outputs_change_nothing(pipeline: XgemPipeline) -> None:
    inputs: dict[str, Any] = {"frontal": radiograph(), "report": NORMAL}
    one = pipeline(inputs, "lateral", seed=1, **QUICK).lateral[0]
    assert same(one, pipeline(dict(reversed(inputs.items())), ["lateral"], seed=1, **QUICK).lateral[0])
    both = pipeline({"frontal": radiograph()}, ["lateral", "report"], seed=1, **QUICK)
    alone = pipeline({"frontal": radiograph()}, ["report"], seed=1, **QUICK)
    assert both.report == alone.report


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_batch_changes_no_sample(pipeline: XgemPipeline, batch_size: int) -> None:
    items = [{"report": NORMAL}, {"report": EFFUSION + " " + NORMAL}, {"lateral": radiograph()}]
    options: dict[str, Any] = {**QUICK, "output_type": "np", "num_samples": 2}
    together = pipeline(items, "frontal", seed=[4, 4, 9], batch_size=batch_size, **options)
    for item, seed, made in zip(items, [4, 4, 9], together, strict=True):
        alone = pipeline(item, "frontal", seed=seed, **options)
        for one, other in zip(alone.frontal, made.frontal, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    assert not np.allclose(together[0].frontal[0], together[0].frontal[1], atol=1e-3)


def test_noise_follows_seed_output_and_index_alone() -> None:
    shape = (4, 8, 8)
    one = sample_noise(1, "frontal", 0, shape)
    assert torch.equal(one, sample_noise(1, "frontal", 0, shape))
    others = [sample_noise(2, "frontal", 0, shape), sample_noise(1, "lateral", 0, shape)]
    others.append(sample_noise(1, "frontal", 1, shape))
    assert not any(torch.equal(one, other) for other in others)
    many = torch.stack([sample_noise(seed, "frontal", 0, shape) for seed in range(200)])
    assert abs(float(many.mean())) < 0.02
    assert abs(float(many.std()) - 1) < 0.02
    assert len({derived_seed(1, "report", k, purpose) for k in range(99) for purpose in ("noise", "decode")}) == 198


def test_a_generator_gives_a_seed_that_is_recorded(pipeline: XgemPipeline) -> None:
    source = torch.Generator().manual_seed(5)
    first = pipeline({}, "report", generator=source, **QUICK)
    second = pipeline({}, "report", generator=source, **QUICK)
    assert first.metadata["seed"] != second.metadata["seed"]
    again = pipeline({}, "report", generator=torch.Generator().manual_seed(5), **QUICK)
    assert again.metadata["seed"] == first.metadata["seed"]
    with pytest.raises(InputError, match="both given"):
        pipeline({}, "report", generator=source, seed=1, **QUICK)
    with pytest.raises(InputError, match=r"expected torch\.Generator"):
        pipeline({}, "report", generator=np.random.default_rng(0), **QUICK)  # type: ignore[call-overload]


def test_drawn_reports_are_seeded_and_independent_of_the_batch(pipeline: XgemPipeline) -> None:
    options: dict[str, Any] = {**QUICK, "greedy": False, "num_samples": 3, "seed": 2}
    made = pipeline({"frontal": radiograph()}, "report", **options)
    assert made.report == pipeline({"frontal": radiograph()}, "report", batch_size=1, **options).report
    assert (
        made.report
        != pipeline({"frontal": radiograph()}, "report", **cast(dict[str, Any], {**options, "seed": 3})).report
    )


def test_the_global_random_state_decides_nothing_and_stays(pipeline: XgemPipeline) -> None:
    torch.manual_seed(1)
    one = pipeline({}, "frontal", seed=1, **QUICK).frontal[0]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(one, pipeline({}, "frontal", seed=1, **QUICK).frontal[0])
    assert torch.equal(before, torch.get_rng_state())


def test_callback_sees_every_step(pipeline: XgemPipeline) -> None:
    seen: list[tuple[str, int, int, tuple[int, ...]]] = []

    def look(pipe: XgemPipeline, step: int, timestep: int, values: dict[str, Any]) -> None:
        assert pipe is pipeline
        seen.append((values["output"], step, timestep, tuple(values["latents"].shape)))

    options: dict[str, Any] = {"seed": 1, "num_inference_steps": 3, "progress": False, "callback_on_step_end": look}
    pipeline({}, ["frontal", "report"], **options)
    assert [(name, step) for name, step, _, _ in seen] == [(n, s) for s in range(3) for n in ("frontal", "report")]
    pipeline({}, ["frontal", "report"], joint=False, **options)
    alone = [(n, s) for n in ("frontal", "report") for s in range(3)]
    assert [(name, step) for name, step, _, _ in seen[6:]] == alone
    assert all(shape[0] == 1 for *_, shape in seen)
    times = [timestep for name, _, timestep, _ in seen[6:] if name == "frontal"]
    assert times == sorted(times, reverse=True)


# ----------------------------------------------------------------------------------------------- components


def test_only_what_a_request_needs_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "part")
    for name in ("text_encoder", "frontal", "report", "report_vae"):
        shutil.rmtree(tmp_path / "part" / name)
    part = XgemPipeline.from_pretrained(tmp_path / "part")
    part({"frontal": radiograph()}, "lateral", seed=1, **QUICK)
    with pytest.raises(CheckpointError, match="text_encoder"):
        part({"report": NORMAL}, "lateral", seed=1, **QUICK)
    with pytest.raises(CheckpointError, match="report"):
        part({"frontal": radiograph()}, "report", seed=1, **QUICK)


def test_components_are_read_once(checkpoint: Path) -> None:
    pipe = XgemPipeline.from_pretrained(checkpoint)
    assert pipe.component("image_vae") is pipe.component("image_vae")
    kept = pipe.component("image_vae")
    pipe.to("cpu")
    assert pipe.component("image_vae") is kept
    pipe.to(dtype="bfloat16")
    assert next(pipe.component("image_vae").parameters()).dtype == torch.bfloat16
    pipe.to(dtype="float32")
    for key, value in kept.state_dict().items():
        torch.testing.assert_close(pipe.component("image_vae").state_dict()[key], value, rtol=0, atol=0)


def test_bfloat16_runs_and_is_near(pipeline: XgemPipeline, checkpoint: Path) -> None:
    made = XgemPipeline.from_pretrained(checkpoint, dtype="bfloat16")({}, ["frontal", "report"], seed=1, **QUICK)
    assert made.metadata["dtype"] == "bfloat16"
    reference = pipeline({}, "frontal", seed=1, **QUICK)
    assert np.abs(pixels(made.frontal[0]) - pixels(reference.frontal[0])).mean() < 0.05


@pytest.mark.parametrize("stage", ["missing", "truncated", "swapped"])
def test_a_harmed_checkpoint_makes_nothing(checkpoint: Path, tmp_path: Path, stage: str) -> None:
    root = tmp_path / "harmed"
    shutil.copytree(checkpoint, root)
    weights = root / "lateral" / "model.safetensors"
    if stage == "missing":
        weights.unlink()
    elif stage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        shutil.copyfile(root / "frontal" / "model.safetensors", weights)
    with pytest.raises(CheckpointError, match=r"lateral/model\.safetensors"):
        XgemPipeline.from_pretrained(root)({"frontal": radiograph()}, "lateral", seed=1, **QUICK)


def test_an_index_whose_preset_is_not_valid(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "bad")
    index = json.loads((tmp_path / "bad" / "model_index.json").read_text())
    index["preset"]["sampling"]["sampler"] = "euler"
    (tmp_path / "bad" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"sampling\.sampler"):
        XgemPipeline.from_pretrained(tmp_path / "bad")


def test_save_pretrained_gives_the_same_pipeline(pipeline: XgemPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    again = XgemPipeline.from_pretrained(tmp_path / "saved")
    assert again.hash == pipeline.hash
    one, other = (pipe({}, "lateral", seed=1, **QUICK).lateral[0] for pipe in (pipeline, again))
    assert same(one, other)
    with pytest.raises(OutputError, match="not an empty folder"):
        pipeline.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-model", "no folder, no hub id"),
        ("./no/such/folder", "no folder, no hub id"),
        (Path("owner/name"), "no folder, no hub id"),
        ("owner/name", "no such folder here, not in the local cache"),
    ],
)
def test_models_that_are_not_there(model: Any, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=message) as raised:
        XgemPipeline.from_pretrained(model)
    assert "\n" not in str(raised.value)


def test_a_hub_id_is_fetched_as_safetensors_and_json_only(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    pipe = XgemPipeline.from_pretrained("owner/name", revision="v1")
    assert pipe.name == "owner/name@v1"
    assert asked == {
        "name": "owner/name",
        "revision": "v1",
        "allow_patterns": ["*.safetensors", "*.json", "*.md", "*.txt"],
    }
    with pytest.raises(InputError, match="not a hub id"):
        XgemPipeline.from_pretrained(checkpoint, revision="v1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "not available here, expected one of: .*cpu"),
        ({"device": "toaster"}, "not known, expected one of: .*cpu"),
        ({"device": "meta"}, "not available here"),
        ({"device": "cpu", "dtype": "float16"}, "not available on the cpu"),
        ({"device": "cpu", "dtype": "float8"}, "expected one of: float32, bfloat16, float16"),
        ({"device": "cpu", "dtype": torch.int8}, "expected one of: float32, bfloat16, float16"),
    ],
)
def test_devices_and_dtypes_that_are_not_there(pipeline: XgemPipeline, options: dict[str, Any], message: str) -> None:
    for ask in (
        lambda: XgemPipeline.from_pretrained(pipeline.root, **options),
        lambda: pipeline({}, "report", **QUICK, **options),
    ):
        with pytest.raises(DeviceError, match=message):
            ask()
    assert (str(pipeline.device), pipeline.dtype) == ("cpu", torch.float32)


@pytest.mark.gpu
def test_a_gpu_makes_nearly_what_the_cpu_makes(pipeline: XgemPipeline, checkpoint: Path) -> None:
    options: dict[str, Any] = {**QUICK, "output_type": "np", "seed": 1}
    on_gpu = XgemPipeline.from_pretrained(checkpoint, device="cuda")({"report": NORMAL}, "frontal", **options)
    on_cpu = pipeline({"report": NORMAL}, "frontal", **options)
    np.testing.assert_allclose(on_gpu.frontal[0], on_cpu.frontal[0], atol=0.02)


# ---------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"report": ""}, "report"),
        ({"report": " \n\t"}, "report"),
        ({"report": 5}, "report"),
        ({"frontal": "no-such-file.png"}, "no-such-file.png"),
        ({"frontal": np.zeros((64, 64), dtype=np.float32)}, "constant"),
        ({"frontal": radiograph() * 3}, "range|between|0, 1"),
        ({"frontal": radiograph()[:16, :16]}, "32"),
        ({"frontal": np.full((64, 64), np.nan, dtype=np.float32)}, "(?i)nan|infinite|finite"),
    ],
)
def test_bad_inputs_are_one_line(pipeline: XgemPipeline, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        pipeline(inputs, "lateral", seed=1, **QUICK)
    assert "\n" not in str(raised.value)


def test_a_report_that_is_too_long_is_flagged(pipeline: XgemPipeline, caplog: pytest.LogCaptureFixture) -> None:
    long = "Heart size is normal. " * 200
    made = pipeline({"report": long}, "frontal", seed=1, **QUICK)
    assert made.metadata["inputs"]["report"]["truncated"] is True
    assert any("truncated" in note for note in made.metadata["inputs"]["report"]["notes"])
    assert "truncated" in caplog.text
    short = pipeline({"report": NORMAL}, "frontal", seed=1, **QUICK)
    assert "truncated" not in short.metadata["inputs"]["report"]


def test_the_last_bad_input_of_a_batch_stops_all(pipeline: XgemPipeline) -> None:
    steps: list[int] = []
    with pytest.raises(InputError):
        pipeline(
            [{"report": NORMAL}, {"report": ""}],
            "frontal",
            progress=False,
            callback_on_step_end=lambda _pipe, step, _time, _values: steps.append(step),
        )
    assert not steps


# -------------------------------------------------------------------------------------------------- the API


def test_generate_keeps_the_model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = xgem.generate({"report": NORMAL}, "frontal", model=checkpoint, device="cpu", seed=1, **QUICK)
    monkeypatch.setattr("xgem.checkpoints.store.load_component", lambda *_, **__: pytest.fail("read again"))
    two = xgem.generate({"report": NORMAL}, "frontal", model=str(checkpoint), device="cpu", seed=1, **QUICK)
    assert same(one.frontal[0], two.frontal[0])


def test_load_gives_a_pipeline_that_generate_takes(checkpoint: Path) -> None:
    pipe = xgem.load(checkpoint)
    assert isinstance(pipe, xgem.XgemPipeline)
    assert list(xgem.generate({}, "report", model=pipe, seed=1, **QUICK)) == ["report"]


def test_contexts_are_padded_and_masked_to_one_width() -> None:
    from xgem.encoders.fusion import stack

    def context(length: int) -> Context:
        return Context(torch.ones(1, length, 3), torch.ones(1, length, dtype=torch.bool), torch.ones(1, 2))

    stacked = stack([context(2), context(4)], 5)
    assert stacked.tokens.shape == (2, 5, 3)
    assert stacked.mask.tolist() == [[True] * 2 + [False] * 3, [True] * 4 + [False]]
    assert not stacked.tokens[0, 2:].any()
