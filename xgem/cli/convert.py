"""``xgem convert``: published checkpoints in xgem's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from xgem.convert.published import Converted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Write published weights as xgem checkpoints. Files that would run code when they are read are refused.",
)

AllowUnused = Annotated[
    bool, typer.Option("--allow-unused", help="Leave out weights that have no place, instead of an error.")
]
Target = Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")]


@app.command()
def chexgen(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A .pth file as ChexGen publishes.")],
    target: Target,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="A preset's name or a YAML file.", show_default="by the number of positions"),
    ] = None,
    ema: Annotated[bool, typer.Option(help="Take the averaged weights where there are both.")] = True,
    pretrained: Annotated[
        bool, typer.Option(help="Fetch the preset's pretrained codec and encoder too; the checkpoint is then whole.")
    ] = True,
    allow_unused: AllowUnused = False,
) -> None:
    """ChexGen's diffusion transformer."""
    from xgem.convert.chexgen import convert_chexgen

    _show(
        convert_chexgen(weights, target, preset=preset, ema=ema, pretrained=pretrained, allow_unused=allow_unused),
        target,
    )


def _show(converted: Converted, target: Path) -> None:
    from xgem.convert.published import named

    typer.echo(f"{target} ({converted.preset}): {', '.join(converted.components)}")
    if converted.unused:
        typer.echo(f"left out: {named(converted.unused)}", err=True)


@app.command()
def xgem(
    source: Annotated[Path, typer.Argument(metavar="DIR_IN", help="Folder of the published .pt files.")],
    target: Target,
    preset: Annotated[str, typer.Option("--preset", help="A preset's name or a YAML file.")] = "paper",
    allow_unused: AllowUnused = False,
) -> None:
    """XGeM's encoders, image codec and image generators; its report side has no faithful counterpart."""
    from xgem.convert.xgem import convert_xgem

    _show(convert_xgem(source, target, preset=preset, allow_unused=allow_unused), target)
