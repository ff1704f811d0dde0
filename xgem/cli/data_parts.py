"""``xgem data split``, ``sample``, ``filter``, ``show``, ``export``, ``pack``: parts and copies of manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from xgem.cli import completion
from xgem.cli.counts import AsJson, Overwrite, show_counts
from xgem.cli.data_encode import encode
from xgem.cli.data_publish import Judging, publish, verify
from xgem.cli.grouped import grouped
from xgem.cli.options import Reading

if TYPE_CHECKING:
    from xgem.data.manifest import Manifest

Source = Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest: .parquet or .jsonl.")]
Out = Annotated[Path, typer.Option("--out", help="Manifest to write: .parquet or .jsonl.")]


def split(
    manifest: Source,
    out: Out,
    val: Annotated[float, typer.Option("--val", help="Share of the subjects in split val.")] = 0.1,
    test: Annotated[float, typer.Option("--test", help="Share of the subjects in split test.")] = 0.1,
    salt: Annotated[str, typer.Option("--salt", help="Any other text gives another split.")] = "xgem",
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", metavar="SPLIT=FILE", help="Text file of subjects or studies, one a line; repeatable."),
    ] = None,
    rest: Annotated[str | None, typer.Option("--rest", help="With --list: the split of those in no list.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Split a manifest anew by patient: by shares, the same on every machine, or by lists."""
    from xgem.data import select
    from xgem.data.manifest import Manifest
    from xgem.data.tables import split_of_name
    from xgem.types import InputError

    read = Manifest.read(manifest)
    listed: dict[str, list[str]] = {}
    for text in lists or ():
        name, equals, file = text.partition("=")
        known = split_of_name(name)
        if not equals or known is None:
            raise InputError(f"--list {text}: expected SPLIT=FILE with train, val or test")
        listed.setdefault(known, []).extend(select.names_in(Path(file)))
    if rest is not None and (not listed or split_of_name(rest) is None):
        raise InputError(f"--rest {rest}: expected train, val or test, and a --list")
    made = (
        select.split_by_lists(read, listed, rest and split_of_name(rest))
        if listed
        else select.split(read, val=val, test=test, salt=salt)
    )
    _write(made, out, overwrite, as_json)


def sample(
    manifest: Source,
    out: Out,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of studies.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw studies at random, with all of their rows."""
    from xgem.data import select
    from xgem.data.manifest import Manifest

    _write(select.sample(Manifest.read(manifest), count, seed=seed), out, overwrite, as_json)


@grouped
def filter_rows(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest, or the folder of a cohort.")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write; with --judge, a folder, new or empty.")],
    judging: Judging,
    view: Annotated[
        list[str] | None, typer.Option("--view", help="frontal or lateral; repeatable, any will do.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="Class that is present; repeatable, all.")] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Class that is absent; repeatable, all.")
    ] = None,
    sex: Annotated[list[str] | None, typer.Option("--sex", help="F or M.")] = None,
    age: Annotated[
        tuple[float, float] | None, typer.Option("--age", metavar="FIRST LAST", help="Years, both included.")
    ] = None,
    split_name: Annotated[list[str] | None, typer.Option("--split", help="train, val or test; repeatable.")] = None,
    source: Annotated[list[str] | None, typer.Option("--source", help="Source of the labels; repeatable.")] = None,
    report: Annotated[bool | None, typer.Option(help="With a report, or without one.")] = None,
    annotated: Annotated[bool | None, typer.Option(help="With masks, boxes or a score, or without.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Keep the rows that meet all of what is asked. What is unknown of a row meets nothing that is asked of it.

    With --judge, the images of a synthetic set are judged too: OUT receives manifest.parquet, the scores of all images
    with reasons (scores.parquet), and filter.json. Answers of endpoints are kept, so that a second run asks for none.
    """
    from xgem.data import select
    from xgem.data.manifest import Manifest
    from xgem.types import InputError

    criteria = select.Criteria(
        views=view or (),
        labels=label or (),
        without=without or (),
        sexes=sex or (),
        ages=age,
        splits=split_name or (),
        sources=source or (),
        report=report,
        annotated=annotated,
    )
    file = manifest / "manifest.parquet" if manifest.is_dir() else manifest
    rows = select.filtered(Manifest.read(file), criteria)
    if judging.judge:
        judging.run(file, rows, out, overwrite=overwrite, as_json=as_json)
        return
    if judging.keep or judging.top or judging.real:
        raise InputError("--keep, --top and --real go with --judge; name a judge")
    _write(rows, out, overwrite, as_json)


@grouped
def show(
    manifest: Source,
    how: Reading,
    out: Annotated[Path, typer.Option("--out", help="Page to write: .html or .png; outside of any repository.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of images.")] = 12,
    split_name: Annotated[str | None, typer.Option("--split", help="train, val or test; all by default.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
) -> None:
    """Show random images with their texts, labels and annotations on one page."""
    from xgem.data.manifest import Manifest
    from xgem.data.show import write_page
    from xgem.types import OutputError

    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; choose another name or pass --overwrite")
    write_page(Manifest.read(manifest).read_as(how.reading), out, count=count, split=split_name, seed=seed)
    typer.echo(str(out))


def export(
    manifest: Source,
    out: Annotated[Path, typer.Option("--out", help="Folder to write, new or empty.")],
    form: Annotated[Literal["imagefolder"], typer.Option("--format", help="Form of the data set.")] = "imagefolder",
    copy: Annotated[bool, typer.Option("--copy", help="Copy images; without it they are linked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a manifest, of a cohort for one, as imagefolder of datasets: a folder by split with metadata.csv."""
    from xgem.data.export import write_imagefolder
    from xgem.data.manifest import Manifest

    del form
    counts = write_imagefolder(Manifest.read(manifest), out, copy=copy)
    show_counts({"images": counts, "folder": str(out)}, as_json)


def pack(
    manifest: Source,
    out: Annotated[Path, typer.Option("--out", help="Folder to write, new or empty.")],
    preset: Annotated[
        str,
        typer.Option(
            "--preset", help="Preset or YAML file that prepares the images.", autocompletion=completion.presets
        ),
    ] = "openi-256",
    quality: Annotated[int, typer.Option("--quality", help="Quality of WebP, 1 to 100.")] = 85,
    as_json: AsJson = False,
) -> None:
    """Pack a data set into a small folder: images at a preset's size as WebP, texts, labels, masks, boxes.

    OUT/manifest.parquet is read by all commands. Compression is lossy: the peak signal-to-noise ratio is printed.
    """
    from xgem.configs import load_preset
    from xgem.data.manifest import Manifest
    from xgem.data.pack import pack as pack_images

    counts = pack_images(Manifest.read(manifest), out, load_preset(preset).transform, quality=quality)
    show_counts(counts | {"folder": str(out)}, as_json)


def _write(made: Manifest, out: Path, overwrite: bool, as_json: bool) -> None:
    made.check(files=False)
    made.write(out, overwrite=overwrite)
    show_counts(made.summary() | {"manifest": str(out)}, as_json)


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "split": split,
    "sample": sample,
    "filter": filter_rows,
    "show": show,
    "export": export,
    "pack": pack,
    "encode": encode,
    "publish": publish,
    "verify": verify,
}
