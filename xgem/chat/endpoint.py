"""A client of the OpenAI protocol: structured answers, further attempts, a cache, requests at the same time, costs."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import replace
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field, ValidationError

from xgem._version import __version__
from xgem.chat.cache import AnswerCache, Kept
from xgem.chat.faults import Rejected, Unavailable, Unusable, fault_of
from xgem.chat.messages import (
    ChatAnswer,
    ChatFailure,
    ChatRequest,
    ChatUsage,
    png_url,
    read_json_answer,
    schema_instruction,
    strict_schema,
)
from xgem.chat.settings import ChatSettings
from xgem.types import EndpointError, InputError
from xgem.utils.files import one_line
from xgem.utils.hashing import array_hash, canonical

log = logging.getLogger(__name__)

FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 30.0
LONGEST_ASKED_WAIT: Final = 300.0
"""Seconds before the second attempt, twice as many before each further one up to a limit; and the longest Retry-After
that is waited for."""
UNREACHED: Final = 8
"""So many requests one after the other that the endpoint could not take end ``ask_many``."""
_REDRAWN: Final = 0.4  # temperature of the attempts after an unusable answer, which a greedy one would repeat
_RENAMED: Final = "max_completion_tokens"  # what some hosted models call max_tokens, and name in their refusal
_MACHINE: Final = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async", "Retry-Count",
                   "Read-Timeout")  # fmt: skip


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Tokens(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Tokens | None = None


class ChatEndpoint:
    """Asks one model at one endpoint; threads may share it.

    An answer is kept by what was asked (model, messages, images, schema, sampling), whichever host answered, so that
    nothing is asked twice; the key is neither kept nor logged. The client's headers about this machine are left out.

    Args:
        cache: folder of the answers; None keeps none.

    Raises:
        ConfigError: the environment variable of the key is not set.
        OutputError: the cache cannot be used.
    """

    def __init__(self, settings: ChatSettings, *, cache: Path | None = None) -> None:
        import openai

        self.settings = settings
        self.name = f"{settings.model} at {settings.host}"
        key = settings.key
        headers: dict[str, Any] = {f"X-Stainless-{name}": openai.Omit() for name in _MACHINE}
        headers |= {f"OpenAI-{name}": openai.Omit() for name in ("Organization", "Project")}
        if key is None:
            headers["Authorization"] = openai.Omit()  # never the key of OPENAI_API_KEY, which is for another host
        self._headers = headers | {"User-Agent": f"xgem/{__version__}"}
        self._client = openai.OpenAI(
            base_url=settings.base_url, api_key=key or "none", timeout=settings.timeout, max_retries=0
        )
        self._cache = None if cache is None else AnswerCache(cache)
        self._lock = threading.Lock()
        self._usage = ChatUsage()
        self._limit = "max_tokens"
        self.unstructured: set[type[BaseModel]] = set()
        """Schemas that the endpoint did not take, so that prompts ask for them."""

    @property
    def usage(self) -> ChatUsage:
        """What was asked so far, by all threads."""
        return self._usage

    def ask(self, request: ChatRequest) -> ChatAnswer:
        """The answer to one request, from the cache or the endpoint.

        A busy or unreachable endpoint is asked again after a while (Retry-After is honoured), an unusable answer with
        another seed and a temperature of at least 0.4; ``retries`` times in all.

        Raises:
            EndpointError: no usable answer, with the last reason.
            ImageError: an image is not (h, w) or (h, w, 3) uint8.
        """
        try:
            return self._ask(request, threading.Event())
        except EndpointError as error:
            raise EndpointError(f"{self.name}: {error}") from error

    def ask_many(self, requests: Iterable[ChatRequest]) -> Generator[ChatAnswer | ChatFailure]:
        """Answers in the order of the requests, which are taken as they are needed, ``concurrency`` at once.

        A request that fails by itself gives a :class:`ChatFailure`. Failures to reach the endpoint are held back until
        it answers again.

        Raises:
            EndpointError: a fault that all requests would meet, or ``UNREACHED`` requests one after the other (or all)
                found the endpoint unavailable: none of these was given out, so that a caller can go on from there.
        """
        stopped = threading.Event()
        remaining = iter(requests)
        pool = ThreadPool(self.settings.concurrency)  # of daemon threads: an interruption waits for no answer
        held: list[ChatFailure] = []
        reached = False
        try:
            first = islice(remaining, 2 * self.settings.concurrency)  # as many again wait, for when the oldest is slow
            running = deque(pool.apply_async(self._ask, (request, stopped)) for request in first)
            while running:
                try:
                    answer = running.popleft().get()
                except Unavailable as error:
                    held.append(ChatFailure(str(error)))
                    if len(held) >= UNREACHED:
                        raise EndpointError(f"{self.name}: unavailable for {len(held)} requests: {error}") from error
                    answer = None
                except (Unusable, Rejected, InputError) as error:
                    answer = ChatFailure(one_line(error))
                except EndpointError as error:
                    raise EndpointError(f"{self.name}: {error}") from error
                running.extend(pool.apply_async(self._ask, (request, stopped)) for request in islice(remaining, 1))
                if answer is not None:
                    reached = True
                    yield from held
                    held.clear()
                    yield answer
            if held and not reached:
                raise EndpointError(f"{self.name}: unavailable: {held[-1].reason}")
            yield from held
        finally:
            stopped.set()
            pool.terminate()

    def close(self) -> None:
        """Close connections and the cache."""
        self._client.close()
        if self._cache is not None:
            self._cache.close()

    def _count(self, **more: float) -> None:
        with self._lock:
            self._usage = replace(self._usage, **{name: getattr(self._usage, name) + n for name, n in more.items()})

    def _ask(self, request: ChatRequest, stopped: threading.Event) -> ChatAnswer:
        self._count(requests=1)
        key = self._key(request)
        kept = self._kept(key, request)
        if kept is not None:
            self._count(cached=1)
            return kept
        try:
            answer = self._attempts(request, stopped)
        except Exception:
            self._count(failed=1)
            raise
        if self._cache is not None:
            self._cache.put(key, Kept(answer.text, answer.input_tokens, answer.output_tokens))
        return answer

    def _kept(self, key: str, request: ChatRequest) -> ChatAnswer | None:
        kept = None if self._cache is None else self._cache.get(key)
        if kept is None:
            return None
        try:
            value = None if request.schema is None else read_json_answer(kept.text, request.schema)
        except ValueError:  # the class has stricter validators than it had, which its JSON schema does not show
            return None
        return ChatAnswer(kept.text, value, kept.input_tokens, kept.output_tokens, 0.0, True)

    def _attempts(self, request: ChatRequest, stopped: threading.Event) -> ChatAnswer:
        redrawn = 0
        for attempt in range(self.settings.retries + 1):
            try:
                return self._attempt(request, redrawn)
            except (Unavailable, Unusable) as error:
                if attempt == self.settings.retries:
                    tries = f" ({attempt + 1} attempts)" if attempt else ""
                    raise type(error)(f"{error}{tries}") from error
                redrawn += isinstance(error, Unusable) or error.redraw
                wait = 0.0 if isinstance(error, Unusable) else self._wait(error, attempt)
                log.info("%s: attempt %d: %s; again in %.1f s", self.name, attempt + 1, error, wait)
                self._count(retried=1)
                if stopped.wait(wait):
                    raise
        raise AssertionError("unreachable")

    def _wait(self, error: Unavailable, attempt: int) -> float:
        if error.wait is None:
            return min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt) * random.uniform(0.75, 1)
        if error.wait > LONGEST_ASKED_WAIT:
            raise Unavailable(f"{error}; it asks to wait {error.wait:.0f} s: go on later") from error
        return error.wait

    def _attempt(self, request: ChatRequest, redrawn: int) -> ChatAnswer:
        structured = request.schema is not None and request.schema not in self.unstructured
        try:
            completion = self._completion(request, redrawn, structured)
        except Rejected as error:
            if _RENAMED in str(error) and self._limit != _RENAMED:
                self._limit = _RENAMED
                return self._attempt(request, redrawn)
            if not structured or request.schema is None:
                raise
            completion = self._completion(request, redrawn, False)
            self.unstructured.add(request.schema)
            log.warning("%s: asks for JSON in the prompt, as structured output was refused: %s", self.name, error)
        return self._answer(request, completion)

    def _completion(self, request: ChatRequest, redrawn: int, structured: bool) -> _Completion:
        import openai

        settings = self.settings
        options: dict[str, Any] = {"temperature": settings.temperature, self._limit: settings.max_tokens}
        if redrawn:
            options["temperature"] = max(settings.temperature, _REDRAWN)
        if settings.seed is not None:
            options["seed"] = settings.seed + redrawn
        schema = request.schema
        if schema is not None and structured:
            described = {"name": schema.__name__, "schema": strict_schema(schema), "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": described}
        text = request.text if schema is None or structured else f"{request.text}\n\n{schema_instruction(schema)}"
        pictures = [{"type": "image_url", "image_url": {"url": png_url(image)}} for image in request.images]
        content = [*pictures, {"type": "text", "text": text}] if pictures else text
        messages: list[Any] = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": content})
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=settings.model, messages=messages, extra_headers=self._headers, **options
            )
            return _Completion.model_validate_json(response.http_response.content)
        except openai.APITimeoutError as error:
            raise Unavailable(f"no answer in {settings.timeout:g} s; raise timeout or ask a faster server") from error
        except openai.APIConnectionError as error:
            raise Unavailable(
                f"cannot be reached ({one_line(error.__cause__ or error)}); check base_url {settings.base_url}"
            ) from error
        except openai.APIStatusError as error:
            raise fault_of(error, settings.model, bool(pictures)) from error
        except (openai.APIError, ValidationError, UnicodeDecodeError) as error:
            raise Unusable(f"expected a chat completion, got {one_line(error)}") from error

    def _answer(self, request: ChatRequest, completion: _Completion) -> ChatAnswer:
        """The completion as an answer; its tokens are counted even if it cannot be used."""
        tokens = completion.usage or _Tokens()
        used = (tokens.prompt_tokens, tokens.completion_tokens)
        cost = self.settings.cost(*used)
        self._count(input_tokens=used[0], output_tokens=used[1], cost=cost)
        choice = completion.choices[0]
        text = choice.message.content or ""
        shown = f"{one_line(ValueError(text)):.120}" if text.strip() else "an empty answer"
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise Rejected(f"refused to answer: {one_line(ValueError(choice.message.refusal or shown))}")
        if choice.finish_reason == "length":
            raise Unusable(f"answer cut at max_tokens {self.settings.max_tokens}: {shown}; raise max_tokens")
        if request.schema is None:
            if not text.strip():
                raise Unusable("got an empty answer")
            return ChatAnswer(text.strip(), None, *used, cost, False)
        try:
            return ChatAnswer(text, read_json_answer(text, request.schema), *used, cost, False)
        except ValueError as error:
            raise Unusable(f"expected JSON of {request.schema.__name__} ({error}), got {shown}") from error

    def _key(self, request: ChatRequest) -> str:
        settings = self.settings
        asked = {
            "model": settings.model,
            "system": request.system,
            "text": request.text,
            "images": [array_hash(image) for image in request.images],
            "schema": None if request.schema is None else strict_schema(request.schema),
            "sampling": [settings.temperature, settings.seed, settings.max_tokens],
        }
        return hashlib.sha256(canonical(asked).encode()).hexdigest()
