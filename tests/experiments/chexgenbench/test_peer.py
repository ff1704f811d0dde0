"""A text-to-image pipeline of diffusers takes part as a model of xgem does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.peers.tiny import tiny
from xgem.cli import main
from xgem.eval.schema import read_record


def test_images_of_a_peer_are_generated_and_measured(values: dict[str, Any], tmp_path: Path) -> None:
    models = [{"name": "peer", "model": f"diffusers:{tiny('sana', tmp_path)}", "sampling": {"num_inference_steps": 1}}]
    changed = values | {"models": models, "parts": ["fidelity", "privacy"]}
    changed["fidelity"] = values["fidelity"] | {"spaces": ["mobilenet-v2"]}
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(yaml.safe_dump(changed), encoding="utf-8")
    assert main(["bench", "chexgenbench", str(plan), "--out", str(out), "--no-progress"]) == 0
    for part, name, count in (("fidelity", "fid", 10), ("privacy", "pixel_distance", 4)):
        (family,) = read_record(out / "models" / "peer" / part / f"{part}.json").families
        measured = [one.value for one in family.metrics if one.name == name and one.value and not one.of]
        assert measured
        assert measured[0].n >= count
    assert "| peer |" in (out / "README.md").read_text(encoding="utf-8")
