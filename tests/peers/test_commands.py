"""Peers in the commands: cohorts, evaluation, replay, what doctor and params say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from xgem.data.manifest import Manifest, Row
from xgem.eval.schema import read_record
from xgem.pipeline.replay import replay

Pipelines = Callable[[str], Path]
TEXTS = ("No acute disease.", "Large left pleural effusion.", "Cardiomegaly.", "Clear lungs.")
LABELS = (("normal",), ("Pleural Effusion",), ("Cardiomegaly",), ("normal",))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for i in range(20):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        common: dict[str, Any] = {"study": f"s{i:02d}", "subject": f"s{i:02d}", "split": "val" if i < 8 else "train"}
        common |= {"impression": TEXTS[i % 4], "labels": LABELS[i % 4], "source": "openi"}
        rows.append(Row(view="frontal", file=f"{i}.png", **common))
    Manifest(tuple(rows), folder).write(folder / "data.jsonl")
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def model(pipelines: Pipelines) -> str:
    return f"diffusers:{pipelines('sana')}"


def test_a_cohort_is_made_measured_and_replayed(xgem: Any, model: str, data: Path, tmp_path: Path) -> None:
    plan = {"name": "peers", "model": model, "outputs": ["frontal"], "num_inference_steps": 2, "batch_size": 4}
    plan["matched"] = {"manifest": str(data), "split": "val", "inputs": ["report"]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    cohort = tmp_path / "cohort"
    ran = xgem("cohort", tmp_path / "plan.yaml", "--out", cohort, "--device", "cpu", "--no-progress")
    assert ran.code == 0, ran.err
    assert "8 studies, 8 frontal" in ran.out
    record = json.loads((cohort / "cohort.json").read_text())
    assert record["requests"][0]["sampler"] == "DPMSolverMultistepScheduler"
    assert record["requests"][0]["guidance_scale"] == {"frontal": 4.5}
    image = sorted((cohort / "images").rglob("*.png"))[5]
    assert replay(image, model=model, progress=False).identical
    out = tmp_path / "fidelity"
    options = ("--extractor", "mobilenet-v2", "--bootstrap", "10", "--device", "cpu", "--no-progress")
    ran = xgem("eval", "fidelity", "--real", data, "--split", "val", "--generated", cohort, "--out", out, *options)
    assert ran.code == 0, ran.err
    (family,) = read_record(out / "fidelity.json").families
    assert next(one for one in family.metrics if one.name == "fid").value


def test_plans_that_a_peer_cannot_follow(xgem: Any, model: str, tmp_path: Path) -> None:
    for field, message in {
        "outputs: [lateral]": "cannot generate 'lateral'",
        "outputs: [frontal]\nsampler: ddim": "sampler 'ddim'",
        "outputs: [frontal]\nnum_candidates: 2": "num_candidates: ",
    }.items():
        plan = f"name: x\nmodel: {json.dumps(model)}\nbalanced: {{findings: [Edema], count: 1}}\n{field}\n"
        (tmp_path / "plan.yaml").write_text(plan)
        ran = xgem("cohort", tmp_path / "plan.yaml", "--dry-run")
        assert (ran.code, message in ran.err) == (2, True), ran.err


def test_generate_and_replay(xgem: Any, model: str, tmp_path: Path) -> None:
    common = ("--no-progress", "--device", "cpu")
    ran = xgem(
        "generate", "--model", model, "--report", "Effusion.", "--outputs", "frontal", "--num-inference-steps", 2,
        "--out", tmp_path / "out", *common,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    file = tmp_path / "out" / "frontal.png"
    assert xgem("replay", file, "--model", model, "--out", tmp_path / "again", *common).code == 0
    ran = xgem("replay", file, "--out", tmp_path / "third", *common)
    assert ran.code == 1
    assert "give it as model" in ran.err


def test_doctor_and_params(xgem: Any, model: str, tmp_path: Path) -> None:
    ran = xgem("doctor", "--model", model, "--json")
    (entry,) = json.loads(ran.out)["checkpoints"]
    assert entry["problem"] is None
    assert entry["components"] == ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"]
    ran = xgem("doctor", "--model", f"diffusers:{tmp_path}", "--json")
    assert ran.code == 1
    assert "has no model_index.json" in json.loads(ran.out)["checkpoints"][0]["problem"]
    counts = json.loads(xgem("params", model, "--json").out)
    assert counts["preset"] == "SanaPipeline"
    assert counts["components"]["transformer"]["kind"] == "SanaTransformer2DModel"
    assert counts["total"] == sum(one["parameters"] for one in counts["components"].values()) > 10_000
    assert xgem("params", model, "--set", "transformer.width=3").code == 2


@pytest.mark.slow
def test_routes_and_prompts(xgem: Any, model: str, data: Path, tmp_path: Path) -> None:
    """From texts to frontals alone: the other route is left out, and says why."""
    options = ("--num-inference-steps", 2, "--bootstrap", 10, "--batch-size", 8, "--device", "cpu", "--no-progress")
    common = ("--model", model, "--data", data)
    ran = xgem("eval", "routes", *common, "--out", tmp_path / "routes", "--num-samples", 1, *options)
    assert ran.code == 0, ran.err
    results = read_record(tmp_path / "routes" / "routes.json").families
    assert {one.family for one in results if one.route == "T->F"} == {"fidelity", "factual", "agreement"}
    (left_out,) = [one for one in results if one.route == "F->T"]
    assert "makes no report" in left_out.model_dump_json()
    ran = xgem("eval", "prompts", *common, "--out", tmp_path / "prompts", "--seeds", 2, *options)
    assert ran.code == 0, ran.err
