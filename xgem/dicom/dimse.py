"""C-STORE (PS3.4, annex B) by pynetdicom: objects are sent over one association, as they are encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from xgem.dicom.address import DimseAddress
from xgem.types import PacsError

CALLING_TITLE: Final = "XGEM"
"""The application entity title that xgem calls with."""
TIMEOUT: Final = 30.0
_WARNINGS: Final = range(0xB000, 0xC000)  # stored, with a remark


def store(address: DimseAddress, files: Sequence[Path], *, timeout: float = TIMEOUT) -> Iterator[tuple[Path, str]]:
    """Store files one by one; yields each with the reason why it was refused, empty where it was stored.

    Raises:
        PacsError: the provider cannot be reached, rejects the association, or ends it.
    """
    import pydicom
    from pynetdicom.ae import ApplicationEntity

    entity = ApplicationEntity(CALLING_TITLE)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = timeout
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    for ds in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in headers}:
        entity.add_requested_context(*ds)
    association = entity.associate(address.host, address.port, ae_title=address.title)
    if association.is_rejected:
        raise PacsError(f"{address}: rejects the association; check its AE title, and whether it knows {CALLING_TITLE}")
    if not association.is_established:
        raise PacsError(f"{address}: no association; check host, port, and whether it stores these objects")
    try:
        for file in files:
            try:
                status = association.send_c_store(pydicom.dcmread(file))
            except ValueError:  # it accepted no presentation context for the object
                yield file, "its class or transfer syntax is not accepted"
                continue
            except RuntimeError:
                raise PacsError(f"{address}: ended the association") from None
            if "Status" not in status:
                raise PacsError(f"{address}: no answer within {timeout:g} s, or the association was ended")
            code = int(status.Status)
            yield file, "" if code == 0 or code in _WARNINGS else f"status {code:04x}H"
    finally:
        if association.is_established:
            association.release()
