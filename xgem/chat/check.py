"""Whether an endpoint can do what xgem asks: one question with a schema, one with a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel

from xgem.chat.endpoint import ChatEndpoint
from xgem.chat.messages import ChatRequest
from xgem.chat.settings import ChatSettings
from xgem.types import EndpointError

_PICTURE = 224


class _Half(BaseModel):
    brighter: Literal["left", "right"]


@dataclass(frozen=True)
class Checked:
    """What an endpoint answered to one question: ``works``, and the answer or the reason why there is none."""

    question: str
    works: bool
    said: str


def check_endpoint(settings: ChatSettings) -> list[Checked]:
    """Ask for a sentence, for JSON of a schema, and for the brighter half of a picture; nothing is cached.

    That a wrong half is named makes the last one fail: a server may drop pictures without a word.
    """
    endpoint = ChatEndpoint(settings)
    picture = np.zeros((_PICTURE, _PICTURE), np.uint8)
    picture[:, _PICTURE // 2 :] = 255
    which = "Which half of the picture is brighter?"
    text = "One half of a picture is black, its right half is white. Which half is brighter?"
    try:
        return [
            _asked(endpoint, "text", ChatRequest("Name one finding of chest radiographs.")),
            _asked(endpoint, "schema", ChatRequest(text, schema=_Half)),
            _asked(endpoint, "picture", ChatRequest(which, images=(picture,), schema=_Half)),
        ]
    finally:
        endpoint.close()


def _asked(endpoint: ChatEndpoint, question: str, request: ChatRequest) -> Checked:
    try:
        answer = endpoint.ask(request)
    except EndpointError as error:
        return Checked(question, False, str(error))
    said = " ".join(answer.text.split())[:120]
    if isinstance(answer.value, _Half) and answer.value.brighter != "right":
        return Checked(question, False, f"wrong: {said}")
    how = "asked for in the prompt" if request.schema in endpoint.unstructured else "by schema"
    return Checked(question, True, f"{said} ({how})" if request.schema else said)
