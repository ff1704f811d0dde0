"""``xgem chat``: endpoints of language and vision models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from xgem.cli.counts import AsJson, show_counts

app = typer.Typer(help="Language and vision models at an HTTP endpoint.", no_args_is_help=True, add_completion=False)


@app.command()
def check(
    plan: Annotated[
        Path | None, typer.Argument(metavar="PLAN", help="YAML file with base_url, model, ...", show_default=False)
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="Address: http://localhost:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="The model's name there.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="VARIABLE", help="Environment variable with the key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model for a sentence, for JSON of a schema, and what a picture shows: what works, and what does not.

    Exits with 1 unless a sentence and JSON come back; a model without vision can still rewrite and label.
    """
    import json
    from dataclasses import asdict

    from xgem.chat.check import check_endpoint
    from xgem.chat.settings import ChatSettings
    from xgem.types import InputError

    given = {"base_url": base_url, "model": model, "api_key_env": api_key_env}
    given = {name: value for name, value in given.items() if value is not None}
    if (plan is None) == (not given):
        raise InputError("expected a PLAN, or --base-url and --model")
    settings = ChatSettings.parse(given, "xgem chat check") if plan is None else ChatSettings.named(f"chat:{plan}")
    checked = check_endpoint(settings)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in checked], indent=2))
    else:
        typer.echo(f"{settings.model} at {settings.host}")
        for one in checked:
            typer.echo(f"{one.question:8} {'works' if one.works else 'fails':6} {one.said}")
    if not all(one.works for one in checked if one.question != "picture"):
        raise typer.Exit(1)


@app.command()
def write(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Studies: .parquet or .jsonl.")],
    writer: Annotated[str, typer.Option("--writer", metavar="chat:...", help="chat:FILE.yaml or chat:URL#MODEL.")],
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")],
    kind: Annotated[
        Literal["report", "caption"],
        typer.Option("--kind", help="report: of all views of a study; caption: of its image of --view."),
    ] = "report",
    split: Annotated[str | None, typer.Option("--split", help="Restrict to this split.", show_default="all")] = None,
    view: Annotated[str, typer.Option("--view", metavar="NAME", help="View that is captioned.")] = "frontal",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a vision model write a report or a caption of each study: a set for `xgem eval text --generated`.

    Answers are kept, so that a second run asks only for what has none; what stays without one is in OUT.left-out.csv.
    """
    from dataclasses import asdict

    from xgem.data.manifest import Manifest
    from xgem.judges.chat_roles import Captioner, ReportWriter, open_endpoint
    from xgem.judges.chat_writing import write_texts

    endpoint = open_endpoint(writer)
    role = ReportWriter(endpoint) if kind == "report" else Captioner(endpoint)
    counts = write_texts(Manifest.read(manifest).studies(split), role, out, view=view, overwrite=overwrite)
    show_counts(counts | {"asked": asdict(endpoint.usage), "table": str(out)}, as_json)
