"""Addresses of a PACS: ``dicomweb://host:port/path``, ``dicomwebs://`` (TLS), ``dimse://AETITLE@host:port``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from xgem.types import InputError

EXAMPLES: Final = "dicomweb://host:port/path, dicomwebs://host/path (TLS) or dimse://AETITLE@host:port"
_WEB: Final = {"dicomweb": "http", "dicomwebs": "https"}
_OBJECT: Final = re.compile(
    r"/studies/(?P<study>[0-9.]{1,64})(?:/series/(?P<series>[0-9.]{1,64})(?:/instances/(?P<instance>[0-9.]{1,64}))?)?/?$"
)


@dataclass(frozen=True)
class WebAddress:
    """A DICOMweb service by its ``url``, and a study, series or instance of it where one is named."""

    url: str
    study: str | None = None
    series: str | None = None
    instance: str | None = None

    def __str__(self) -> str:
        scheme, _, rest = self.url.partition("://")
        names = (("studies", self.study), ("series", self.series), ("instances", self.instance))
        return f"dicomweb{scheme[4:]}://{rest}" + "".join(f"/{name}/{uid}" for name, uid in names if uid)


@dataclass(frozen=True)
class DimseAddress:
    """A storage provider by its application entity title, host and port."""

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"dimse://{self.title}@{self.host}:{self.port}"


def is_address(text: object) -> bool:
    """Whether an argument names a place in a PACS rather than a file."""
    return isinstance(text, str) and text.startswith(("dicomweb://", "dicomwebs://", "dimse://"))


def parse_address(text: str) -> WebAddress | DimseAddress:
    """The parts of an address.

    Raises:
        InputError: it is none, or holds a password, which would end in shell histories and process lists.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InputError(f"address {_shown(text)}: {error}; expected {EXAMPLES}") from None
    if parts.password is not None or (parts.scheme in _WEB and parts.username is not None):
        raise InputError(
            f"address {_shown(text)}: holds credentials; set XGEM_DICOMWEB_TOKEN, or XGEM_DICOMWEB_USER and "
            "XGEM_DICOMWEB_PASSWORD, in the environment instead"
        )
    if not parts.hostname or parts.query or parts.fragment:
        raise InputError(f"address {_shown(text)}: expected {EXAMPLES}")
    if parts.scheme == "dimse":
        return _dimse(text, parts, port)
    if parts.scheme not in _WEB:
        raise InputError(f"address {_shown(text)}: expected {EXAMPLES}")
    found = _OBJECT.search(parts.path)
    path = parts.path[: found.start()] if found else parts.path
    url = f"{_WEB[parts.scheme]}://{parts.netloc}{path.rstrip('/')}"
    return WebAddress(url, **(found.groupdict() if found else {}))


def web_address(text: str, what: str) -> WebAddress:
    """An address of DICOMweb; InputError where it is another."""
    address = parse_address(text)
    if not isinstance(address, WebAddress):
        raise InputError(f"{what} {address}: expected dicomweb://host:port/path; over DIMSE objects are sent only")
    return address


def _dimse(text: str, parts: SplitResult, port: int | None) -> DimseAddress:
    title = parts.netloc.partition("@")[0]  # in its own case
    if "@" not in parts.netloc or not 0 < len(title) <= 16 or port is None or parts.path.strip("/"):
        raise InputError(f"address {text}: expected dimse://AETITLE@host:port, a title of up to 16 characters")
    return DimseAddress(title, str(parts.hostname), port)


def _shown(text: str) -> str:
    """An address without what stands before an @."""
    scheme, separator, rest = text.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
