"""What models at an endpoint are used as, against a local server that answers as each role asks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.chat_server import ChatServer, Reply, chat_server, question
from xgem.chat.endpoint import ChatEndpoint
from xgem.cli import main
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.set_files import read_set
from xgem.eval.instruments import Weights, judges_of
from xgem.judges.chat_roles import (
    ChatJudge,
    ChatLabeller,
    Quality,
    QualityJudge,
    open_endpoint,
)
from xgem.judges.judge import OWN_JUDGE, OwnJudge, thresholds_of
from xgem.judges.saved import open_judge
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import ConfigError, EndpointError, InputError, NotComputed

pytest.importorskip("openai", reason="the extra chat is not installed")

DARK, BRIGHT = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
KEYS = [name.lower().replace(" ", "_") for name in CHEXPERT_CLASSES]


def pictures(request: dict[str, Any]) -> int:
    content = request["messages"][-1]["content"]
    return 0 if isinstance(content, str) else sum(part["type"] == "image_url" for part in content)


def labelled(request: dict[str, Any], before: int) -> Reply:
    """Labels by the words of the report, as a labeller would give them."""
    text = question(request)
    labels = dict.fromkeys(KEYS, "not mentioned")
    if "Cardiomegaly" in text:
        labels["cardiomegaly"] = "present"
    if "No effusion" in text:
        labels["pleural_effusion"] = "absent"
    if "possible edema" in text:
        labels["edema"] = "uncertain"
    return Reply(json.dumps(labels))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("XGEM_CACHE", str(tmp_path / "cache"))
    with chat_server() as server:
        yield server


def test_a_labeller_gives_cheXperts_labels_and_asks_equal_reports_once(server: ChatServer) -> None:
    server.answer = labelled
    labeller = ChatLabeller(ChatEndpoint(server.settings(concurrency=1)))
    reports = ["Cardiomegaly. No effusion.", "  ", "possible edema", "Cardiomegaly. No effusion."]
    labels = labeller.label(reports)
    assert labels.shape == (4, 14)
    column = {name: labels[:, place] for place, name in enumerate(CHEXPERT_CLASSES)}
    np.testing.assert_array_equal(column["Cardiomegaly"], [1, math.nan, math.nan, 1])
    np.testing.assert_array_equal(column["Pleural Effusion"], [0, math.nan, math.nan, 0])
    np.testing.assert_array_equal(column["Edema"], [math.nan, math.nan, -1, math.nan])
    assert len(server.requests) == 2
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == KEYS
    assert labeller.name == "chat:tiny"
    assert labeller.version != ChatLabeller(ChatEndpoint(server.settings(model="other"))).version


def test_a_report_without_an_answer_ends_labelling_and_says_how_many(server: ChatServer) -> None:
    server.answer = lambda request, before: Reply("?") if "b" in question(request) else labelled(request, before)
    labeller = ChatLabeller(ChatEndpoint(server.settings(retries=0)))
    with pytest.raises(EndpointError, match=r"no answer for 2 of 3 reports, first: .*; run again"):
        labeller.label(["a", "b", "bb"])


def test_a_judge_gives_scores_of_each_class(server: ChatServer) -> None:
    def judged(request: dict[str, Any], before: int) -> Reply:
        return Reply(json.dumps({key: 100 if key == "edema" else before * 10 for key in KEYS}))

    server.answer = judged
    judge = ChatJudge(ChatEndpoint(server.settings(concurrency=1)))
    scores = judge.scores(np.stack([DARK, BRIGHT]))
    assert scores.shape == (2, 14)
    assert scores[:, judge.classes.index("Edema")].tolist() == [1, 1]
    assert scores[:, 0].tolist() == [0, 0.1]
    assert (thresholds_of(judge) == 0.5).all()
    assert all(pictures(request) == 1 for request in server.requests)
    server.answer = lambda request, before: Reply(json.dumps(dict.fromkeys(KEYS, 101)))
    with pytest.raises(EndpointError, match="no answer for 1 of 1 images"):
        judge.scores(DARK[None])


def test_a_quality_judge_grades_with_and_without_a_description(server: ChatServer) -> None:
    server.answer = lambda request, before: Reply(json.dumps({"grade": "medium", "reason": "blurred"}))
    judge = QualityJudge(ChatEndpoint(server.settings(concurrency=1)))
    grades = list(judge.grade([(DARK, "Cardiomegaly."), (BRIGHT, "")]))
    assert grades == [Quality(grade="medium", reason="blurred")] * 2
    assert [one.score for one in grades if isinstance(one, Quality)] == [2, 2]
    assert question(server.requests[0]) == "Description: Cardiomegaly."
    told = [request["messages"][0]["content"] for request in server.requests]
    assert ["contradicts" in text for text in told] == [True, False]


def test_reports_and_captions_are_written_as_a_set(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two studies of two views, and one of a lateral alone, of which the server says nothing."""
    rows: list[Row] = []
    for number, view in enumerate(("frontal", "lateral", "frontal", "lateral", "lateral")):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        name = f"s{number // 2}"
        rows.append(Row(study=name, subject=name, split="val", view=view, file=f"{number}.png", impression="Normal."))
    Manifest(tuple(rows), tmp_path).write(tmp_path / "m.parquet")

    def reported(request: dict[str, Any], before: int) -> Reply:
        if pictures(request) < 2:
            return Reply("nothing to see")
        return Reply(json.dumps({"findings": "The heart is large.", "impression": "Cardiomegaly."}))

    server.answer = reported
    arguments = ["chat", "write", str(tmp_path / "m.parquet"), "--writer", f"chat:{server.url}#tiny", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "reports.csv")]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["studies"], counts["written"], counts["left out"], counts["asked"]["failed"]) == (3, 2, 1, 1)
    left = (tmp_path / "reports.left-out.csv").read_text()
    assert left.startswith("id,reason\ns2,")
    assert "nothing to see" in left
    written = read_set(tmp_path / "reports.csv")
    assert [(item.pair, item.report) for item in written.items] == [("s0", "Cardiomegaly."), ("s1", "Cardiomegaly.")]
    assert {question(one) for one in server.requests if pictures(one) == 2} == {"Images: frontal, lateral."}
    server.answer = lambda request, before: Reply(f"Picture {before}.")
    assert main([*arguments, "--kind", "caption", "--out", str(tmp_path / "captions.csv")]) == 0
    assert len(read_set(tmp_path / "captions.csv")) == 2
    assert main([*arguments, "--out", str(tmp_path / "captions.csv")]) == 1, "it exists"
    assert main([*arguments, "--split", "train", "--out", str(tmp_path / "none.csv")]) == 2


