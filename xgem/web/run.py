"""Running an application on an address."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from xgem.types import InputError, OutputError

if TYPE_CHECKING:
    from fastapi import FastAPI


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host``; port 0 takes a free one.

    Raises:
        InputError: no such address. OutputError: the port is in use, or not allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host!r}: no address of this machine ({error}); try 127.0.0.1") from error
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise OutputError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from error
    listening.listen(512)
    return listening


def address_of(listening: socket.socket) -> str:
    """``http://127.0.0.1:8000``."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, listening: socket.socket, *, proxied: bool = False) -> None:
    """Serve until a signal ends it; requests that are running get ten seconds.

    ``proxied``: believe a proxy, which alone can reach it, what it says of the client's address and of TLS.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=proxied,
        forwarded_allow_ips="*" if proxied else None,
        timeout_graceful_shutdown=10,
    )
    uvicorn.Server(config).run(sockets=[listening])
