"""Results of a command: saved, sent to a PACS where asked, and shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xgem.dicom.address import parse_address
from xgem.types import InputError, PacsError

if TYPE_CHECKING:
    from xgem.pipeline.generation import Generation


@dataclass(frozen=True)
class Saving:
    """How and where results are saved: ``out``, and addresses of a PACS to send to."""

    out: Path
    overwrite: bool
    as_json: bool
    format: str = "png"
    keep_patient: bool = False
    send: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, out: Path, overwrite: bool, as_json: bool, format: str | None, keep_patient: bool, send: list[str] | None
    ) -> Saving:
        """From a command's options, before anything is generated.

        Raises:
            InputError: an address that is none, or a format that cannot be sent or hold a patient.
        """
        addresses = tuple(str(parse_address(text)) for text in send or ())
        needing = [name for name, given in (("--send", addresses), ("--keep-patient", keep_patient)) if given]
        if needing and format == "png":
            raise InputError(f"{needing[0]} is about DICOM files; leave --format png out")
        chosen = "dicom" if needing else format or "png"
        return cls(out, overwrite, as_json, chosen, keep_patient, addresses)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``Generation.save``."""
        return {"format": self.format, "keep_patient": self.keep_patient}


def save(generation: Generation, saving: Saving) -> None:
    """Save one generation; print its files, or its record."""
    generation.save(saving.out, overwrite=saving.overwrite, **saving.options)
    finish([saving.out], saving)


def finish(folders: Iterable[Path], saving: Saving, *, many: bool = False) -> None:
    """Send and print the results in folders, each as soon as it is there; records are printed in the end."""
    from xgem.pipeline.generation import RECORD_NAME

    records: list[Any] = []
    for folder in folders:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        records.append(record)
        entries = [entry for of_output in record["files"].values() for entry in of_output]
        if not saving.as_json:
            for entry in entries:
                typer.echo(str(folder / entry["file"]))
        _send(folder, entries, saving)
    if saving.as_json:
        typer.echo(json.dumps(records if many else records[0], indent=2, sort_keys=True))


def _send(folder: Path, entries: Iterable[Mapping[str, Any]], saving: Saving) -> None:
    """Send all objects of a folder."""
    if not saving.send:
        return
    from xgem.dicom.transfer import send

    files = [folder / name for entry in entries for name in (entry["file"], *entry.get("annotations", ()))]
    for address in saving.send:
        try:
            send(address, files)
        except PacsError as error:
            raise PacsError(f"{error}; what was generated is in {folder}") from None
