"""``xgem eval rank | compare | metrics | schema``: what is done with the records of evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from xgem.cli.options import AsJson, Draws, Seed
from xgem.types import InputError

app = typer.Typer()


@app.command()
def rank(
    records: Annotated[
        list[str], typer.Argument(metavar="NAME=FILE...", help="Records of several models: mine=runs/mine/all.json")
    ],
    family: Annotated[
        list[str] | None,
        typer.Option("--family", metavar="NAME", help="Only this family; may be repeated.", show_default="all"),
    ] = None,
) -> None:
    """Rank several models by every metric that all their records have."""
    from xgem.eval.compare import rank_records
    from xgem.eval.schema import read_record

    named = [text.partition("=") for text in records]
    if any(not separator or not name for name, separator, _ in named):
        raise InputError(f"{' '.join(records)}: expected NAME=FILE for each model")
    found = {name: read_record(path) for name, _, path in named}
    typer.echo(rank_records(found, families=family).as_markdown())


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run folder, or a table of cases (text_cases.csv).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same of another model, on the same studies.")],
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    as_json: AsJson = False,
) -> None:
    """Compare two models case by case: paired differences A - B, Wilcoxon's signed-rank test, Holm's correction."""
    from xgem.eval.compare import compare_runs, comparison_json, comparison_table

    tests = compare_runs(first, second, draws=bootstrap, seed=seed)
    typer.echo(json.dumps(comparison_json(tests), indent=2) if as_json else comparison_table(tests))


@app.command()
def metrics(
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Only this family.", show_default="all")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List all metrics: direction, range, source and a line on each."""
    from xgem.eval.registry import FAMILIES, as_markdown, as_rows

    if family is not None and family not in FAMILIES:
        raise InputError(f"family {family!r}: expected one of {', '.join(FAMILIES)}")
    typer.echo(json.dumps(as_rows(family), indent=2, ensure_ascii=False) if as_json else as_markdown(family))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the records that evaluations write."""
    from xgem.eval.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
