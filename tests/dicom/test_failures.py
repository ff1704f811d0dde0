"""Services that refuse some objects, answer late or otherwise than DICOM does, and addresses that are none."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity

from tests.dicom.conftest import Made
from xgem.dicom import dimse, web
from xgem.dicom.address import DimseAddress, WebAddress, parse_address
from xgem.dicom.transfer import local, send
from xgem.types import ImageError, InputError, PacsError

Answer = tuple[int, str, bytes]


@pytest.fixture
def service() -> Iterator[Callable[..., str]]:
    """Starts a DICOMweb service that answers each request as a function of its number and headers says."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[int, Any], Answer], tls: ssl.SSLContext | None = None) -> str:
        count = iter(range(1000))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.do_GET()

            def do_GET(self) -> None:
                status, kind, body = answer(next(count), self.headers)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"dicomweb://127.0.0.1:{server.server_address[1]}/rs"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def files(views: Made) -> list[Path]:
    return sorted(views.folder.glob("*.dcm"))  # two laterals, two reports


STORED: Answer = (200, "application/dicom+json", b"{}")
FAILED: Answer = (
    202,
    "application/dicom+json",
    json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}).encode(),
)


def test_objects_that_were_stored_are_named_where_others_were_not(
    service: Callable[..., str], files: list[Path]
) -> None:
    answers = [STORED, FAILED, (409, "text/plain", b"no"), STORED]
    with pytest.raises(PacsError) as raised:
        send(service(lambda number, _: answers[number]), files)
    text = str(raised.value)
    assert "refused lateral-001.dcm (reason a700H), report-000.dcm (HTTP 409 Conflict)" in text
    assert text.endswith("2 of 4 objects arrived: lateral-000.dcm, report-001.dcm")


def test_a_service_that_stops_answering(service: Callable[..., str], files: list[Path]) -> None:
    late = threading.Event()

    def answer(number: int, _: Any) -> Answer:
        if number:
            late.wait(10)
        return STORED

    address = parse_address(service(answer))
    assert isinstance(address, WebAddress)
    stored: list[str] = []
    with pytest.raises(PacsError, match=r"no answer within 0\.3 s"):
        stored.extend(file.name for file, reason in web.store(address, files, timeout=0.3) if not reason)
    late.set()
    with pytest.raises(PacsError, match="HTTP 403 Forbidden; these credentials may not do that; 0 of 4 objects"):
        send(service(lambda *_: (403, "text/plain", b"")), files)


def test_what_is_no_dicomweb(service: Callable[..., str], tmp_path: Path) -> None:
    page = service(lambda *_: (200, "text/html", b"<html>hello</html>"))
    address = parse_address(f"{page}/studies/1.2/series/1.3/instances/1.4")
    assert isinstance(address, WebAddress)
    with pytest.raises(PacsError, match="answers otherwise than DICOMweb does"):
        web.fetch(address, tmp_path)
    with pytest.raises(PacsError, match="answers otherwise than DICOMweb does"):
        web.find(WebAddress(address.url), {}, limit=5)
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\nhello\r\n--b--"
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    with pytest.raises(PacsError, match="answers otherwise than DICOMweb does"):
        local(service(lambda *_: (200, kind, body)) + "/studies/1.2/series/1.3/instances/1.4", tmp_path)


def test_tls_needs_a_certificate_that_is_trusted(
    service: Callable[..., str], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, "-keyout", key, "-out", certificate)
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    plain = service(lambda *_: STORED, context)
    address = plain.replace("dicomweb://127.0.0.1", "dicomwebs://localhost")
    with pytest.raises(PacsError, match=r"TLS failed .*REQUESTS_CA_BUNDLE"):
        send(address, files[:1])
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    send(address, files[:1])


def test_an_object_whose_uid_is_a_path_is_not_written(
    service: Callable[..., str], files: list[Path], tmp_path: Path
) -> None:
    ds = pydicom.dcmread(files[0])
    ds.SOPInstanceUID = "../../escaped"
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=False)
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + (tmp_path / "x.dcm").read_bytes() + b"\r\n--b--"
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    address = service(lambda *_: (200, kind, body)) + "/studies/1.2/series/1.3/instances/1.4"
    with pytest.raises(PacsError, match="sent an object without a valid SOPInstanceUID"):
        local(address, tmp_path / "in")
    assert not list(tmp_path.rglob("escaped*"))


