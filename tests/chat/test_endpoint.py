"""The client of chat endpoints, against a local server that answers, fails, is slow, or talks nonsense."""

from __future__ import annotations

import base64
import io
import itertools
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.utils import formatdate
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, field_validator

from tests.chat_server import Reply, chat_server, question
from xgem.chat import endpoint as endpoints
from xgem.chat.endpoint import ChatEndpoint
from xgem.chat.faults import retry_after
from xgem.chat.messages import ChatAnswer, ChatFailure, ChatRequest
from xgem.chat.settings import ChatSettings
from xgem.types import ConfigError, EndpointError, ImageError, OutputError

pytest.importorskip("openai", reason="the extra chat is not installed")


class Verdict(BaseModel):
    """A made-up answer."""

    present: bool
    reason: str = ""


VERDICT = '{"present": true, "reason": "seen"}'
HELLO = ChatRequest("hello")
JUDGED = ChatRequest("judge", schema=Verdict)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.01)


def test_a_question_is_asked_as_the_protocol_says() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with chat_server(lambda request, before: Reply(" a text \n")) as server:
        endpoint = ChatEndpoint(server.settings(price_input=1.0, price_output=5.0, max_tokens=77))
        answer = endpoint.ask(ChatRequest("what is it?", system="be brief", images=(picture,)))
    assert answer == ChatAnswer("a text", None, 10, 2, 20e-6, False)
    (request,) = server.requests
    assert request["messages"][0] == {"role": "system", "content": "be brief"}
    shown, text = request["messages"][1]["content"]
    assert text == {"type": "text", "text": "what is it?"}
    png = base64.b64decode(shown["image_url"]["url"].removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), picture)
    assert {name: request[name] for name in ("model", "temperature", "seed", "max_tokens")} == {
        "model": "tiny", "temperature": 0.0, "seed": 0, "max_tokens": 77,
    }  # fmt: skip
    assert "response_format" not in request
    assert endpoint.name == f"tiny at {server.settings().host}"
    usage = endpoint.usage
    assert (usage.requests, usage.input_tokens, usage.output_tokens, usage.cost) == (1, 10, 2, pytest.approx(20e-6))


def test_the_schema_goes_to_the_server_and_the_answer_is_an_object_of_it() -> None:
    with chat_server(lambda request, before: Reply(VERDICT)) as server:
        answer = ChatEndpoint(server.settings()).ask(JUDGED)
    assert answer.value == Verdict(present=True, reason="seen")
    described = server.requests[0]["response_format"]["json_schema"]
    assert described["strict"]
    assert described["schema"]["required"] == ["present", "reason"]  # strict: every field, and no other
    assert described["schema"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "text",
    [
        VERDICT,
        f"```json\n{VERDICT}\n```",
        f"Sure! {VERDICT} Anything else?",
        f'<think>{{"present": false}}</think>{VERDICT}',
    ],
)
def test_without_structured_output_the_prompt_asks_for_json(text: str, caplog: pytest.LogCaptureFixture) -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply.error(400, "unknown field response_format") if "response_format" in request else Reply(text)

    with chat_server(answer) as server, caplog.at_level(logging.WARNING, "xgem"):
        endpoint = ChatEndpoint(server.settings())
        assert endpoint.ask(JUDGED).value == Verdict(present=True, reason="seen")
        endpoint.ask(JUDGED)
    assert len(server.requests) == 3, "the refusal is remembered"
    assert '"present"' in question(server.requests[1])
    assert "JSON in the prompt" in caplog.text
    assert len(caplog.records) == 1


def test_models_that_renamed_max_tokens_are_asked_as_they_want() -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        if "max_tokens" in request:
            return Reply.error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return Reply(VERDICT)

    with chat_server(answer) as server:
        endpoint = ChatEndpoint(server.settings(max_tokens=50))
        assert endpoint.ask(JUDGED).value == Verdict(present=True, reason="seen")
        endpoint.ask(HELLO)
    assert [request.get("max_completion_tokens") for request in server.requests] == [None, 50, 50]
    assert "response_format" in server.requests[1]


def test_a_server_that_fails_at_an_answer_is_asked_for_another() -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply() if request["seed"] else Reply.error(500, "the output cannot be parsed")

    with chat_server(answer) as server:
        assert ChatEndpoint(server.settings()).ask(HELLO).text == "yes"


