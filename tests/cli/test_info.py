"""``xgem params`` and ``xgem doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xgem.checkpoints.store import checkpoint_hash, load_component
from xgem.cli.info import count_parameters
from xgem.configs.preset import load_preset, preset_names


@pytest.mark.parametrize("preset", ["debug", "openi-256"])
def test_params_are_counted_by_component(xgem: Any, preset: str) -> None:
    counts = json.loads(xgem("params", preset, "--json").out)
    assert counts["preset"] == preset
    assert set(counts["components"]) == {
        "image_encoder", "text_encoder", "image_vae", "report_vae", "frontal", "lateral", "report", "alignment",
    }  # fmt: skip
    assert counts["total"] == sum(entry["parameters"] for entry in counts["components"].values())
    assert all(entry["parameters"] > 0 for entry in counts["components"].values())


def test_params_are_those_of_the_built_components(xgem: Any, model: Path) -> None:
    counts = json.loads(xgem("params", model, "--json").out)
    for name, entry in counts["components"].items():
        built = sum(parameter.numel() for parameter in load_component(model, name).parameters())
        assert entry["parameters"] == built, name


def test_params_as_a_table(xgem: Any) -> None:
    ran = xgem("params", "debug")
    assert ran.code == 0
    assert "image_vae" in ran.out
    assert "all" in ran.out


def test_params_say_where_a_preset_differs_from_its_paper(xgem: Any) -> None:
    preset = load_preset("chexgen-xl2-512")
    counts = json.loads(xgem("params", "chexgen-xl2-512", "--json").out)
    assert (tuple(counts["deviations"]), tuple(counts["assumptions"])) == (preset.deviations, preset.assumptions)
    shown = " ".join(xgem("params", "chexgen-xl2-512").out.split())
    texts = ("Differs from the paper:", *preset.deviations, "Not stated in the paper:", *preset.assumptions)
    places = [shown.index(" ".join(text.split())) for text in texts]
    assert places == sorted(places)
    assert "the paper" not in xgem("params", "debug").out


def test_params_of_other_settings(xgem: Any) -> None:
    larger = [f"{part}.{setting}" for part in ("frontal_dit", "control") for setting in ("width=2048", "heads=32")]
    settings = [word for setting in larger for word in ("--set", setting)]
    counts = json.loads(xgem("params", "chexgen-small", *settings, "--json").out)["components"]
    wide, small = counts["frontal_dit"]["parameters"], count_parameters("chexgen-small")["components"]["frontal_dit"]
    assert wide > 50 * small["parameters"]
    pyramid = count_parameters("debug", ["image_encoder.stem=pyramid"])  # a field that presets without it do not record
    assert pyramid["total"] != count_parameters("debug")["total"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("frontal_dit.width", "expected NAME.FIELD=VALUE"),
        ("width=3", "expected NAME.FIELD=VALUE"),
        ("dit.width=3", "no component 'dit', only text_encoder, image_vae, frontal_dit"),
        ("frontal_dit.depths=3", "no field 'depths', only"),
        ("frontal_dit.kind=text_encoder", "no field 'kind'"),
        ("frontal_dit.width=wide", "frontal_dit.width=wide: components.frontal_dit"),
        ("frontal_dit.heads=7", "divisible by 7 heads, got 192"),
        ("frontal_dit.context_dim=7", "has width 192"),
        ("frontal_dit.width=[", "not valid YAML"),
        (
            "frontal_dit.width=384",
            "preset: 'control' is of another architecture than 'frontal_dit': expected fewer blocks",
        ),
    ],
)
def test_settings_that_do_not_fit(xgem: Any, setting: str, said: str) -> None:
    ran = xgem("params", "chexgen-small", "--set", setting)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_an_unknown_preset_lists_the_known_ones(xgem: Any) -> None:
    ran = xgem("params", "no-such-preset")
    assert ran.code == 2
    assert all(name in ran.err for name in preset_names())


def test_doctor_says_what_is_here(xgem: Any, model: Path) -> None:
    ran = xgem("doctor", "--model", model, "--json")
    report = json.loads(ran.out)
    assert "cpu" in report["devices"]
    assert report["packages"]["torch"]
    (checkpoint,) = report["checkpoints"]
    assert checkpoint["hash"] == checkpoint_hash(model)
    assert len(checkpoint["components"]) == 8
    assert checkpoint["problem"] is None
    assert ran.code == int(bool(report["problems"]))


def test_doctor_finds_a_harmed_checkpoint(xgem: Any, model: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "harmed")
    weights = tmp_path / "harmed" / "report" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    ran = xgem("doctor", "--model", tmp_path / "harmed")
    assert ran.code == 1
    assert "report/model.safetensors" in ran.out.replace("\n", "")
    assert xgem("doctor", "--model", "no-such-model").code == 1
