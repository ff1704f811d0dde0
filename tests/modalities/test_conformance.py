"""What every modality of the registry has to do. A new one needs a line in ``EXAMPLES`` and no test of its own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xgem.data.captions import preface
from xgem.generators.sampling import sample
from xgem.modalities import MODALITIES, Modality, get_modality
from xgem.types import InputError, Prompt


def _image(seed: int) -> np.ndarray:
    y, x = np.mgrid[0:48, 0:64] / 48
    waves = 0.5 + 0.2 * np.sin(4 * x + seed) + 0.2 * np.cos(5 * y - seed)
    return (waves + np.random.default_rng(seed).normal(0, 0.02, y.shape)).clip(0, 1).astype(np.float32)


def _mask(row: int) -> np.ndarray:
    mask = np.zeros((48, 64), np.uint8)
    mask[row : row + 12, 8:40] = 255
    return mask


def _box(x: float, label: str = "mass", w: float = 0.3) -> list[dict[str, Any]]:
    return [{"label": label, "bbox": [x, 0.2, w, 0.3]}]


# Three values that a user may give, and one that is refused.
EXAMPLES: dict[str, tuple[list[Any], Any]] = {
    "frontal": ([_image(1), _image(2), _image(3)], np.zeros((64, 64), np.float32)),
    "lateral": ([_image(4), _image(5), _image(6)], np.full((64, 64), np.nan, np.float32)),
    "mask": ([{"heart": _mask(4)}, {"heart": _mask(20)}, {"device": _mask(4)}], {"heart": np.zeros((48, 64))}),
    "boxes": ([_box(0.1), _box(0.2), _box(0.1, "nodule")], _box(0.8)),
    "severity": ([0, 7.5, "18"], 18.1),
    "demographics": ([{"sex": "F", "age": 71}, "sex:F", {"sex": "M", "age": 71, "race": "Black"}], {"age": -1}),
    "report": (["Clear lungs.", "Large left pleural effusion.", "No acute disease. Heart size is normal."], "  "),
}
OUTPUTS = sorted(name for name, modality in MODALITIES.items() if modality.is_output)
INPUTS_ONLY = sorted(MODALITIES.keys() - OUTPUTS)


@pytest.fixture(params=OUTPUTS)
def modality(request: pytest.FixtureRequest) -> Modality:
    return get_modality(request.param)


@pytest.fixture
def prompts(modality: Modality, debug_preset: Any) -> list[Prompt]:
    return [modality.read(value, debug_preset) for value in EXAMPLES[modality.name][0]]


@pytest.fixture
def batch(modality: Modality, prompts: list[Prompt]) -> Any:
    return modality.collate([prompt.value for prompt in prompts])


def parts_of(modality: Modality, preset: Any, parts: dict[str, Any]) -> tuple[Any, Any, Any]:
    settings = preset.modalities[modality.name]
    return parts[settings.encoder], parts[settings.codec], parts[settings.generator]


def test_every_modality_has_an_example() -> None:
    assert set(EXAMPLES) == set(MODALITIES)
    assert all(name == modality.name for name, modality in MODALITIES.items())


def test_an_unknown_modality_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'ecg'") as caught:
        get_modality("ecg")
    assert all(name in str(caught.value) for name in MODALITIES)


@pytest.mark.parametrize("name", MODALITIES)
def test_reading_identifies_the_content(name: str, debug_preset: Any) -> None:
    prompts, again = ([get_modality(name).read(value, debug_preset) for value in EXAMPLES[name][0]] for _ in range(2))
    assert [prompt.sha256 for prompt in again] == [prompt.sha256 for prompt in prompts]
    assert len({prompt.sha256 for prompt in prompts}) == 3
    assert all(len(prompt.sha256) == 64 and prompt.origin for prompt in prompts)


@pytest.mark.parametrize("name", MODALITIES)
def test_a_bad_value_is_refused_in_one_line(name: str, debug_preset: Any) -> None:
    for value in (EXAMPLES[name][1], None, [], -3):
        with pytest.raises(InputError) as caught:
            get_modality(name).read(value, debug_preset)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MODALITIES)
def test_what_is_no_prompt_steers_and_a_prompt_does_not(name: str, debug_preset: Any) -> None:
    """By an annotation on the preset's grid, or words in front of a text."""
    modality = get_modality(name)
    for value in EXAMPLES[name][0]:
        prompt = modality.read(value, debug_preset)
        annotation, words = modality.annotation(prompt.value), preface(**modality.preface(prompt.value))
        assert (annotation is not None or words != "") == (name in INPUTS_ONLY)
        if annotation is not None:
            assert annotation.size == (debug_preset.transform.size,) * 2


@pytest.mark.parametrize("name", INPUTS_ONLY)
def test_an_input_only_has_no_batch_and_is_no_output(name: str, debug_preset: Any) -> None:
    modality = get_modality(name)
    value = modality.read(EXAMPLES[name][0][0], debug_preset).value
    with pytest.raises(InputError, match=f"{name}: no encoder takes it"):
        modality.collate([value])
    with pytest.raises(InputError, match=f"{name}: is an input only"):
        modality.to_output([value], "pil")


