"""Several candidates a sample: the one that agrees best with the prompts is kept, and replays alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.replay import replay
from xgem.types import InputError

QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False}
TEXT = "Large left pleural effusion."


def cosine(pipeline: XgemPipeline, image: Any, text: str) -> float:
    a, b = pipeline.embed("frontal", np.asarray(image)[None])[0], pipeline.embed("report", [text])[0]
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_candidate_that_agrees_best_is_kept(pipeline: XgemPipeline) -> None:
    made = pipeline({"report": TEXT}, "frontal", seed=3, num_samples=2, num_candidates=4, **QUICK)
    first = pipeline({"report": TEXT}, "frontal", seed=3, num_samples=2, **QUICK)
    for i, (kept, own) in enumerate(zip(made.frontal, first.frontal, strict=True)):
        said = made.sample_metadata("frontal", i)
        assert said["candidates"]["count"] == 4
        assert said["sample"] == i
        assert said["candidates"]["agreement"] == pytest.approx(cosine(pipeline, kept, TEXT), abs=1e-4)
        assert said["candidates"]["agreement"] >= cosine(pipeline, own, TEXT) - 1e-6
        # The first candidate is the sample itself
        assert (said["candidates"]["chosen"] == 0) == (said["seed"] == 3) == (kept.tobytes() == own.tobytes())
    assert any(made.sample_metadata("frontal", i)["candidates"]["chosen"] for i in range(2))


def test_it_is_the_same_in_any_batch_and_replays_alone(pipeline: XgemPipeline, tmp_path: Path) -> None:
    options = {**QUICK, "seed": 3, "num_samples": 2, "num_candidates": 3}
    made, narrow = (pipeline({"report": TEXT}, "frontal", batch_size=size, **options) for size in (16, 2))
    for a, b in zip(made.frontal, narrow.frontal, strict=True):
        assert np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 1
    for file in made.save(tmp_path / "out"):
        again = replay(file, model=pipeline, progress=False)
        assert again.identical
        (path,) = again.generation.save(tmp_path / f"again-{file.stem}")
        assert path.read_bytes() == file.read_bytes()


def test_joint_outputs_are_chosen_together(pipeline: XgemPipeline) -> None:
    made = pipeline({}, ["frontal", "lateral"], seed=5, num_candidates=4, **QUICK)
    said = [made.sample_metadata(name, 0) for name in ("frontal", "lateral")]
    assert said[0]["candidates"] == said[1]["candidates"]
    assert said[0]["seed"] == said[1]["seed"]
    a, b = (pipeline.embed(name, np.asarray(made.outputs[name][0])[None])[0] for name in ("frontal", "lateral"))
    expected = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert said[0]["candidates"]["agreement"] == pytest.approx(expected, abs=1e-4)


def test_where_nothing_can_be_compared_it_is_refused(pipeline: XgemPipeline) -> None:
    with pytest.raises(InputError, match=r"num_candidates: nothing tells candidates for frontal apart \(no input\)"):
        pipeline({}, "frontal", num_candidates=2, **QUICK)
    with pytest.raises(InputError, match="another output_type than 'latent'"):
        pipeline({"report": TEXT}, "frontal", num_candidates=2, output_type="latent", **QUICK)
    with pytest.raises(InputError, match="num_candidates is 0"):
        pipeline({"report": TEXT}, "frontal", num_candidates=0, **QUICK)