def test_credentials_of_the_environment_are_sent(service: Callable[..., str], monkeypatch: Any, files: Any) -> None:
    seen: list[str] = []

    def answer(_: int, headers: Any) -> Answer:
        seen.append(headers.get("Authorization", ""))
        return STORED

    address = service(answer)
    send(address, files[:1])
    monkeypatch.setenv("XGEM_DICOMWEB_TOKEN", "abc")
    send(address, files[:1])
    monkeypatch.setenv("XGEM_DICOMWEB_USER", "me")
    with pytest.raises(InputError, match="are both set"):
        send(address, files[:1])
    monkeypatch.delenv("XGEM_DICOMWEB_TOKEN")
    with pytest.raises(InputError, match="XGEM_DICOMWEB_PASSWORD is not set"):
        send(address, files[:1])
    monkeypatch.setenv("XGEM_DICOMWEB_PASSWORD", "sésame")
    send(address, files[:1])
    assert seen == ["", "Bearer abc", "Basic bWU6c8Opc2FtZQ=="]


# -------------------------------------------------------------------------------------------------------- dimse


@pytest.fixture
def provider() -> Iterator[Callable[..., DimseAddress]]:
    """Starts a storage provider for secondary captures and reports that answers as it is told."""
    running: list[Any] = []

    def start(handle: Callable[[Any], int], classes: Any = (SecondaryCaptureImageStorage, BasicTextSRStorage)) -> Any:
        entity = ApplicationEntity("STORE")
        for one in classes:
            entity.add_supported_context(one)
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handle)])
        assert server is not None
        running.append(server)
        return DimseAddress("STORE", "127.0.0.1", server.server_address[1])

    yield start
    for server in running:
        server.shutdown()


def test_a_provider_that_refuses_some(provider: Callable[..., DimseAddress], files: list[Path]) -> None:
    def handle(event: Any) -> int:
        is_report = event.dataset.Modality == "SR"
        return 0xA700 if is_report and event.dataset.get_item("StudyInstanceUID") else 0xB000

    with pytest.raises(PacsError) as raised:
        send(str(provider(handle)), files)
    text = str(raised.value)
    assert "refused report-000.dcm (status a700H), report-001.dcm (status a700H)" in text
    assert text.endswith("2 of 4 objects arrived: lateral-000.dcm, lateral-001.dcm")


def test_a_provider_that_does_not_know_a_class(provider: Callable[..., DimseAddress], files: list[Path]) -> None:
    address = provider(lambda _: 0, (SecondaryCaptureImageStorage,))
    with pytest.raises(PacsError, match=r"report-000\.dcm \(its class or transfer syntax is not accepted\).*2 of 4"):
        send(str(address), files)


def test_a_provider_that_goes_away(provider: Callable[..., DimseAddress], files: list[Path]) -> None:
    def handle(event: Any) -> int:
        if event.dataset.Modality == "SR":
            event.assoc.abort()
        return 0

    stored: list[str] = []
    with pytest.raises(PacsError, match="the association was ended"):
        stored.extend(file.name for file, _ in dimse.store(provider(handle), files, timeout=3))
    assert stored == ["lateral-000.dcm", "lateral-001.dcm"]


# ---------------------------------------------------------------------------------------------------- addresses


def test_addresses_are_read_and_written_alike() -> None:
    for text in (
        "dicomweb://localhost:8042/dicom-web",
        "dicomwebs://pacs.example.org/rs/studies/1.2",
        "dicomwebs://pacs.example.org/studies/1.2/series/3.4",
        "dicomweb://[::1]:80/a/b/studies/1.2/series/3.4/instances/5.6",
        "dimse://Archive_1@10.0.0.2:104",
    ):
        assert str(parse_address(text)) == text
    assert parse_address("dicomwebs://h/rs/studies/1/series/2/instances/3/") == WebAddress(
        "https://h/rs", "1", "2", "3"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://h/rs", "expected dicomweb://host:port/path"),
        ("dicomweb://", "expected dicomweb://host:port/path"),
        ("dicomweb://h:port/rs", "dicomweb://h:port/rs: "),
        ("dicomweb://h/rs?token=abc", "expected dicomweb://host:port/path"),
        ("dicomweb://me@h/rs", "holds credentials; set XGEM_DICOMWEB_TOKEN"),
        ("dimse://A:pw@h:104", "address dimse://h:104: holds credentials"),
        ("dimse://h:104", "expected dimse://AETITLE@host:port"),
        ("dimse://A@h", "expected dimse://AETITLE@host:port"),
        ("dimse://A_TITLE_THAT_IS_TOO_LONG@h:104", "of up to 16 characters"),
    ],
)
def test_addresses_that_are_none(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_address(text)
    assert message in str(raised.value)
    assert "pw" not in str(raised.value)


def test_inputs_that_cannot_be_fetched(tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(InputError, match=r"names no instance; expected .*/instances/UID"):
        local("dicomweb://localhost/rs/studies/1.2", tmp_path)
    with pytest.raises(InputError, match="over DIMSE objects are sent only"):
        local("dimse://A@h:104", tmp_path)
    assert local(files[0], tmp_path) is files[0]
    (tmp_path / "text.dcm").write_text("text")
    with pytest.raises(ImageError, match="not a DICOM file"):
        send("dimse://A@h:104", [tmp_path / "text.dcm"])
