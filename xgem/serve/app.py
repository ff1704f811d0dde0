"""The application of the server, with its workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from xgem.serve import api, monitoring
from xgem.serve.page.page import add_page
from xgem.serve.settings import MIB
from xgem.serve.state import Server
from xgem.serve.supervisor import Supervisor
from xgem.types import InputError
from xgem.web.app import LOOPBACK, new_app
from xgem.web.run import is_loopback


def make_app(
    server: Server, devices: Sequence[str] = (), hosts: Sequence[str] = LOOPBACK, *, page: bool = False
) -> FastAPI:
    """The API of a server, with the ``page`` on it; while it runs, a worker generates on each of ``devices``."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        with Supervisor(server.settings, server.queue, devices):
            yield

    app = new_app("xgem", max_body=server.settings.upload_mib * MIB, hosts=hosts, docs=True, lifespan=lifespan)
    app.state.server = server
    app.include_router(api.router)
    app.include_router(monitoring.router)
    if page:
        add_page(app)
    return app


def allowed_hosts(server: Server, host: str, names: Sequence[str]) -> list[str]:
    """The names by which a server that listens on ``host`` may be called.

    Raises:
        InputError: it could be reached from other machines, and anybody could use it.
    """
    if not is_loopback(host) and not server.with_tokens:
        raise InputError(
            f"--host {host}: other machines could use it without a token; make one first: xgem serve --add-token NAME"
        )
    # Pages of other sites cannot show a token, so names need no check where there are tokens
    return [*LOOPBACK, *names] if names or not server.with_tokens else ["*"]
