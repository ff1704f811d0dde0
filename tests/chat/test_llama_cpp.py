"""The endpoint against llama.cpp's own server: a tiny random model that only its grammar keeps to a schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field

from tests.llama_cpp import llama_cpp
from xgem.chat.endpoint import ChatEndpoint
from xgem.chat.messages import ChatAnswer, ChatRequest
from xgem.chat.settings import ChatSettings
from xgem.judges.chat_roles import ChatJudge, ChatLabeller, ContentRole, PictureContent
from xgem.types import EndpointError


class Rating(BaseModel):
    """A made-up answer of bounded length."""

    quality: int = Field(ge=1, le=5)
    view: Literal["frontal", "lateral"]
    reason: str = Field(max_length=12)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_cpp(tmp_path_factory.mktemp("llama")) as url:
        yield url


def endpoint(url: str, **options: object) -> ChatEndpoint:
    return ChatEndpoint(ChatSettings.model_validate({"base_url": url, "model": "tiny", "max_tokens": 200, **options}))


def test_a_random_model_answers_by_the_schema(url: str) -> None:
    asked = endpoint(url)
    requests = [ChatRequest(f"rate picture {number}", schema=Rating) for number in range(12)]
    answers = list(asked.ask_many(requests))
    assert all(isinstance(one, ChatAnswer) and isinstance(one.value, Rating) for one in answers)
    assert asked.usage.retried == 0
    assert asked.usage.input_tokens > 12 * len("rate picture")
    assert not asked.unstructured, "the server has the schema, not the prompt"


def test_the_seed_and_the_picture_decide(url: str) -> None:
    dark, bright = (np.full((40, 60), value, np.uint8) for value in (0, 255))

    def texts(**options: object) -> list[str]:
        asked = endpoint(url, temperature=1.0, **options)
        return [asked.ask(ChatRequest("?", images=(one,), schema=Rating)).text for one in (dark, bright)]

    first = texts(seed=1)
    assert first == texts(seed=1)
    assert first[0] != first[1]
    assert first != texts(seed=2)


def test_roles_get_answers_of_their_form(url: str) -> None:
    scores = ChatJudge(endpoint(url, max_tokens=2000)).scores(np.zeros((1, 64, 64), np.uint8))
    assert scores.shape == (1, 14)
    assert ((scores >= 0) & (scores <= 1)).all()
    labels = ChatLabeller(endpoint(url, max_tokens=2000)).label(["The heart is large."])
    assert np.isin(labels[np.isfinite(labels)], (1, 0, -1)).all()
    (content,) = ContentRole(endpoint(url, max_tokens=2000)).look([np.zeros((48, 64), np.uint8)])
    assert isinstance(content, ChatAnswer), content
    assert isinstance(content.value, PictureContent)


def test_a_long_answer_is_said_to_be_cut(url: str) -> None:
    with pytest.raises(EndpointError, match="cut at max_tokens 5"):
        endpoint(url, max_tokens=5, retries=1).ask(ChatRequest("go on"))


def test_a_model_without_eyes_and_without_a_template(tmp_path: Path) -> None:
    """llama.cpp takes ChatML where a model has no template, and says that a model takes no pictures."""
    with llama_cpp(tmp_path, template=False, eyes=False) as url:
        with pytest.raises(EndpointError, match="cut at max_tokens 5"):
            endpoint(url, max_tokens=5, retries=0).ask(ChatRequest("say something"))
        with pytest.raises(EndpointError, match=r"takes no pictures.*mmproj"):
            endpoint(url).ask(ChatRequest("?", images=(np.zeros((8, 8), np.uint8),)))
