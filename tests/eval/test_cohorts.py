"""The cohorts that evaluations share: what another process is making is waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from xgem.cohort.plan import Plan
from xgem.cohort.run import Done
from xgem.eval import cohorts


def test_what_another_process_makes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Done(4, 3, None), Done(0, 3, None), Done(0, 0, None)]
    monkeypatch.setattr(cohorts, "run", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(cohorts, "_PAUSE", 0)
    matched = {"manifest": "a.parquet", "split": "val"}
    plan = Plan.model_validate({"name": "x", "outputs": ["frontal"], "matched": matched})
    made = cohorts.Cohorts("openi-256", None, tmp_path / "a.parquet", "val", tmp_path, cohorts.Sampling()).made(plan)
    assert (made, answers) == (tmp_path / "x", [])
