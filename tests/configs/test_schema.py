"""Presets: what is refused, in one line that names the place; what is accepted fits together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from xgem.configs.preset import Preset, load_preset, preset_names
from xgem.types import ConfigError


@pytest.fixture
def debug() -> dict[str, Any]:
    """The debug preset as plain values, to be spoiled."""
    return copy.deepcopy(load_preset("debug").model_dump(mode="json"))


def refused(data: Any) -> str:
    """The message of the ConfigError that ``data`` raises; one line."""
    with pytest.raises(ConfigError) as caught:
        Preset.parse(data, "here.yaml")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("here.yaml: ")
    return text


def test_a_preset_survives_json_and_yaml(debug: dict[str, Any], tmp_path: Path) -> None:
    assert Preset.parse(debug, "json") == load_preset("debug")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(debug), encoding="utf-8")
    assert load_preset(tmp_path / "mine.yaml") == load_preset("debug")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no-such-preset") as caught:
        load_preset("no-such-preset")
    assert all(name in str(caught.value) for name in preset_names())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name: [unclosed", "not valid YAML"),
        (b"name: a\n\tb: c", "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "preset"),
        (b"- a\n- b\n", "preset"),
    ],
)
def test_a_file_that_is_no_preset(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_preset(path)
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_preset(tmp_path / "absent.yml")


@pytest.mark.parametrize(
    "place",
    [(), ("transform",), ("components", "frontal"), ("components", "frontal", "diffusion"), ("train", "clip")],
    ids=lambda place: ".".join(place) or "top",
)
def test_an_unknown_key_is_named(debug: dict[str, Any], place: tuple[str, ...]) -> None:
    inner = debug
    for part in place:
        inner = inner[part]
    inner["wdith"] = 3
    text = refused(debug)
    assert "wdith" in text
    assert all(part in text for part in place)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("transform", "size"), 3),
        (("transform", "interpolation"), "nearest"),
        (("components", "frontal", "context"), "both"),
        (("components", "frontal", "null_probability"), 1.5),
        (("components", "frontal", "diffusion", "prediction_type"), "sample"),
        (("components", "frontal", "kind"), "video_generator"),
        (("train", "clip", "steps"), 0),
        (("train", "clip", "learning_rate"), "fast"),
        (("sampling", "sampler"), "euler"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_value_is_named(debug: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    inner = debug
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    text = refused(debug)
    assert repr(value) in text
    assert place[-2] in text


def test_a_generator_may_not_list_its_own_target(debug: dict[str, Any]) -> None:
    debug["components"]["frontal"]["prompts"] = ["frontal", "report"]
    assert "own target 'frontal'" in refused(debug)


def test_a_generator_may_not_list_an_unknown_prompt(debug: dict[str, Any]) -> None:
    debug["components"]["frontal"]["prompts"] = ["ecg", "report"]
    assert "unknown prompts ['ecg']" in refused(debug)


@pytest.mark.parametrize("part", ["encoder", "codec", "generator"])
def test_a_modality_may_not_name_an_unknown_component(debug: dict[str, Any], part: str) -> None:
    debug["modalities"]["lateral"][part] = "nothing"
    text = refused(debug)
    assert "'lateral'" in text
    assert "'nothing'" in text


@pytest.mark.parametrize(
    ("part", "other"), [("encoder", "report_vae"), ("codec", "text_encoder"), ("generator", "image_vae")]
)
def test_a_modality_may_not_use_a_component_as_what_it_is_not(debug: dict[str, Any], part: str, other: str) -> None:
    debug["modalities"]["lateral"][part] = other
    assert repr(other) in refused(debug)


@pytest.mark.parametrize(
    ("component", "field", "value"),
    [
        ("image_encoder", "image_size", 64),
        ("image_vae", "image_size", 64),
        ("image_vae", "latent_channels", 8),
        ("image_vae", "patch", 2),
        ("report_vae", "latent_dim", 32),
        ("text_encoder", "embed_dim", 64),
        ("text_encoder", "width", 64),
        ("frontal", "modality", "lateral"),
        ("report_vae", "pretrained_encoder", "bert-base-cased"),
    ],
)
def test_sizes_that_do_not_fit_one_another(debug: dict[str, Any], component: str, field: str, value: Any) -> None:
    debug["components"][component][field] = value
    refused(debug)


def test_only_an_encoder_that_resizes_may_have_another_size(debug: dict[str, Any]) -> None:
    debug["components"]["image_encoder"] |= {"image_size": 64, "resize": True}
    encoder: Any = Preset.parse(debug, "here.yaml").components["image_encoder"]
    assert (encoder.image_size, encoder.resize) == (64, True)
    debug["components"]["image_encoder"]["resize"] = False
    assert "64" in refused(debug)


def test_tokens_of_another_width_are_fine_only_where_the_pooled_vector_alone_is_used(debug: dict[str, Any]) -> None:
    debug["components"]["text_encoder"]["width"] = 64
    assert "width" in refused(debug)
    for name in ("frontal", "lateral"):
        debug["components"][name]["context"] = "pooled"
    encoder: Any = Preset.parse(debug, "here.yaml").components["text_encoder"]
    assert encoder.width == 64
