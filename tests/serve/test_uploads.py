"""What is refused: malformed, too large, or meant for another place; and nothing of it is kept."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from tests.serve.conftest import body, contents, picture
from xgem.serve.app import make_app
from xgem.serve.settings import Settings
from xgem.serve.state import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, debug_checkpoint: Path, chexgen_checkpoint: Path) -> Server:
    models = (str(debug_checkpoint), str(chexgen_checkpoint))
    folder = tmp_path_factory.mktemp("uploads") / "server"
    return Server.open(Settings(folder, models=models, upload_mib=4, read_mib=200, read_seconds=20))


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(make_app(server)) as opened:
        yield opened


def post(client: TestClient, request: Any, files: dict[str, bytes] | None = None, **more: Any) -> Any:
    text = request if isinstance(request, str) else json.dumps(request)
    parts = {name: ("x", data) for name, data in (files or {}).items()}
    return client.post("/api/generations", data={"request": text}, files=parts, **more)


def refused(client: TestClient, server: Server, answer: Any) -> str:
    """The answer's line, after a check that it is a 4xx and that nothing was kept."""
    assert 400 <= answer.status_code < 500, answer.text
    line = answer.json()["error"]
    assert line
    assert "\n" not in line
    assert str(server.settings.folder) not in line
    assert contents(server.settings.folder) == set()
    assert client.get("/api/generations").json() == {"generations": []}
    return line


