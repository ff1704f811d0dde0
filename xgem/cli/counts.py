"""What the commands on manifests share: options, and the counts that they print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing manifest.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")]


def show_counts(
    counts: Mapping[str, object], as_json: bool, labels: Mapping[str, tuple[int, int, int]] | None = None
) -> None:
    """Counts, a line each; ``labels``: of each class the studies that have it, do not have it, and are unknown."""
    if as_json:
        columns = ("present", "absent", "unknown")
        by_class = {name: dict(zip(columns, count, strict=True)) for name, count in (labels or {}).items()}
        typer.echo(json.dumps(dict(counts) | ({} if labels is None else {"labels": by_class})))
        return
    for name, value in counts.items():
        text = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name:12} {text}")
    if labels and any(present for present, _, _ in labels.values()):
        typer.echo(f"{'class':28} {'present':>8} {'absent':>8} {'unknown':>8}")
        for name, (present, absent, unknown) in labels.items():
            typer.echo(f"{name:28} {present:8d} {absent:8d} {unknown:8d}")