def test_nonsense_is_drawn_again_with_another_seed_and_then_named() -> None:
    with chat_server(lambda request, before: Reply("42" if before < 2 else VERDICT)) as server:
        endpoint = ChatEndpoint(server.settings())
        assert endpoint.ask(JUDGED).value == Verdict(present=True, reason="seen")
        assert [request["seed"] for request in server.requests] == [0, 1, 2]
        assert [request["temperature"] > 0 for request in server.requests] == [False, True, True]
        server.answer = lambda request, before: Reply('{"present": "perhaps"}')
        with pytest.raises(EndpointError, match=r"present: .*boolean.*got \{.present.: .perhaps.\}.*3 attempts"):
            endpoint.ask(JUDGED)
    assert endpoint.usage.retried == 4
    assert endpoint.usage.failed == 1
    assert endpoint.usage.output_tokens == 12, "unusable answers are paid for too"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(""), "empty answer"),
        (Reply("A long rep", finish="length"), r"cut at max_tokens 1024: A long rep; raise max_tokens"),
        (Reply(body=b"<html>hello</html>"), "expected a chat completion"),
        (Reply(body={"choices": []}), "expected a chat completion"),
        (Reply.error(400, "context too long"), "HTTP 400: context too long"),
        (Reply("", finish="content_filter"), "refused"),
    ],
)
def test_what_cannot_be_used_is_named(reply: Reply, reason: str) -> None:
    with chat_server(lambda request, before: reply) as server:
        endpoint = ChatEndpoint(server.settings())
        (failure,) = endpoint.ask_many([HELLO])
        with pytest.raises(EndpointError, match=reason):
            endpoint.ask(HELLO)
    assert isinstance(failure, ChatFailure)
    assert "\n" not in failure.reason


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (401, "bad key", "api_key_env"),
        (404, "nothing here", "/models"),
        (400, "The model tinyy does not exist", "/models"),
        (400, "you must provide a chat template if the tokenizer does not define one", "--chat-template"),
        (500, "this model has no chat template", "--chat-template"),
    ],
)
def test_faults_of_all_requests_are_not_retried(status: int, message: str, reason: str) -> None:
    with chat_server(lambda request, before: Reply.error(status, message)) as server:
        endpoint = ChatEndpoint(server.settings(concurrency=1))
        with pytest.raises(EndpointError, match=f"tiny at .*HTTP {status}: {message}; .*{reason}"):
            endpoint.ask(HELLO)
        assert len(server.requests) == 1
        with pytest.raises(EndpointError, match=reason):
            list(endpoint.ask_many(itertools.repeat(HELLO)))


def test_a_model_without_eyes_is_named() -> None:
    message = "image input is not supported - hint: you may need to provide the mmproj"
    with chat_server(lambda request, before: Reply.error(500, message)) as server:
        with pytest.raises(EndpointError, match="tiny takes no pictures"):
            ChatEndpoint(server.settings()).ask(ChatRequest("?", images=(np.zeros((2, 2), np.uint8),)))
        assert len(server.requests) == 1


def test_a_busy_server_is_asked_again_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda event, timeout=0.0: bool(waits.append(timeout)))
    with chat_server() as server:
        endpoint = ChatEndpoint(server.settings())
        replies = iter([Reply.error(429, "slow down", **{"Retry-After": "7"}), Reply.error(503, "loading"), Reply()])
        server.answer = lambda request, before: next(replies)
        assert endpoint.ask(HELLO).text == "yes"
        assert 7.0 in waits
        server.answer = lambda request, before: Reply.error(429, "come tomorrow", **{"Retry-After": "86400"})
        with pytest.raises(EndpointError, match="asks to wait 86400 s"):
            endpoint.ask(HELLO)
    assert len(server.requests) == 4


def test_retry_after() -> None:
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert retry_after("2.5") == 2.5
    assert retry_after("-1") == 0
    assert retry_after(formatdate(0, usegmt=True)) == 0


def test_a_slow_server_is_named() -> None:
    with chat_server(lambda request, before: Reply(delay=0.6)) as server:
        endpoint = ChatEndpoint(server.settings(timeout=0.1, retries=1))
        with pytest.raises(EndpointError, match=r"no answer in 0\.1 s.*2 attempts"):
            endpoint.ask(HELLO)


