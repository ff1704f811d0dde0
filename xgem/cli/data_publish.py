"""``xgem data filter`` by judges, ``xgem data publish`` and ``xgem data verify``: synthetic sets for others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xgem.cli.counts import AsJson, show_counts
from xgem.cli.options import Device, PrivacyThreshold, privacy_options
from xgem.cli.set_options import Reid

if TYPE_CHECKING:
    from xgem.data.manifest import Manifest
    from xgem.publishing.judging import PictureJudge


@dataclass(frozen=True)
class Judging:
    """Judges of a synthetic set, and what is kept."""

    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            metavar="NAME",
            help="Synthetic images: chat:FILE.yaml or chat:URL#MODEL (quality, 0 to 3), xgem (agreement with the "
            "requested findings, 0 to 1), malformed (1 or more is); repeatable. OUT is then a folder.",
        ),
    ] = None
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="CONDITION", help="With --judge: 'quality>=2' and the like; repeatable, all."),
    ] = None
    top: Annotated[
        int | None,
        typer.Option("--top", metavar="N", min=1, help="With --judge: only the N best by the first judge; ties by id."),
    ] = None
    real: Annotated[
        Path | None, typer.Option("--real", metavar="MANIFEST", help="With --judge malformed: real images.")
    ] = None
    device: Device = None

    def run(self, source: Path, manifest: Manifest, out: Path, *, overwrite: bool, as_json: bool) -> None:
        """Judge a manifest's images, write what is kept, and print the counts."""
        from xgem.publishing.judging import ByQuality
        from xgem.publishing.selection import Condition, select

        conditions = [Condition.parse(text) for text in self.keep or ()]
        judges = [self._opened(name, manifest) for name in self.judge or ()]
        counts = select(source, manifest, judges, conditions, out, top=self.top, overwrite=overwrite)
        asked = [asdict(judge.role.endpoint.usage) for judge in judges if isinstance(judge, ByQuality)]
        show_counts(counts | ({"asked": asked[0]} if asked else {}) | {"folder": str(out)}, as_json)

    def _opened(self, name: str, manifest: Manifest) -> PictureJudge:
        from xgem.chat.settings import PREFIX
        from xgem.judges.chat_roles import QualityJudge, open_endpoint
        from xgem.publishing.judging import ByFindings, ByQuality, ByRealImages, pictures_of
        from xgem.types import InputError
        from xgem.utils.devices import resolve_device

        if name.startswith(PREFIX):
            return ByQuality(QualityJudge(open_endpoint(name)))
        pictures = pictures_of(manifest)
        views = sorted({picture.row.view for picture in pictures if picture.row.view})
        device = str(resolve_device(self.device))
        if name == "xgem":
            return ByFindings(views, device)
        if name == "malformed":
            if self.real is None:
                raise InputError("--judge malformed: compares with real images; give their manifest (--real)")
            return ByRealImages(self.real, views, max(pictures[0].pixels().shape), device=device)
        raise InputError(f"--judge {name}: expected chat:FILE.yaml, chat:URL#MODEL, xgem or malformed")


def publish(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Synthetic set: a manifest, or its folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write, new or empty.")],
    training: Annotated[
        Path,
        typer.Option(
            "--training", metavar="MANIFEST", help="All that the model was trained on; or a privacy gate's index of it."
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the set.", show_default="that of OUT")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Licence of the set.", show_default="that of all rows")
    ] = None,
    drop_close: Annotated[
        bool, typer.Option("--drop-close", help="Leave out images close to a training image, and publish the others.")
    ] = False,
    privacy_threshold: PrivacyThreshold = None,
    reid: Reid = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Write a synthetic set as a data set folder: images, metadata.csv, card, provenance, checksums.

    Refuses images that xgem does not mark as synthetic, and images close to a training image. Nothing is uploaded.
    """
    from xgem.publishing.closeness import Check
    from xgem.publishing.publish import publish as publish_set
    from xgem.utils.devices import resolve_device

    options = privacy_options(privacy_threshold)
    check = Check(training, reid=reid, device=str(resolve_device(device)), **options)
    published = publish_set(manifest, check, out, name=name, licence=licence, drop_close=drop_close)
    counts = {"images": published.images, "splits": dict(published.splits), "dropped": published.dropped}
    show_counts(counts | {"folder": str(out)}, as_json)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of xgem data publish.")],
    as_json: AsJson = False,
) -> None:
    """Check a published set: every file against SHA256SUMS, and that card, tables and provenance agree."""
    from xgem.publishing.verify import verify as verify_set

    show_counts(verify_set(folder), as_json)
