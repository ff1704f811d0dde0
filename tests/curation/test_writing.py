"""Rewriting through an endpoint: lies are refused, corrections count, failures are named, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.chat_server import ChatServer, Reply, chat_server, question
from tests.curation.conftest import Source, smooth
from xgem.curation.plan import CurationPlan, read_plan
from xgem.curation.run import curate
from xgem.types import EndpointError

RULES = {"judge": False, "min_side": 32}
Facts = dict[str, Any]


def asked(request: dict[str, Any]) -> Facts:
    """The facts in a request."""
    return json.JSONDecoder().raw_decode(question(request).removeprefix("Facts:\n"))[0]


def written(facts: Facts, *more: str) -> str:
    named = [f"{text}." for text in facts.get("findings", [])]
    first = f"{facts['view'].capitalize()} chest radiograph. {' '.join([*named, *more])}"
    return json.dumps({"findings": first, "impression": " ".join(named)})


@pytest.fixture
def plan_of(source: Source, write_plan: Callable[..., Path]) -> Callable[..., CurationPlan]:
    def make(server: ChatServer, labels: list[tuple[str, ...]], **describe: Any) -> CurationPlan:
        rng = np.random.default_rng(0)
        names = [f"{k:02d}" for k in range(len(labels))]
        manifest = source("set", {name: smooth(rng) for name in names}, labels=dict(zip(names, labels, strict=True)))
        chosen = {"base_url": server.url, "model": "writer", "retries": 0, "price_input": 1.0, "price_output": 10.0}
        checker = {**chosen, "model": "checker"} if describe.pop("checked", False) else None
        parts = {"rewriter": chosen, "checker": checker, **describe}
        return read_plan(write_plan(manifest, content=RULES, describe=parts, part=4))

    return make


def table(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "decisions.parquet").to_pylist()


def test_a_writer_that_lies_is_refused(plan_of: Callable[..., CurationPlan], tmp_path: Path) -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        del before
        facts = asked(request)
        if facts.get("findings") == ["Mass"] and "refused" not in question(request):
            return Reply(written(facts, "Large pleural effusion."))  # the truth at the second attempt
        lies = facts.get("findings") == ["Cardiomegaly"]
        return Reply(written(facts, "There is a pneumothorax.") if lies else written(facts))

    with chat_server(answer) as server:
        plan = plan_of(server, [("Effusion",), ("Mass",), ("Cardiomegaly",)])
        curate(plan, tmp_path / "out")
        questions = [question(request) for request in server.requests]
    honest, second, liar = table(tmp_path / "out")
    assert (honest["how"], honest["attempts"], honest["problems"]) == ("rewritten", 1, [])
    assert honest["text_after"] == "Findings: Frontal chest radiograph. Pleural effusion. Impression: Pleural effusion."
    assert (second["how"], second["attempts"]) == ("rewritten", 2)
    assert "states Pleural Effusion, which the labels deny" in second["problems"]
    assert any("Because it states Pleural Effusion, which the labels deny" in text for text in questions)
    assert (liar["how"], liar["attempts"]) == ("structured", 3)
    assert liar["text_after"] == "Findings: Frontal chest radiograph. Cardiomegaly. Impression: Cardiomegaly."
    assert len(questions) == 6
    costs = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert (costs["texts written"], costs["input tokens"], costs["output tokens"]) == (6, 60, 12)
    assert costs["cost"] == pytest.approx((60 * 1 + 12 * 10) / 1e6)


def test_a_second_model_corrects_and_failing_rows_are_dropped(
    plan_of: Callable[..., CurationPlan], tmp_path: Path
) -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        del before
        facts = asked(request)
        correct = request["model"] == "checker" and facts.get("findings") == ["Mass"]
        return Reply(written(facts) if correct else written(facts, "Pneumothorax."))

    with chat_server(answer) as server:
        plan = plan_of(server, [("Mass",), ("Cardiomegaly",)], checked=True, attempts=1, failing="drop")
        curate(plan, tmp_path / "out")
    corrected, dropped = table(tmp_path / "out")
    assert (corrected["decision"], corrected["how"]) == ("kept", "rewritten")
    assert (dropped["decision"], dropped["kind"]) == ("dropped", "description")
    assert dropped["reason"].startswith("no description passed the checks: ")


def test_an_endpoint_that_goes_down_stops_it_and_it_goes_on(
    plan_of: Callable[..., CurationPlan], tmp_path: Path
) -> None:
    up = [False]

    def answer(request: dict[str, Any], before: int) -> Reply:
        if not up[0] and before >= 5:
            return Reply.error(401, "no longer")
        return Reply(written(asked(request)))

    labels = [("Mass",), ("Cardiomegaly",), ("Effusion",), ("Nodule",), ("Edema",), ("Hernia",)]
    with chat_server(answer) as server:
        plan = plan_of(server, labels)
        with pytest.raises(EndpointError, match="writer at "):
            curate(plan, tmp_path / "out")
        up[0], before = True, len(server.requests)
        curate(plan, tmp_path / "out")
        assert len(server.requests) - before <= 2  # what was answered is not asked again
        curate(plan, tmp_path / "again")
    assert [one["how"] for one in table(tmp_path / "out")] == ["rewritten"] * 6
    assert (tmp_path / "out" / "decisions.parquet").read_bytes() == (
        tmp_path / "again" / "decisions.parquet"
    ).read_bytes()


def test_one_answer_of_nonsense_is_named_and_skipped(plan_of: Callable[..., CurationPlan], tmp_path: Path) -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        del before
        facts = asked(request)
        return Reply("I do not know" if facts.get("findings") == ["Mass"] else written(facts))

    with chat_server(answer) as server:
        curate(plan_of(server, [("Mass",), ("Cardiomegaly",)]), tmp_path / "out")
    nonsense, good = table(tmp_path / "out")
    assert nonsense["how"] == "structured"
    assert nonsense["problems"][0].startswith("writer: ")
    assert good["how"] == "rewritten"
