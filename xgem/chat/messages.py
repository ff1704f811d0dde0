"""What a chat endpoint is asked and what it answers."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ValidationError

from xgem.types import ImageError

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, eq=False)
class ChatRequest:
    """One question. ``images``: (h, w) or (h, w, 3) uint8. ``schema``: the class of the answer, if it is to be JSON."""

    text: str
    system: str = ""
    images: tuple[NDArray[np.uint8], ...] = ()
    schema: type[BaseModel] | None = None


@dataclass(frozen=True)
class ChatAnswer:
    """``value`` is the answer as an object of the request's schema; ``cost`` is 0 for an answer from the cache."""

    text: str
    value: BaseModel | None
    input_tokens: int
    output_tokens: int
    cost: float
    cached: bool


@dataclass(frozen=True)
class ChatFailure:
    """A request that got no usable answer after all attempts; ``reason`` is one line."""

    reason: str


@dataclass(frozen=True)
class ChatUsage:
    """What an endpoint was asked: ``requests`` with their cached and failed ones, further attempts, tokens and cost."""

    requests: int = 0
    cached: int = 0
    retried: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


def png_url(image: NDArray[np.uint8]) -> str:
    """An image as a data URL of PNG.

    Raises:
        ImageError: not (h, w) or (h, w, 3) uint8.
    """
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or not image.size:
        raise ImageError(f"image: expected (h, w) or (h, w, 3) uint8, got {image.shape} {image.dtype}")
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def strict_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a class, with all fields required and no others, as strict structured output asks."""
    return _strict(model.model_json_schema())


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(value) for key, value in node.items() if key != "default"}
    properties = strict.get("properties")
    if strict.get("type") == "object" and isinstance(properties, dict):
        strict |= {"required": list(properties), "additionalProperties": False}
    return strict


def schema_instruction(model: type[BaseModel]) -> str:
    """What to add to a question whose endpoint knows no schemas."""
    schema = json.dumps(strict_schema(model), ensure_ascii=False)
    return f"Answer with one JSON object and nothing else. It must follow this JSON schema:\n{schema}"


def read_json_answer(text: str, model: type[BaseModel]) -> BaseModel:
    """The first JSON object in a text that is one of ``model``: bare, in a code fence, or among other text.

    Raises:
        ValueError: there is none; the message says what was wrong with the first object.
    """
    fault = None
    for found in _objects(_THOUGHT.sub("", text)):
        try:
            return model.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            fault = fault or f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    raise ValueError(fault or "no JSON object")


def _objects(text: str) -> Iterator[Any]:
    """JSON objects that start anywhere in a text, outer ones before those in them."""
    decoder = json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            yield decoder.raw_decode(text, start)[0]
        except ValueError:
            continue
