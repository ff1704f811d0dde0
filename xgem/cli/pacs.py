"""``xgem pacs``: find, fetch and send DICOM objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli.options import at_least

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

app = typer.Typer(
    help="Find, fetch and send DICOM objects. Credentials come from XGEM_DICOMWEB_TOKEN, or XGEM_DICOMWEB_USER and "
    "XGEM_DICOMWEB_PASSWORD.",
    no_args_is_help=True,
    add_completion=False,
)

Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="dicomweb://host:port/path, or dicomwebs:// for TLS.")]


@app.command()
def find(
    address: Address,
    patient: Annotated[str | None, typer.Option("--patient", metavar="ID", help="PatientID.")] = None,
    study: Annotated[
        str | None, typer.Option("--study", metavar="UID", help="StudyInstanceUID; lists its objects.")
    ] = None,
    modality: Annotated[str | None, typer.Option("--modality", metavar="NAME", help="DX, CR, SR, SEG ...")] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", callback=at_least(1), help="Maximum number of results.")
    ] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print DICOM JSON.")] = False,
) -> None:
    """List studies, or the objects of one study, each with its address.

    xgem pacs find dicomweb://localhost:8042/dicom-web --patient A1

    The address of an object is an input of xgem generate: --frontal ADDRESS.
    """
    from dataclasses import replace

    from xgem.dicom.address import web_address
    from xgem.dicom.web import find as search

    place = web_address(address, "find in")
    place = place if study is None else replace(place, study=study, series=None, instance=None)
    filters = {"PatientID": patient, "ModalitiesInStudy" if place.study is None else "Modality": modality}
    found = search(place, {name: value for name, value in filters.items() if value is not None}, limit=limit)
    if as_json:
        typer.echo(json.dumps([one.to_json_dict() for one in found], indent=2))
        return
    for one in found:
        series, instance = (None, None) if place.study is None else (one.SeriesInstanceUID, one.SOPInstanceUID)
        where = replace(place, study=one.StudyInstanceUID, series=series, instance=instance)
        typer.echo("\t".join([str(where), *_shown(one)]))


def _shown(one: Dataset) -> list[str]:
    """What a line says of a study or object beside its address."""
    keywords = ("PatientID", "StudyDate", "ModalitiesInStudy", "Modality", "StudyDescription", "SeriesDescription")
    values: list[Any] = [one.get(keyword) for keyword in keywords]
    return [",".join(value) if not isinstance(value, str) else value for value in values if value]


@app.command()
def fetch(
    address: Address,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files, new or empty.")],
) -> None:
    """Fetch an object, a series or a study, as DICOM files.

    xgem pacs fetch dicomweb://localhost:8042/dicom-web/studies/1.2.3 --out study
    """
    from xgem.dicom.address import web_address
    from xgem.dicom.web import fetch as retrieve
    from xgem.utils.files import new_folder

    place = web_address(address, "fetch from")
    with new_folder(out) as folder:
        names = [path.name for path in retrieve(place, folder)]
    for name in names:
        typer.echo(str(out / name))


@app.command()
def send(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="DICOM files.")],
    to: Annotated[
        str, typer.Option("--to", metavar="ADDRESS", help="dicomweb://host:port/path or dimse://AETITLE@host:port.")
    ],
) -> None:
    """Send DICOM files: by STOW-RS to DICOMweb, by C-STORE to an AE title.

    xgem pacs send results/*.dcm --to dimse://ORTHANC@localhost:4242
    """
    from xgem.dicom.transfer import send as transfer

    transfer(to, files)
    typer.echo(f"{len(files)} objects stored")
