"""DICOMweb (PS3.18): QIDO-RS, WADO-RS and STOW-RS by dicomweb-client, with errors of one line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xgem.dicom.address import WebAddress
from xgem.types import InputError, PacsError

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

TOKEN: Final = "XGEM_DICOMWEB_TOKEN"
USER: Final = "XGEM_DICOMWEB_USER"
PASSWORD: Final = "XGEM_DICOMWEB_PASSWORD"
TIMEOUT: Final = 30.0
"""Seconds to wait for a connection, and for each part of an answer."""
_LOCAL: Final = re.compile(r"http://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(?=[:/]|$)")
_OTHERWISE: Final = "answers otherwise than DICOMweb does; check the path of the service"
_UID: Final = re.compile(r"[0-9.]{1,64}")


def find(address: WebAddress, filters: Mapping[str, str], *, limit: int, timeout: float = TIMEOUT) -> list[Dataset]:
    """Studies that match (QIDO-RS), or where the address names a study (or series) its instances.

    Args:
        address: of the service, a study or a series.
        filters: values by keyword, as ``{"PatientID": "A1"}``.
        limit: greatest number of results.
        timeout: in seconds.

    Raises:
        PacsError: the service cannot be reached or refuses.
    """
    from pydicom.dataset import Dataset

    options: dict[str, Any] = {"search_filters": dict(filters), "limit": limit}
    with _client(address, timeout) as client:
        if address.study is None:
            fields = ["ModalitiesInStudy", "NumberOfStudyRelatedInstances", "StudyDescription"]
            found = client.search_for_studies(fields=fields, **options)
        else:
            found = client.search_for_instances(address.study, address.series, fields=["SeriesDescription"], **options)
        return [Dataset.from_json(one) for one in found]


def fetch(address: WebAddress, directory: Path, *, timeout: float = TIMEOUT) -> list[Path]:
    """Retrieve (WADO-RS) the instance, series or study of an address as stored, as ``<SOPInstanceUID>.dcm``.

    Raises:
        InputError: the address names none. PacsError: it is not there, or cannot be retrieved.
    """
    if address.study is None:
        raise InputError(f"{address}: names no object; expected .../studies/UID, with /series/UID/instances/UID")
    accepted = (("application/dicom", "*"),)
    with _client(address, timeout) as client:
        if address.series is None:
            found = client.retrieve_study(address.study, media_types=accepted)
        elif address.instance is None:
            found = client.retrieve_series(address.study, address.series, media_types=accepted)
        else:
            found = [client.retrieve_instance(address.study, address.series, address.instance, media_types=accepted)]
        if not found:
            raise PacsError(f"{address}: there is no such object")
        return [_save(ds, directory, address) for ds in found]


def store(address: WebAddress, files: Sequence[Path], *, timeout: float = TIMEOUT) -> Iterator[tuple[Path, str]]:
    """Store files (STOW-RS) one by one; yields each with the reason why it was refused, empty where it was stored.

    Raises:
        PacsError: the service cannot be reached, or no longer.
    """
    import pydicom
    from requests import HTTPError

    with _client(address, timeout) as client:
        for file in files:
            try:
                answer = client.store_instances([pydicom.dcmread(file)], address.study)
            except HTTPError as error:
                if error.response is None or error.response.status_code in (401, 403, 404):  # as for every object
                    raise
                yield file, f"HTTP {error.response.status_code} {error.response.reason}"
                continue
            failed = answer.get("FailedSOPSequence")
            yield file, f"reason {int(failed[0].get('FailureReason', 0)):04x}H" if failed else ""


@contextmanager
def _client(address: WebAddress, timeout: float) -> Iterator[DICOMwebClient]:
    """A client with the environment's credentials; whatever goes wrong within becomes a ``PacsError``."""
    import requests
    from dicomweb_client.api import DICOMwebClient
    from pydicom.errors import InvalidDicomError
    from requests import RequestException

    with requests.Session() as session:
        session.auth = _authorization(address)
        client = DICOMwebClient(address.url, session=session, permissive_uid=True, timeout=timeout)
        client.set_http_retry_params(retry=False)
        try:
            yield client
        except RequestException as error:
            raise PacsError(f"{address}: {_reason(error, timeout)}") from None
        # What is no DICOMweb answer fails in whatever way it differs
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, InvalidDicomError) as error:
            raise PacsError(f"{address}: {_OTHERWISE} ({_brief(error)})") from error


def _authorization(address: WebAddress) -> Any:
    """What adds the credentials of the environment, if any, to a request; no others are looked for."""
    token, user, password = (os.environ.get(name) for name in (TOKEN, USER, PASSWORD))
    if token and user:
        raise InputError(f"{TOKEN} and {USER} are both set; set one of them")
    if bool(user) != bool(password):
        raise InputError(f"one of {USER} and {PASSWORD} is not set; set both")
    if (token or user) and address.url.startswith("http://") and not _LOCAL.match(address.url):
        logger.warning("%s: credentials are sent without encryption; use dicomwebs://", address)

    def authorize(request: Any) -> Any:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        elif user and password:
            from requests.auth import HTTPBasicAuth

            return HTTPBasicAuth(user.encode(), password.encode())(request)
        return request

    return authorize


def _reason(error: Any, timeout: float) -> str:
    """Why a request failed, in words, without the address that libraries repeat."""
    import requests

    if error.response is not None:
        code = error.response.status_code
        hints = {
            401: f"set {TOKEN}, or {USER} and {PASSWORD}",
            403: "these credentials may not do that",
            404: "there is no such object or service",
        }
        hint = hints.get(code)
        return f"HTTP {code} {error.response.reason}" + (f"; {hint}" if hint else "")
    if isinstance(error, requests.Timeout):
        return f"no answer within {timeout:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS failed ({_brief(error)}); REQUESTS_CA_BUNDLE names the certificates to trust"
    if isinstance(error, requests.exceptions.InvalidJSONError):
        return _OTHERWISE
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached; check host and port"
    return _brief(error)


def _save(ds: Dataset, directory: Path, address: WebAddress) -> Path:
    uid = str(ds.get("SOPInstanceUID", ""))
    if not _UID.fullmatch(uid):
        raise PacsError(f"{address}: sent an object without a valid SOPInstanceUID")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{uid}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
