"""``xgem data curate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from xgem.cli.counts import AsJson, show_counts
from xgem.utils.signals import interruptible


def curate(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="Plan of the curation, a YAML file.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to write: new, empty, or begun by this plan.")
    ],
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes of this machine.")] = 1,
    engine: Annotated[
        Literal["local", "dask"], typer.Option("--engine", help="Where it runs: local, or on a Dask cluster.")
    ] = "local",
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Address of the cluster's scheduler.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Join data sets into one: drop copies and unfit images, describe studies, check texts against labels.

    After an interruption, the same command goes on and gives identical files. OUT/decisions.parquet has every
    row of every source with what became of it and why; OUT/README.md is the data card.
    """
    from xgem.curation.counts import as_json as counted
    from xgem.curation.engine import Engine
    from xgem.curation.plan import read_plan
    from xgem.curation.run import curate as run

    where = Engine(engine, jobs, scheduler)
    with interruptible("finished parts are kept, and the same command goes on"):
        done = run(read_plan(plan), out, where)
    show_counts(counted(done) | {"manifest": str(out / "manifest.parquet")}, as_json)
