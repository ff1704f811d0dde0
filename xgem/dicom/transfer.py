"""Sending files to a PACS, and inputs that are fetched from one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xgem.data.headers import read_header
from xgem.dicom.address import WebAddress, is_address, parse_address, web_address
from xgem.types import InputError, PacsError


def send(address: str, files: Sequence[Path]) -> None:
    """Store DICOM files: STOW-RS or C-STORE, by the address.

    Raises:
        InputError: the address is none, or a file is not DICOM.
        PacsError: not all were stored; says which arrived.
    """
    from xgem.dicom import dimse, web

    place = parse_address(address)
    for file in files:
        read_header(file)
    stored: list[str] = []
    refused: list[str] = []
    sending = web.store(place, files) if isinstance(place, WebAddress) else dimse.store(place, files)
    try:
        for file, reason in sending:
            (refused if reason else stored).append(f"{file.name} ({reason})" if reason else file.name)
    except PacsError as error:
        raise PacsError(f"{error}; {_arrived(stored, len(files))}") from None
    if refused:
        raise PacsError(f"{place}: refused {', '.join(refused)}; {_arrived(stored, len(files))}")


def _arrived(stored: Sequence[str], count: int) -> str:
    return f"{len(stored)} of {count} objects arrived" + (f": {', '.join(stored)}" if stored else "")


def local(value: Any, directory: Path) -> Any:
    """A value of an input; of an address, the one object there as a file in ``directory``.

    Raises:
        InputError: the address names several objects. PacsError: it cannot be fetched.
    """
    if not is_address(value):
        return value
    from xgem.dicom import web

    address = web_address(value, "input")
    if address.instance is None:
        raise InputError(f"input {address}: names no instance; expected .../studies/UID/series/UID/instances/UID")
    (file,) = web.fetch(address, directory)
    return file
