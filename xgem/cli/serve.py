"""``xgem serve``, ``xgem app`` and ``xgem worker``."""

from __future__ import annotations

import logging
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.types import InputError
from xgem.utils.signals import interruptible

if TYPE_CHECKING:
    from xgem.serve.settings import Settings

Folder = Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of the server: database, inputs, results.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="Database: postgresql://USER@HOST/NAME, or sqlite:///FILE.",
        show_default="SQLite in the folder",
        envvar="XGEM_DATABASE",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", metavar="NAME", help="Checkpoint to offer; may be repeated.", show_default="the embedded ones"
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device", metavar="NAME", help="Device with a worker; may be repeated.", show_default="every GPU, or cpu"
    ),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.", show_default="float32")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Requests without a seed of their own that are generated together.")
]
Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="Name by which it may be called besides this machine's own; may be repeated.",
    ),
]
Upload = Annotated[int, typer.Option("--upload-mib", min=1, help="Longest request, in MiB.")]
Samples = Annotated[int, typer.Option("--most-samples", min=1, help="Most samples (times candidates) of a request.")]
NoWorkers = Annotated[
    bool, typer.Option("--no-workers", help="Only answer; xgem worker generates, here or on other machines.")
]
Gate = Annotated[
    Path | None,
    typer.Option(
        "--privacy-gate",
        metavar="PATH",
        help="Refuse images too close to a training image in every request. PATH: manifest, folder or index of them.",
    ),
]
Proxied = Annotated[
    bool, typer.Option("--behind-proxy", help="Believe a proxy, which alone can reach it, in X-Forwarded headers.")
]
AddToken = Annotated[
    str | None,
    typer.Option("--add-token", metavar="NAME", help="Make a token for a user, print it, and end. Then all need one."),
]
RevokeToken = Annotated[
    str | None, typer.Option("--revoke-token", metavar="NAME", help="End the token of a user, and end.")
]
DATA = Path("xgem-server")


def serve(
    data: Folder = DATA,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Models = None,
    device: Devices = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 8,
    database: Database = None,
    privacy_gate: Gate = None,
    no_workers: NoWorkers = False,
    upload_mib: Upload = 64,
    most_samples: Samples = 16,
    allowed_host: Hosts = None,
    behind_proxy: Proxied = False,
    add_token: AddToken = None,
    revoke_token: RevokeToken = None,
) -> None:
    """Answer requests over HTTP: the API, with its description at /docs.

    xgem serve --data server

    Requests are queued in a database, so that a restart loses none. Without tokens, only this machine can use it.
    """
    limits: dict[str, Any] = {"upload_mib": upload_mib, "most_samples": most_samples, "privacy_gate": privacy_gate}
    settings = _settings(data, database, model, dtype, batch_size, **limits)
    if add_token is not None or revoke_token is not None:
        _tokens(settings, add_token, revoke_token)
        return
    _serve(settings, host, port, [] if no_workers else device, allowed_host, behind_proxy, page=False, browser=False)


def app(
    data: Folder = DATA,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Models = None,
    device: Devices = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 8,
    database: Database = None,
    privacy_gate: Gate = None,
    no_workers: NoWorkers = False,
    upload_mib: Upload = 64,
    most_samples: Samples = 16,
    allowed_host: Hosts = None,
    behind_proxy: Proxied = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """A page to generate with, in a browser, on the API of xgem serve."""
    limits: dict[str, Any] = {"upload_mib": upload_mib, "most_samples": most_samples, "privacy_gate": privacy_gate}
    settings = _settings(data, database, model, dtype, batch_size, **limits)
    devices = [] if no_workers else device
    _serve(settings, host, port, devices, allowed_host, behind_proxy, page=True, browser=browser)


def worker(
    data: Folder = DATA,
    database: Database = None,
    model: Models = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Device.", show_default="a GPU, or cpu")
    ] = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 8,
    privacy_gate: Gate = None,
) -> None:
    """Generate what a server has queued, until Ctrl-C. Folder, database and checkpoints are those of the server."""
    from xgem.serve.worker import run_worker

    run_worker(_settings(data, database, model, dtype, batch_size, privacy_gate=privacy_gate), device)


def _settings(
    data: Path, database: str | None, models: list[str] | None, dtype: str | None, batch_size: int, **more: Any
) -> Settings:
    from xgem.serve.settings import Settings

    if models:
        more["models"] = tuple(models)
    return Settings(data.absolute(), database=database, dtype=dtype, batch_size=batch_size, **more)


def _serve(
    settings: Settings,
    host: str,
    port: int,
    devices: list[str] | None,
    names: list[str] | None,
    proxied: bool,
    *,
    page: bool,
    browser: bool,
) -> None:
    from xgem.serve.app import allowed_hosts, make_app
    from xgem.serve.state import Server
    from xgem.utils.devices import available_devices, resolve_device, resolve_dtype
    from xgem.web.run import address_of, listen, run

    if devices is None:
        devices = [name for name in available_devices() if name.startswith("cuda")] or available_devices()[:1]
    for name in devices:
        resolve_dtype(settings.dtype, resolve_device(name))
    server = Server.open(settings)
    hosts = allowed_hosts(server, host, names or ())
    listening = listen(host, port)
    address = address_of(listening)
    logging.getLogger("xgem").info("data in %s, workers on %s", settings.folder, ", ".join(devices) or "other machines")
    typer.echo(f"xgem: {address}{'' if page else '/docs'} (Ctrl-C ends it)", err=True)
    if browser:
        webbrowser.open(address)
    with interruptible("waiting requests are kept, and the same command goes on with them"):
        run(make_app(server, devices, hosts, page=page), listening, proxied=proxied)


def _tokens(settings: Settings, add: str | None, revoke: str | None) -> None:
    if add is not None and revoke is not None:
        raise InputError("--add-token and --revoke-token were both given; give one at a time")
    from xgem.serve.tables import MIGRATIONS
    from xgem.serve.tokens import Tokens
    from xgem.web.database import open_database

    tokens = Tokens(open_database(settings.database_url, MIGRATIONS))
    if add is not None:
        typer.echo(tokens.add(add))
    elif revoke is not None:
        tokens.revoke(revoke)