def test_answers_keep_the_order_of_their_requests_which_are_taken_as_needed() -> None:
    taken = 0

    def requests() -> Iterator[ChatRequest]:
        nonlocal taken
        for number in range(1_000_000):
            taken += 1
            yield ChatRequest(str(number))

    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply(question(request), delay=0.03 * (before % 3 == 0))

    with chat_server(answer) as server:
        answers = ChatEndpoint(server.settings(concurrency=3)).ask_many(requests())
        assert [next(answers).text for _ in range(20)] == [str(number) for number in range(20)]  # pyright: ignore
        answers.close()
    assert server.most_at_once == 3
    assert taken < 30


def test_one_bad_request_among_good_ones_is_named_alone() -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply.error(500, "out of memory") if question(request) == "3" else Reply()

    with chat_server(answer) as server:
        bad = ChatRequest("x", images=(np.zeros((2, 2), np.float32),))  # pyright: ignore[reportArgumentType]
        requests = [*(ChatRequest(str(number)) for number in range(6)), bad]
        answers = list(ChatEndpoint(server.settings(retries=0)).ask_many(requests))
    failures = {row: one.reason for row, one in enumerate(answers) if isinstance(one, ChatFailure)}
    assert failures == {
        3: "HTTP 500: out of memory",
        6: "image: expected (h, w) or (h, w, 3) uint8, got (2, 2) float32",
    }


def test_a_server_that_goes_down_ends_a_run_of_a_million(tmp_path: Path) -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply() if before < 5 else Reply.error(503, "gone")

    requests = [ChatRequest(str(number)) for number in range(60)]
    with chat_server(answer) as server:
        endpoint = ChatEndpoint(server.settings(concurrency=1, retries=0), cache=tmp_path)
        answered: list[Any] = []
        with pytest.raises(EndpointError, match=r"unavailable for 8 requests: HTTP 503: gone"):
            answered.extend(endpoint.ask_many(requests))
        assert [one.text for one in answered] == ["yes"] * 5, "no failure was given out: nothing is lost"
        before = len(server.requests)
        assert before < 40
        server.answer = lambda request, before: Reply()
        assert all(isinstance(one, ChatAnswer) for one in endpoint.ask_many(requests))
        assert len(server.requests) == before + 55, "what was answered is not asked again"


def test_nobody_at_the_address_is_named() -> None:
    with chat_server() as server:
        settings = server.settings(retries=0)
    endpoint = ChatEndpoint(settings)
    with pytest.raises(EndpointError, match=f"cannot be reached .*check base_url {settings.base_url}"):
        endpoint.ask(HELLO)
    with pytest.raises(EndpointError, match="unavailable: cannot be reached"):
        list(endpoint.ask_many([HELLO, JUDGED]))


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    picture = np.zeros((2, 3), np.uint8)
    with chat_server(lambda request, before: Reply(VERDICT)) as server:
        settings = server.settings(price_output=1.0)
        first = ChatEndpoint(settings, cache=tmp_path)
        first.ask(ChatRequest("judge", images=(picture,), schema=Verdict))
        first.close()
        second = ChatEndpoint(settings, cache=tmp_path)
        again = second.ask(ChatRequest("judge", images=(picture.copy(),), schema=Verdict))
        assert again == ChatAnswer(VERDICT, Verdict(present=True, reason="seen"), 10, 2, 0.0, True)
        assert second.usage.cached == 1
        assert second.usage.cost == 0
        others = [
            (settings, ChatRequest("judge", images=(picture + 1,), schema=Verdict)),
            (settings, ChatRequest("judge", images=(picture,))),
            (settings, ChatRequest("judge", images=(picture,), schema=Verdict, system="harshly")),
            (settings.model_copy(update={"model": "other"}), HELLO),
            (settings.model_copy(update={"temperature": 0.7}), HELLO),
            (settings.model_copy(update={"seed": None}), HELLO),
        ]
        for changed, request in others:
            assert not ChatEndpoint(changed, cache=tmp_path).ask(request).cached
    assert len(server.requests) == 7


