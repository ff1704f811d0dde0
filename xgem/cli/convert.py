"""``xgem convert``: published weights as xgem checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from xgem.convert.published import Converted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Convert published weights to xgem checkpoints. Files that could execute code when loaded are refused.",
)

AllowUnused = Annotated[
    bool, typer.Option("--allow-unused", help="Skip weights that have no counterpart, instead of failing.")
]
Target = Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint folder to write, new or empty.")]


@app.command()
def chexgen(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A .pth file published with ChexGen.")],
    target: Target,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Preset name or YAML file.", show_default="by the number of position embeddings"),
    ] = None,
    ema: Annotated[bool, typer.Option(help="Use the EMA weights if the file has both.")] = True,
    pretrained: Annotated[
        bool, typer.Option(help="Also fetch the preset's pretrained codec and text encoder, for a complete checkpoint.")
    ] = True,
    allow_unused: AllowUnused = False,
) -> None:
    """Convert ChexGen's diffusion transformer, and its ControlNet if the file has one."""
    from xgem.convert.chexgen import convert_chexgen

    _show(
        convert_chexgen(weights, target, preset=preset, ema=ema, pretrained=pretrained, allow_unused=allow_unused),
        target,
    )


def _show(converted: Converted, target: Path) -> None:
    from xgem.convert.published import named

    typer.echo(f"{target} ({converted.preset}): {', '.join(converted.components)}")
    if converted.unused:
        typer.echo(f"skipped: {named(converted.unused)}", err=True)


@app.command()
def xgem(
    source: Annotated[Path, typer.Argument(metavar="DIR_IN", help="Folder with the published files.")],
    target: Target,
    preset: Annotated[str, typer.Option("--preset", help="Preset name or YAML file.")] = "xgem-published",
    allow_unused: AllowUnused = False,
) -> None:
    """Convert XGeM: encoders, codecs, generators of images and reports, and joint generation.

    Beside the .pt files, the vocabularies of the published code are read where they are there.
    """
    from xgem.convert.xgem import convert_xgem

    _show(convert_xgem(source, target, preset=preset, allow_unused=allow_unused), target)