@torch.no_grad()
def test_round_trip(modality: Modality, batch: Any, debug_preset: Any, debug_parts: dict[str, Any]) -> None:
    """Codec there and back: the generator's latent shape, and a batch like the one that went in."""
    _, codec, generator = parts_of(modality, debug_preset, debug_parts)
    z = codec.encode(batch)
    assert z.shape == (3, *codec.latent_shape)
    assert codec.latent_shape == generator.latent_shape
    assert torch.isfinite(z).all()
    decoded = codec.decode(z)
    assert type(decoded) is type(batch)
    assert len(decoded) == 3
    if isinstance(batch, Tensor):
        assert decoded.shape == batch.shape


@torch.no_grad()
def test_prompts_have_one_vector_and_tokens(
    modality: Modality, batch: Any, debug_preset: Any, debug_parts: dict[str, Any]
) -> None:
    encoder, _, _ = parts_of(modality, debug_preset, debug_parts)
    encoded = encoder.encode(batch)
    assert encoded.pooled.shape[0] == encoded.tokens.shape[0] == 3
    assert encoded.mask.shape == encoded.tokens.shape[:2]
    torch.testing.assert_close(encoded.pooled.norm(dim=1), torch.ones(3))
    assert float(torch.pdist(encoded.pooled).min()) > 1e-5


@pytest.mark.parametrize("context", ["tokens", "pooled"])
def test_the_loss_is_finite_and_reaches_every_prompt_encoder(
    modality: Modality, batch: Any, debug_preset: Any, debug_parts: dict[str, Any], context: str
) -> None:
    """One training step of this modality's generator, with encoders that are not frozen."""
    from xgem.convert.random_init import random_component

    _, codec, _ = parts_of(modality, debug_preset, debug_parts)
    settings = debug_preset.components[debug_preset.modalities[modality.name].generator]
    torch.manual_seed(0)
    generator: Any = random_component(settings.model_copy(update={"context": context}))
    with torch.no_grad():
        z0 = codec.encode(batch)
    encoders, encoded = {}, {}
    for name in settings.prompts:
        other = get_modality(name)
        values = [other.read(value, debug_preset).value for value in EXAMPLES[name][0]]
        encoders[name] = copy.deepcopy(debug_parts[debug_preset.modalities[name].encoder])
        encoded[name] = encoders[name].encode(other.collate(values))
    z, target = generator.noisy(z0, torch.randn_like(z0), torch.tensor([1, 300, 999]))
    loss = torch.nn.functional.mse_loss(generator(z, torch.tensor([1, 300, 999]), generator.fuse(encoded)), target)
    loss.backward()
    assert torch.isfinite(loss)
    for name, encoder in encoders.items():
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        assert max(float(g.abs().max()) for g in gradients) > 0, name
        assert all(torch.isfinite(g).all() for g in gradients), name
    fusion = {name: p.grad for name, p in generator.fusion.named_parameters() if name != "null_token"}
    assert fusion
    for name, gradient in fusion.items():
        assert gradient is not None, name
        assert float(gradient.abs().max()) > 0, name


@torch.no_grad()
def test_generation_is_decided_by_its_noise(
    modality: Modality, debug_preset: Any, debug_parts: dict[str, Any], tmp_path: Path
) -> None:
    _, codec, generator = parts_of(modality, debug_preset, debug_parts)
    files = []
    for run, seed in enumerate((5, 5, 6)):
        noise = torch.randn(1, *generator.latent_shape, generator=torch.Generator().manual_seed(seed))
        z = sample(generator, generator.null(1), noise, num_inference_steps=2, guidance_scale=1.0)
        decoded = codec.decode(z)
        (tmp_path / str(run)).mkdir()
        (output,) = modality.to_output(decoded, "pil")
        path = modality.write(output, tmp_path / str(run), "made", {"seed": 1})
        assert path is not None
        files.append((path.read_bytes(), z))
    assert files[0][0] == files[1][0]
    assert torch.equal(files[0][1], files[1][1])
    assert not torch.equal(files[0][1], files[2][1])


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_outputs_can_be_written_with_their_metadata_and_read_back(
    modality: Modality, batch: Any, debug_preset: Any, tmp_path: Path, output_type: Any
) -> None:
    outputs = modality.to_output(batch, output_type)
    assert len(outputs) == 3
    path = modality.write(outputs[1], tmp_path, "two", {"seed": 7, "note": "größer"})
    assert path is not None
    assert path == tmp_path / f"two{modality.suffix}"
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir()).decode("utf-8", "replace")
    assert '"seed": 7' in kept
    assert "größer" in kept
    given = path if modality.suffix != ".txt" else path.read_text(encoding="utf-8")
    again = modality.collate([modality.read(given, debug_preset).value])
    expected = batch[1:2]
    if isinstance(batch, Tensor):
        torch.testing.assert_close(again, expected, rtol=0, atol=1.01 / 127.5)
    else:
        assert again == expected


def test_outputs_are_dicom_objects_with_their_metadata(modality: Modality, batch: Any, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    from xgem.dicom.identity import Identity
    from xgem.dicom.stored import metadata_text, sample_in

    output = modality.to_output(batch, "pil")[1]
    metadata = {"output": modality.name, "outputs": [modality.name], "note": "größer", "xgem": "1", "seed": 7}
    ds = modality.to_dicom(output, Identity(metadata | {"checkpoint": {"name": "random", "hash": "12ab"}}))
    assert ds is not None
    ds.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    assert {"note": "größer", "seed": 7}.items() <= json.loads(metadata_text(tmp_path / "one.dcm")).items()
    stored = sample_in(tmp_path / "one.dcm")
    assert stored == output if isinstance(stored, str) else stored.tobytes() == output.tobytes()
