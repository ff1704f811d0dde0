"""The commands: from cohorts of a model to a study, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import Ran
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.readers.study import open_study
from xgem.readers.task import REAL


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of four drawn studies with both views and a report."""
    root = tmp_path_factory.mktemp("drawn")
    rows: list[Row] = []
    for name in "abcd":
        common: dict[str, Any] = {"study": name, "subject": name, "split": "test", "source": "drawn", "licence": "free"}
        for view in ("frontal", "lateral"):
            y, x = np.mgrid[0:48, 0:64] / 48
            pixels = 128 + 100 * np.sin((ord(name) % 7 + 2) * x + len(view)) * np.cos(4 * y)
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{name}-{view}.png")
            rows.append(Row(view=view, file=f"{name}-{view}.png", impression=f"Finding {name}.", **common))
    Manifest(tuple(rows), root).write(root / "real.parquet")
    return root / "real.parquet"


def test_cohorts_of_a_model_become_a_study(
    real: Path, debug_checkpoint: Path, tmp_path: Path, xgem: Callable[..., Ran]
) -> None:
    """Each part of the synthetic arm from a cohort that was generated from what the task shows beside it."""
    routes = {"frontal": ["report"], "lateral": ["frontal"], "report": ["frontal", "lateral"]}
    for output, inputs in routes.items():
        matched = {"manifest": str(real), "split": "test", "inputs": inputs}
        plan = {"name": output, "model": str(debug_checkpoint), "outputs": [output], "num_inference_steps": 2}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**plan, "seed": 1, "matched": matched}), encoding="utf-8")
        done = xgem("cohort", tmp_path / "plan.yaml", "--out", tmp_path / output)
        assert done.code == 0, done.err
    study: dict[str, Any] = {"name": "turing", "seed": 1, "readers": ["anna", "ben"], "protocol": "xgem", "items": 2}
    study |= {"real": {"set": str(real), "split": "test"}, "generated": {"toy": {p: str(tmp_path / p) for p in routes}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    done = xgem("readers", "new", tmp_path / "study.yaml", "--out", tmp_path / "study")
    assert done.code == 0, done.err
    assert "pair: 2 items of toy" in done.out
    assert "20 items for 2 readers, pictures of" in done.out
    opened = open_study(tmp_path / "study")
    assert opened.plan.arms == (REAL, "toy")
    opened.engine.dispose()


def test_links_are_printed_once_for_each_reader(
    tmp_path: Path, plan_file: Callable[..., Path], xgem: Callable[..., Ran]
) -> None:
    assert xgem("readers", "new", plan_file(protocol="xgem", items=1), "--out", tmp_path / "study").code == 0
    printed = [xgem("readers", "links", tmp_path / "study", "--url", "https://x.example/").out for _ in range(2)]
    for text in printed:
        assert re.fullmatch(r"(\w+  https://x\.example/r/[\w-]{43}\n){2}", text)
    assert set(printed[0].split()).isdisjoint(printed[1].split()[1::2])
    assert xgem("readers", "links", tmp_path / "study", "--reader", "ben").out.startswith(
        "ben  http://127.0.0.1:8000/r/"
    )


def test_commands_refuse_in_one_line(tmp_path: Path, plan_file: Callable[..., Path], xgem: Callable[..., Ran]) -> None:
    assert xgem("readers", "new", plan_file(protocol="xgem", items=1), "--out", tmp_path / "study").code == 0
    for arguments, message in (
        (("new", plan_file(protocol="xgem", items=99), "--out", tmp_path / "other"), "ask for fewer items"),
        (("new", tmp_path / "none.yaml", "--out", tmp_path / "other"), "does not exist"),
        (("links", tmp_path), "no reader study"),
        (("links", tmp_path / "study", "--reader", "carl"), "no reader 'carl'"),
        (("serve", tmp_path / "study", "--host", "0.0.0.0"), "--allowed-host"),
        (("serve", tmp_path / "none"), "no reader study"),
        (("report", tmp_path / "none", "--out", tmp_path / "report"), "no reader study"),
    ):
        done = xgem("readers", *arguments)
        assert done.code == 2, arguments
        assert message in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "report").exists()
