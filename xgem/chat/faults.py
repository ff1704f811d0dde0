"""Why a request failed, and whether asking again can help."""

from __future__ import annotations

import email.utils
import re
import time
from typing import TYPE_CHECKING, Any, Final

from xgem.types import EndpointError
from xgem.utils.files import one_line

if TYPE_CHECKING:
    from openai import APIStatusError

_RETRIED: Final = frozenset({408, 409, 425, 429})
_NO_TEMPLATE: Final = re.compile(r"chat[ _-]?template", re.IGNORECASE)
_NO_PICTURES: Final = re.compile(
    r"mmproj|at most 0 image|not a multimodal|(image|vision|multimodal)[^.]*(not|n't) support"
    r"|(not|n't) support[^.]*(image|vision|multimodal)",
    re.IGNORECASE,
)
_NO_MODEL: Final = re.compile(r"model[^.]*(does not exist|not found|unknown|not loaded)|no such model", re.IGNORECASE)


class Unavailable(EndpointError):
    """The endpoint cannot be reached, is busy or fails; ``wait``: the time in seconds for which it asks.

    ``redraw``: it may have failed at what the model said (llama.cpp's 500 where an answer cannot be parsed), so that
    another draw can help.
    """

    def __init__(self, reason: str, wait: float | None = None, *, redraw: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.redraw = wait, redraw


class Unusable(EndpointError):
    """The answer is not one to the question: another draw may be."""


class Rejected(EndpointError):
    """The endpoint cannot take this request; others it may."""


def fault_of(error: APIStatusError, model: str, images: bool) -> EndpointError:
    """What an HTTP status says: :class:`Unavailable`, :class:`Rejected`, or an error that all requests would meet."""
    status, message = error.status_code, _message(error)
    said = f"HTTP {status}: {message}"
    if status in (401, 403):
        return EndpointError(f"{said}; expected a valid key: set api_key_env to the variable that has it")
    if _NO_TEMPLATE.search(message):
        return EndpointError(
            f"{said}; the model {model} needs a chat template that fits: serve a model tuned for chat, or start the "
            "server with a template (--chat-template)"
        )
    if images and _NO_PICTURES.search(message):
        return EndpointError(
            f"{said}; {model} takes no pictures: serve a vision model (llama.cpp: with its --mmproj file)"
        )
    if status == 404 or (status < 500 and _NO_MODEL.search(message)):
        return EndpointError(f"{said}; expected a base_url that ends like /v1, and a model that it lists under /models")
    if getattr(error, "code", None) == "insufficient_quota":
        return EndpointError(f"{said}; the account has no budget left")
    if status in _RETRIED or status >= 500:
        return Unavailable(said, retry_after(error.response.headers.get("retry-after")), redraw=status == 500)
    return Rejected(said)


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date, RFC 9110, 10.2.3); None where it says nothing."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


def _message(error: APIStatusError) -> str:
    """The server's own words, on one line."""
    body: Any = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
        if isinstance(body, dict):
            body = body.get("message") or body
    return one_line(ValueError(body or error.response.text or error.response.reason_phrase))
