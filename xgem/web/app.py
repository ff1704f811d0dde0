"""A FastAPI application with what every page of xgem needs: security headers, limits, errors in one line, its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from fastapi_offline import FastAPIOffline
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xgem._version import __version__
from xgem.types import InputError, XgemError

STATIC: Final = Path(__file__).parent / "static"
TEMPLATES: Final = Path(__file__).parent / "templates"
LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]", "::1", "testserver")
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_POLICY_OF_DOCS: Final = f"{_POLICY}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


class TooLarge(InputError):
    """A request's body is longer than the limit."""


def new_app(
    title: str, *, max_body: int, hosts: Sequence[str] = LOOPBACK, docs: bool = False, lifespan: Lifespan | None = None
) -> FastAPI:
    """An application whose answers carry security headers and whose errors are JSON: ``{"error": "one line"}``.

    Args:
        title: of its OpenAPI page.
        max_body: the longest body of a request, in bytes; a longer one is refused with 413.
        hosts: names by which it may be called (the header Host); ``"*"`` allows any.
        docs: whether it has the page ``/docs``, which is of the API.
        lifespan: what runs while it serves.
    """
    options: dict[str, Any] = {"title": title, "version": __version__, "lifespan": lifespan, "redoc_url": None}
    app = FastAPIOffline(docs_url="/docs", **options) if docs else FastAPI(openapi_url=None, docs_url=None, **options)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(_BodyLimit, limit=max_body)
    app.add_middleware(_SameOrigin)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(_SecurityHeaders)
    app.add_exception_handler(XgemError, _failed)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


def templates(*folders: Path) -> Jinja2Templates:
    """The pages in ``folders``, which can build on ``base.html.jinja``; whatever they are given is escaped."""
    loader = ChoiceLoader([FileSystemLoader(folder) for folder in (*folders, TEMPLATES)])
    return Jinja2Templates(env=Environment(loader=loader, autoescape=True, undefined=StrictUndefined))


def _line(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(text.split())}, status)


def _failed(request: Request, error: Exception) -> JSONResponse:
    del request
    status = 413 if isinstance(error, TooLarge) else 422 if isinstance(error, InputError) else 500
    return _line(status, str(error))


def _refused(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, HTTPException)
    return _line(error.status_code, str(error.detail))


def _invalid(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _line(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")


class _SecurityHeaders:
    """Sets the headers of every answer; pages and API answers are never kept by a cache."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = str(scope["path"])

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["Content-Security-Policy"] = _POLICY_OF_DOCS if path.startswith("/docs") else _POLICY
                if not path.startswith("/static"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self.app(scope, receive, with_headers)


class _SameOrigin:
    """Refuses requests that change something and come from a page of another site."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2] != headers.get("host"):
                await _line(403, f"request from another site ({origin[:100]}): refused")(scope, receive, send)
                return
        await self.app(scope, receive, send)


class _BodyLimit:
    """Refuses a body that is longer than the limit, whether or not its length was stated."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        read, started = 0, False
        reason = f"the request is longer than {self.limit / 2**20:g} MiB; send less"
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > self.limit:
            await _line(413, reason)(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self.limit:
                    raise TooLarge(reason)
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except TooLarge:
            if started:
                raise
            await _line(413, reason)(scope, receive, send)
