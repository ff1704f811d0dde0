"""``xgem readers``: studies in which people judge real and synthetic items without knowing which is which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xgem.cli.grouped import grouped
from xgem.cli.listening import Listening
from xgem.cli.options import Draws, Overwrite, Progress, Seed
from xgem.types import InputError
from xgem.utils.signals import interruptible

if TYPE_CHECKING:
    from xgem.readers.study import Study

app = typer.Typer(
    help="Reader studies: people judge real and synthetic items, blind.", no_args_is_help=True, add_completion=False
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a study.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        envvar="XGEM_READERS_DATABASE",
        help="Database: postgresql://USER@HOST/NAME (the extra postgres) or sqlite:///FILE.",
        show_default="SQLite in the folder",
    ),
]


@app.command()
def new(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="Plan of the study, a YAML file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write: new or empty.")],
    database: Database = None,
    progress: Progress = True,
) -> None:
    """Draw the items of a new study, make them alike, and store which is which in its database."""
    del progress
    from xgem.readers.plan import read_plan
    from xgem.readers.study import build

    study = read_plan(plan)
    built = build(study, out, database)
    for (task, arm), count in built.items.items():
        typer.echo(f"{task}: {count} items of {arm}")
    size = "" if built.size is None else f", pictures of {built.size} x {built.size}"
    typer.echo(f"{out}: {sum(built.items.values())} items for {len(study.readers)} readers{size}")


@app.command()
def links(
    folder: Folder,
    reader: Annotated[
        list[str] | None,
        typer.Option("--reader", metavar="NAME", help="Only this reader; may be repeated.", show_default="all"),
    ] = None,
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Where readers reach the page.")
    ] = "http://127.0.0.1:8000",
    database: Database = None,
) -> None:
    """Make a new link for each reader and print it. Earlier links no longer work; only hashes are stored."""
    from xgem.readers.study import new_links

    for name, token in new_links(_opened(folder, database), reader or ()).items():
        typer.echo(f"{name}  {url.rstrip('/')}/r/{token}")


@app.command()
@grouped
def serve(folder: Folder, listening: Listening, database: Database = None) -> None:
    """Serve the page of a study until interrupted.

    A link is a password: for readers elsewhere, put a proxy with TLS in front (--behind-proxy --allowed-host NAME).
    """
    from xgem.readers.server import reader_app
    from xgem.web.app import LOOPBACK
    from xgem.web.run import address_of, is_loopback, listen, run

    host, names = listening.host, listening.allowed_host or ()
    if not is_loopback(host) and not names:
        raise InputError(f"--host {host}: expected also --allowed-host, the name of the page in the readers' links")
    application = reader_app(_opened(folder, database), (*LOOPBACK, *names))
    opened = listen(host, listening.port)
    typer.echo(f"xgem: {address_of(opened)} (Ctrl-C ends it)", err=True)
    with interruptible("answers are kept, and the same command goes on"):
        run(application, opened, proxied=listening.behind_proxy)


@app.command()
def report(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for tables, report and figures.")],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write all answers, with arms and cases.")
    ] = None,
    seed: Seed = 0,
    bootstrap: Draws = 2000,
    overwrite: Overwrite = False,
    database: Database = None,
) -> None:
    """Report scores, tests, agreement, guesses and times of the answers so far.

    Who reads this is no longer blind: wait until the readers have finished.
    """
    from xgem.eval.report import check_results_folder
    from xgem.readers.analysis import Settings
    from xgem.readers.report import STEM, as_markdown, report_of, write_answers, write_report

    check_results_folder(out, STEM, overwrite=overwrite)
    found = report_of(_opened(folder, database), Settings(seed, bootstrap))
    write_report(found, out, overwrite=overwrite)
    if csv is not None:
        write_answers(found, csv)
    typer.echo(as_markdown(found))


def _opened(folder: Path, database: str | None) -> Study:
    from xgem.readers.study import open_study

    return open_study(folder, database)