def test_a_kept_answer_that_no_longer_fits_is_asked_for_again(tmp_path: Path) -> None:
    class Strict(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def _bounded(cls, value: int) -> int:
            if value > limit:
                raise ValueError("too large")
            return value

    request, limit = ChatRequest("n", schema=Strict), 10
    with chat_server(lambda request, before: Reply(json.dumps({"number": 9 - 5 * before}))) as server:
        endpoint = ChatEndpoint(server.settings(), cache=tmp_path)
        assert endpoint.ask(request).text == '{"number": 9}'
        limit = 5
        assert endpoint.ask(request).text == '{"number": 4}'
        assert endpoint.ask(request).cached


def test_two_at_once_share_a_cache(tmp_path: Path) -> None:
    requests = [ChatRequest(str(number)) for number in range(30)]
    with chat_server(lambda request, before: Reply(question(request))) as server:
        endpoints = [ChatEndpoint(server.settings(), cache=tmp_path) for _ in range(2)]
        with ThreadPool(2) as pool:
            answers = pool.map(lambda one: [answer.text for answer in one.ask_many(requests)], endpoints)  # pyright: ignore
        assert answers == [[str(number) for number in range(30)]] * 2
        third = ChatEndpoint(server.settings(), cache=tmp_path)
        assert all(isinstance(answer, ChatAnswer) and answer.cached for answer in third.ask_many(requests))


def test_an_interruption_waits_for_no_answer_and_loses_none(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from xgem.chat.endpoint import ChatEndpoint\n"
        "from xgem.chat.messages import ChatRequest\n"
        "from xgem.chat.settings import ChatSettings\n"
        "settings = ChatSettings(base_url=sys.argv[1], model='tiny', concurrency=2)\n"
        "endpoint = ChatEndpoint(settings, cache=Path(sys.argv[2]))\n"
        "for answer in endpoint.ask_many(ChatRequest(str(number)) for number in range(100)):\n"
        "    print(answer.text, flush=True)\n"
    )

    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply(question(request), delay=0 if int(question(request)) < 10 else 60)

    with chat_server(answer) as server:
        command = [sys.executable, "-c", program, server.url, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            shown = [process.stdout.readline().strip() for _ in range(10)]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) != 0
        server.answer = lambda request, before: Reply("again")
        answers = ChatEndpoint(server.settings(), cache=tmp_path).ask_many(ChatRequest(str(n)) for n in range(12))
        assert [answer.text for answer in answers if isinstance(answer, ChatAnswer)] == [*shown, "again", "again"]


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(OutputError, match=r"answers\.sqlite: .*remove the file"):
        ChatEndpoint(ChatSettings(base_url="http://localhost/v1", model="m"), cache=tmp_path)


def test_no_key_but_the_named_one_leaves_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "for-another-host")
    monkeypatch.setenv("OPENAI_ORG_ID", "somebody")
    monkeypatch.setenv("MY_KEY", "the-secret")
    with chat_server() as server, caplog.at_level(logging.DEBUG):
        ChatEndpoint(server.settings()).ask(HELLO)
        ChatEndpoint(server.settings(api_key_env="MY_KEY"), cache=tmp_path).ask(HELLO)
    without, with_key = ({name.lower(): value for name, value in one.items()} for one in server.headers)
    assert "authorization" not in without
    assert with_key["authorization"] == "Bearer the-secret"
    about = {name for name in {**without, **with_key} if name.startswith(("x-stainless", "openai"))}
    assert about <= {"x-stainless-raw-response"}, "nothing about this machine or an account"
    assert "the-secret" not in caplog.text
    assert b"the-secret" not in (tmp_path / "answers.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"base_url": "localhost:8000"}, "base_url: expected an address"),
        ({"base_url": "https://user:key@host/v1"}, "without a key"),
        ({"key": "abc"}, "key: "),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ChatSettings.parse({"base_url": "http://localhost/v1", "model": "m", **options}, "plan.yaml")


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        ChatEndpoint(ChatSettings(base_url="http://localhost/v1", model="m", api_key_env="MY_KEY"))


def test_images_of_another_kind_are_named() -> None:
    endpoint = ChatEndpoint(ChatSettings(base_url="http://localhost:9/v1", model="m"))
    with pytest.raises(ImageError, match="got \\(2, 2, 4\\) uint8"):
        endpoint.ask(ChatRequest("?", images=(np.zeros((2, 2, 4), np.uint8),)))
