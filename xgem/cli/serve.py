"""``xgem serve``, ``xgem app`` and ``xgem worker``."""

from __future__ import annotations

import logging
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli.grouped import grouped
from xgem.cli.listening import Listening
from xgem.types import InputError
from xgem.utils.signals import interruptible

if TYPE_CHECKING:
    from xgem.serve.settings import Settings


@dataclass(frozen=True)
class Generating:
    """What a server and its workers have in common."""

    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Folder of the server: database, inputs, results.")
    ] = Path("xgem-server")
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            help="Database: postgresql://USER@HOST/NAME (the extra postgres), or sqlite:///FILE.",
            show_default="SQLite in the folder",
            envvar="XGEM_DATABASE",
        ),
    ] = None
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME", help="Checkpoint to offer; may be repeated.", show_default="the embedded ones"
        ),
    ] = None
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.", show_default="float32")
    ] = None
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", min=1, help="Requests without a seed of their own that are generated together."),
    ] = 8
    privacy_gate: Annotated[
        Path | None,
        typer.Option(
            "--privacy-gate",
            metavar="PATH",
            help="Refuse images too close to a training image in every request. PATH: manifest, folder or index.",
        ),
    ] = None

    def settings(self, **limits: int) -> Settings:
        """The settings, with ``limits`` of requests."""
        from xgem.serve.settings import Settings

        given: dict[str, Any] = {**limits, **({"models": tuple(self.model)} if self.model else {})}
        return Settings(
            self.data.absolute(),
            database=self.database,
            dtype=self.dtype,
            batch_size=self.batch_size,
            privacy_gate=self.privacy_gate,
            **given,
        )


@dataclass(frozen=True)
class Answering:
    """What a server has besides."""

    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device", metavar="NAME", help="Device with a worker; may be repeated.", show_default="every GPU, or cpu"
        ),
    ] = None
    workers: Annotated[
        bool,
        typer.Option("--workers/--no-workers", help="Generate too, or leave that to xgem worker, here or elsewhere."),
    ] = True
    upload_mib: Annotated[int, typer.Option("--upload-mib", min=1, help="Longest request, in MiB.")] = 64
    most_samples: Annotated[
        int, typer.Option("--most-samples", min=1, help="Most samples (times candidates) of a request.")
    ] = 16


@grouped
def serve(
    generating: Generating,
    answering: Answering,
    listening: Listening,
    add_token: Annotated[
        str | None,
        typer.Option("--add-token", metavar="NAME", help="Make a token, print it, and end. Then all users need one."),
    ] = None,
    revoke_token: Annotated[
        str | None, typer.Option("--revoke-token", metavar="NAME", help="End the token of a user, and end.")
    ] = None,
) -> None:
    """Answer requests over HTTP: the API, with its description at /docs.

    xgem serve --data server

    Requests are queued in a database, so that a restart loses none. Without tokens, only this machine can use it.
    """
    if add_token is not None or revoke_token is not None:
        _tokens(generating.settings(), add_token, revoke_token)
    else:
        _serve(generating, answering, listening, page=False, browser=False)


@grouped
def app(
    generating: Generating,
    answering: Answering,
    listening: Listening,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """A page to generate with, in a browser, on the API of xgem serve."""
    _serve(generating, answering, listening, page=True, browser=browser)


@grouped
def worker(
    generating: Generating,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Device.", show_default="a GPU, or cpu")
    ] = None,
) -> None:
    """Generate what a server has queued, until Ctrl-C. Folder, database and checkpoints are those of the server."""
    from xgem.serve.worker import run_worker

    run_worker(generating.settings(), device)


def _serve(generating: Generating, answering: Answering, where: Listening, *, page: bool, browser: bool) -> None:
    from xgem.serve.app import allowed_hosts, make_app
    from xgem.serve.state import Server
    from xgem.utils.devices import available_devices, resolve_device, resolve_dtype
    from xgem.web.run import address_of, listen, run

    settings = generating.settings(upload_mib=answering.upload_mib, most_samples=answering.most_samples)
    gpus = [name for name in available_devices() if name.startswith("cuda")]
    devices = (answering.device or gpus or available_devices()[:1]) if answering.workers else []
    for name in devices:
        resolve_dtype(settings.dtype, resolve_device(name))
    server = Server.open(settings)
    hosts = allowed_hosts(server, where.host, where.allowed_host or ())
    listening = listen(where.host, where.port)
    address = address_of(listening)
    logging.getLogger("xgem").info("data in %s, workers on %s", settings.folder, ", ".join(devices) or "other machines")
    typer.echo(f"xgem: {address}{'' if page else '/docs'} (Ctrl-C ends it)", err=True)
    if browser:
        webbrowser.open(address)
    with interruptible("waiting requests are kept, and the same command goes on with them"):
        run(make_app(server, devices, hosts, page=page), listening, proxied=where.behind_proxy)


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
