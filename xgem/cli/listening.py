"""Options of commands that answer over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True)
class Listening:
    """Where a page is reached."""

    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="Name by which it may be called besides this machine's own; may be repeated.",
        ),
    ] = None
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="Believe a proxy, which alone can reach it, in X-Forwarded headers.")
    ] = False
