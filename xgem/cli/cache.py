"""``xgem cache``: what evaluations keep, and where."""

from __future__ import annotations

import typer

app = typer.Typer(help="Show or clear what evaluations keep.", no_args_is_help=True, add_completion=False)


@app.command()
def show() -> None:
    """Show the folder of the cache and the size of its parts. XGEM_CACHE names another folder."""
    from xgem.utils.cache import evaluation_cache, size_of

    folder = evaluation_cache()
    typer.echo(f"{folder}  {_megabytes(size_of(folder))}")
    for part in sorted(folder.iterdir()) if folder.is_dir() else ():
        typer.echo(f"  {part.name:12} {_megabytes(size_of(part))}")


@app.command()
def clear() -> None:
    """Remove features of images, trained judges and predictions; evaluations compute them again."""
    from xgem.utils import cache

    typer.echo(f"{cache.evaluation_cache()}: removed {_megabytes(cache.clear())}")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