def test_a_name_says_where_the_endpoint_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XGEM_CACHE", str(tmp_path))
    plan = tmp_path / "plan.yaml"
    plan.write_text("base_url: http://localhost:1/v1\nmodel: org/medgemma\nmax_tokens: 9\n")
    listed = tmp_path / "list.yaml"
    listed.write_text("[1, 2]")
    assert open_endpoint(f"chat:{plan}").settings.max_tokens == 9
    assert open_endpoint("chat:http://localhost:1/v1#org/medgemma").settings.model == "org/medgemma"
    assert (tmp_path / "eval" / "chat" / "answers.sqlite").is_file()
    for name, reason in (
        ("chat:", "expected chat:FILE"),
        ("chat:http://localhost:1/v1", "no model"),
        (f"chat:{tmp_path / 'none.yaml'}", "cannot be read as YAML"),
        (f"chat:{listed}", "valid dictionary"),
    ):
        with pytest.raises(ConfigError, match=reason):
            open_endpoint(name)


def test_evaluations_use_them_beside_xgems_own(server: ChatServer, tmp_path: Path) -> None:
    named = f"chat:{server.url}#tiny"
    judges = judges_of(named, "frontal", None, NotComputed("no weights"), tmp_path, "cpu")
    assert list(judges) == [OWN_JUDGE, "xrv", "chat:tiny"]
    assert isinstance(judges[OWN_JUDGE], OwnJudge)
    assert isinstance(judges["chat:tiny"], ChatJudge)
    assert isinstance(Weights(labeller=named).labellers("cpu")["chat:tiny"], ChatLabeller)
    assert Weights(judge=named).own_judge is None


def test_a_chat_judge_gives_no_features() -> None:
    with pytest.raises(InputError, match="gives no features"):
        open_judge("chat:plan.yaml", "frontal", None)


def test_the_command_checks_an_endpoint(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = lambda request, before: Reply('{"brighter": "right"}')
    arguments = ["chat", "check", "--base-url", server.url, "--model", "tiny"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("works") == 3

    def blind(request: dict[str, Any], before: int) -> Reply:
        seen = pictures(request)
        return Reply.error(500, "image input is not supported") if seen else Reply('{"brighter": "right"}')

    server.answer = blind
    assert main([*arguments, "--json"]) == 0, "a model without vision can rewrite and label"
    checked = json.loads(capsys.readouterr().out)
    assert [one["works"] for one in checked] == [True, True, False]
    assert "takes no pictures" in checked[2]["said"]
    server.answer = lambda request, before: Reply.error(404, "no such model")
    assert main(arguments) == 1
    assert main(["chat", "check"]) == 2
    assert "expected a PLAN" in capsys.readouterr().err


def test_the_labeller_of_commands(server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = labelled
    rows = [
        Row(study=f"s{k}", subject=f"p{k}", split="val", findings=text, labels=(name,), source="openi")
        for k, (text, name) in enumerate([("Cardiomegaly.", "Cardiomegaly"), ("A large heart.", "Cardiomegaly")])
    ]
    Manifest(tuple(rows), tmp_path).write(tmp_path / "m.parquet")
    named = f"chat:{server.url}#tiny"
    assert main(["eval", "labeller", "--data", str(tmp_path / "m.parquet"), "--labeller", named, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labeller"].startswith("chat:tiny ")
    assert found["classes"]["Cardiomegaly"] == {"annotated": 2, "labelled": 1, "precision": 1.0, "recall": 0.5}