def dicom(rows: int, columns: int, pixels: bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = SecondaryCaptureImageStorage, UID("2.25.1"), "DX"
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = rows, columns, 8, 8, 7
    ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    ds.add_new("PixelData", "OB", pixels)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def deflated_bomb() -> bytes:
    """A small DICOM file that inflates to half a gigabyte."""
    small = dicom(64, 64, b"\0" * 4096)
    ds = pydicom.dcmread(io.BytesIO(small))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = io.BytesIO()
    empty = Dataset()
    empty.file_meta = ds.file_meta
    pydicom.dcmwrite(head, empty, enforce_file_format=True)
    start = head.getvalue()
    meta_end = start.index(b"\x02\x00\x10\x00")
    length = int.from_bytes(start[meta_end + 6 : meta_end + 8], "little")
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [packing.compress(b"\x08\x00\x08\x00UN\x00\x00" + (2**29).to_bytes(4, "little"))]
    parts += [packing.compress(bytes(2**24)) for _ in range(32)]
    return start[: meta_end + 8 + length] + b"".join([*parts, packing.flush()])


@pytest.mark.parametrize("kind", ["deflated DICOM", "PNG", "TIFF", "npy", "DICOM"])
def test_files_that_would_fill_the_memory_are_refused(client: TestClient, server: Server, kind: str) -> None:
    file = io.BytesIO()
    if kind == "PNG":
        Image.new("L", (20_000, 8_000)).save(file, "png")
    elif kind == "TIFF":
        Image.new("L", (20_000, 8_000)).save(file, "tiff", compression="tiff_adobe_deflate")
    elif kind == "npy":
        np.save(file, np.zeros((4, 4), np.uint8))
        file = io.BytesIO(file.getvalue().replace(b"(4, 4)", b"(400000, 400000)"[:6].ljust(6)))
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (90000, 90000), }"
        file = io.BytesIO(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n" + bytes(64))
    elif kind == "DICOM":
        file = io.BytesIO(dicom(60_000, 60_000, bytes(4096)))
    else:
        file = io.BytesIO(deflated_bomb())
    assert len(file.getvalue()) < 2**21
    line = refused(client, server, post(client, body(["lateral"]), {"frontal": file.getvalue()}))
    assert "frontal" in line or "MiB" in line
    assert client.get("/health").status_code == 503  # it still answers: no worker


def test_long_requests_are_refused_whether_or_not_they_say_so(client: TestClient, server: Server) -> None:
    large = bytes(5 * 2**20)
    assert "longer than 4 MiB" in refused(client, server, post(client, body(["lateral"]), {"frontal": large}))

    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield bytes(2**16)

    answer = client.post("/api/generations", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    refused(client, server, answer)


@pytest.mark.parametrize(
    ("inputs", "files"),
    [
        ({"frontal": "/etc/hostname"}, {}),
        ({"mask": "/etc/hostname"}, {}),
        ({"mask": {"left lung": "/etc/hostname"}}, {}),
        ({"boxes": "/etc/hostname"}, {}),
        ({"frontal": {"path": "/etc/hostname"}}, {}),
        ({}, {"mask:../../escape": picture()}),
        ({}, {"image:../../escape": picture()}),
        ({}, {"../../escape": picture()}),
        ({}, {"frontal:x": picture()}),
        ({}, {"demographics": b"sex:F"}),
    ],
)
def test_no_path_of_a_client_is_opened_or_written(
    client: TestClient, server: Server, inputs: dict[str, Any], files: dict[str, bytes]
) -> None:
    before = {path for path in server.settings.folder.parent.rglob("*") if path.suffix != ".sqlite-shm"}
    refused(client, server, post(client, body(["frontal" if "mask" in inputs else "lateral"], inputs), files))
    assert {path for path in server.settings.folder.parent.rglob("*") if path.suffix != ".sqlite-shm"} == before


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fxgem.sqlite", "a" * 32, "x", "%00"])
def test_no_path_of_a_client_is_read(client: TestClient, name: str) -> None:
    for path in (f"{name}", f"{name}/download", f"{name}/samples/frontal/0", f"{'a' * 32}/inputs/{name}"):
        assert client.get(f"/api/generations/{path}").status_code in (404, 422)
    assert client.get(f"/static/{name}/../../app.py").status_code == 404


MALFORMED: list[Any] = [
    "", "{", "[]", "null", '"text"', "{}", '{"outputs": []}', '{"outputs": "frontal"}',
    '{"outputs": ["frontal"], "x": 1}',
    '{"outputs": [1]}', '{"inputs": [], "outputs": ["frontal"]}', "\x00", '{"outputs": ["frontal"]}{',
    body(["ct"]), body(["frontal", "frontal"]), body(["frontal"], {"ct": "x"}), body(["frontal"], {"frontal": "x"}),
    body(["report"], {"report": "Edema."}), body(["frontal"], {"report": ""}), body(["frontal"], {"report": 5}),
    body(["frontal"], {"report": None}), body(["frontal"], {"report": "x" * 30_000}), body(["frontal"], {"report": []}),
    body(["frontal"], {"severity": "high"}), body(["frontal"], {"severity": 99}), body(["frontal"], {"severity": {}}),
    body(["frontal"], {"demographics": {"sex": "?"}}), body(["frontal"], {"demographics": 3}),
    body(["frontal"], {"boxes": [{"label": "x"}]}), body(["frontal"], {"boxes": [[1, 2]]}),
    body(["frontal"], {"boxes": 3}),
    body(["lateral"], {"frontal": {"base64": "***"}}), body(["lateral"], {"frontal": {"base64": 3}}),
    body(["lateral"], {"frontal": {"base64": base64.b64encode(b"no image").decode()}}),
    body(["frontal"], seed=-1), body(["frontal"], seed="x"), body(["frontal"], seed=[1, 2]),
    body(["frontal"], seed=2**64),
    body(["frontal"], seed=1.5), body(["frontal"], num_samples=0), body(["frontal"], num_samples=1000),
    body(["frontal"], num_samples=8, num_candidates=8), body(["frontal"], guidance_scale=-1),
    body(["frontal"], guidance_scale="x"), body(["frontal"], guidance_scale={"ct": 1}),
    body(["frontal"], sampler="euler"),
    body(["frontal"], sampler=3), body(["frontal"], joint="maybe"), body(["frontal"], strength=0.5),
    body(["frontal"], strength=2), body(["frontal"], device="cuda"), body(["frontal"], dtype="float16"),
    body(["frontal"], privacy_gate="/etc/passwd"), body(["frontal"], image={"frontal": "/etc/passwd"}),
    body(["frontal"], output_type="latent"), body(["frontal"], callback_on_step_end="print"),
    body(["frontal"], voi="x"),
    body(["frontal"], unknown=1), body(["frontal"], num_inference_steps=10_000),
    body(["frontal"], num_inference_steps=0),
    {**body(["frontal"]), "model": "/etc"}, {**body(["frontal"]), "model": "owner/name"},
    {**body(["frontal"]), "model": 3},
    {**body(["frontal"]), "image": {"frontal": "/etc/passwd"}}, {**body(["lateral"]), "image": {"frontal": "x"}},
]  # fmt: skip


def test_malformed_requests_are_refused_in_one_line(client: TestClient, server: Server) -> None:
    lines = [refused(client, server, post(client, request)) for request in MALFORMED]
    assert len(set(lines)) > 40  # each says what is wrong with it


def test_malformed_files_are_refused_in_one_line(client: TestClient, server: Server) -> None:
    png, rng = picture(), np.random.default_rng(0)
    whole = dicom(64, 64, rng.integers(0, 255, 4096, dtype=np.uint8).tobytes())
    files: list[bytes] = [b"", b"x", b"\x89PNG", b"%PDF-1.4", b"GIF89a", b"\0" * 1000, b"\x93NUMPY", b"DICM" * 100]
    files += [png[:length] for length in range(40, len(png) - 100, len(png) // 30)]
    files += [whole[:length] for length in range(132, len(whole) - 200, len(whole) // 30)]
    files += [picture(size=8), dicom(64, 64, bytes(4096)), dicom(0, 0, b""), dicom(64, 64, bytes(10))]
    for _ in range(60):
        damaged = bytearray(png)
        for at in rng.integers(8, len(png) - 12, 30):
            damaged[at] ^= int(rng.integers(1, 255))
        files.append(bytes(damaged))
    fields = ("frontal", "image:lateral")
    for number, data in enumerate(files):
        refused(client, server, post(client, body(["lateral"]), {fields[number % 2]: data}))
    masks = [b"x", png, b"", picture(size=8)]
    for data in masks:
        refused(client, server, post(client, body(["frontal"]), {"mask:left lung": data}))
        refused(client, server, post(client, body(["frontal"]), {"boxes": data}))
    assert len(MALFORMED) + len(files) + 2 * len(masks) >= 200


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "multipart/form-data; boundary=x", ""])
def test_other_bodies_are_refused(client: TestClient, server: Server, kind: str) -> None:
    refused(client, server, client.post("/api/generations", content=b"--x\r\nbroken", headers={"content-type": kind}))


def test_forms_of_many_or_repeated_fields_are_refused(client: TestClient, server: Server) -> None:
    request = {"request": json.dumps(body(["lateral"]))}
    many = [(f"frontal{k}", ("x", b"x")) for k in range(200)]
    refused(client, server, client.post("/api/generations", data=request, files=many))
    twice = [("frontal", ("x", picture())), ("frontal", ("x", picture()))]
    assert "twice" in refused(client, server, client.post("/api/generations", data=request, files=twice))
    assert "no field" in refused(client, server, client.post("/api/generations", files={"frontal": ("x", picture())}))
