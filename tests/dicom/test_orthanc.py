"""A real archive: Orthanc with its DICOMweb plugin, on this machine while these tests run."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.dicom.conftest import Made
from xgem.dicom.transfer import send

PROGRAM = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
QUICK = ("--num-inference-steps", 2, "--seed", 3, "--device", "cpu", "--no-progress")
NAMES = ("frontal.boxes.dcm", "frontal.dcm", "frontal.mask.dcm", "lateral-000.dcm", "report-000.dcm")


class Archive(NamedTuple):
    """Addresses of the archive: of DICOMweb, and of C-STORE."""

    web: str
    dimse: str


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(150):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace")[-2000:])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    if PROGRAM is None or not PLUGIN.is_file():
        pytest.skip("Orthanc and its DICOMweb plugin are not installed (Debian: orthanc, orthanc-dicomweb)")
    folder = tmp_path_factory.mktemp("orthanc")
    http, dicom = free_port(), free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"me": "secret"},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, folder / "orthanc.json"], stdout=log, stderr=subprocess.STDOUT)
    try:
        for port in (http, dicom):
            wait_for(port, process, folder / "log")
        yield Archive(f"dicomweb://127.0.0.1:{http}/dicom-web", f"dimse://ORTHANC@127.0.0.1:{dicom}")
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XGEM_DICOMWEB_USER", "me")
    monkeypatch.setenv("XGEM_DICOMWEB_PASSWORD", "secret")


@pytest.fixture(scope="module")
def objects(views: Made, annotated: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One object of each kind, in one folder."""
    folder = tmp_path_factory.mktemp("objects")
    for made in (views, annotated):
        for path in made.folder.glob("*.dcm"):
            if path.name in NAMES:
                shutil.copy(path, folder)
    assert tuple(sorted(path.name for path in folder.iterdir())) == NAMES
    return folder


@pytest.mark.parametrize("by", ["web", "dimse"])
def test_every_object_is_stored_found_and_fetched_as_it_was(
    xgem: Any, archive: Archive, objects: Path, tmp_path: Path, by: str
) -> None:
    files = sorted(objects.iterdir())
    ran = xgem("pacs", "send", *files, "--to", getattr(archive, by))
    assert (ran.code, ran.out) == (0, "5 objects stored\n"), ran.err
    for file in files:
        ds = pydicom.dcmread(file)
        where = f"{archive.web}/studies/{ds.StudyInstanceUID}"
        ran = xgem("pacs", "find", archive.web, "--study", ds.StudyInstanceUID, "--modality", ds.Modality)
        address = f"{where}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
        assert address in [line.partition("\t")[0] for line in ran.out.splitlines()]
        ran = xgem("pacs", "fetch", address, "--out", tmp_path / file.stem)
        assert ran.out == f"{tmp_path / file.stem / ds.SOPInstanceUID}.dcm\n", ran.err
        assert Path(ran.out.strip()).read_bytes() == file.read_bytes()


def test_studies_are_found_and_fetched_whole(xgem: Any, archive: Archive, objects: Path, tmp_path: Path) -> None:
    send(archive.web, sorted(objects.iterdir()))
    ds = pydicom.dcmread(objects / "frontal.dcm")
    for options in (("--patient", ds.PatientID), ("--modality", "SEG"), ()):
        ran = xgem("pacs", "find", archive.web, *options)
        assert f"{archive.web}/studies/{ds.StudyInstanceUID}\t{ds.PatientID}\t20000101" in ran.out, ran.err
    assert xgem("pacs", "find", archive.web, "--patient", "nobody").out == ""
    ran = xgem("pacs", "find", archive.web, "--patient", ds.PatientID, "--json")
    (found,) = json.loads(ran.out)
    assert found["0020000D"]["Value"] == [ds.StudyInstanceUID]
    where = f"{archive.web}/studies/{ds.StudyInstanceUID}"
    assert len(xgem("pacs", "fetch", where, "--out", tmp_path / "study").out.splitlines()) == 3
    assert (
        len(xgem("pacs", "fetch", f"{where}/series/{ds.SeriesInstanceUID}", "--out", tmp_path / "s").out.split()) == 1
    )


def test_a_radiograph_from_the_archive_is_an_input(
    xgem: Any, archive: Archive, cxr: Path, debug_checkpoint: Path, tmp_path: Path
) -> None:
    """It is generated from as from the file, sent to the archive, and replayed from there."""
    send(archive.web, [cxr])
    ds = pydicom.dcmread(cxr)
    address = f"{archive.web}/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
    common = ("--outputs", "lateral,report", "--model", debug_checkpoint, *QUICK)
    ran = xgem("generate", "--frontal", cxr, *common, "--out", tmp_path / "file")
    assert ran.code == 0, ran.err
    ran = xgem(
        *("generate", "--frontal", address, *common, "--out", tmp_path / "fetched"),
        *("--send", archive.web, "--send", archive.dimse, "--keep-patient"),
    )
    assert ran.code == 0, ran.err
    made = pydicom.dcmread(tmp_path / "fetched" / "lateral.dcm")
    with Image.open(tmp_path / "file" / "lateral.png") as image:
        assert np.array_equal(made.pixel_array, np.asarray(image))
    assert (made.PatientID, made.SyntheticData) == (ds.PatientID, "YES")
    record = (tmp_path / "fetched" / "generation.json").read_text()
    assert json.loads(record)["inputs"]["frontal"]["origin"] == f"{ds.SOPInstanceUID}.dcm"
    assert "secret" not in record
    assert "127.0.0.1" not in record
    ran = xgem("pacs", "fetch", f"{archive.web}/studies/{made.StudyInstanceUID}", "--out", tmp_path / "back")
    assert len(ran.out.split()) == 2, ran.err
    file = tmp_path / "back" / f"{made.SOPInstanceUID}.dcm"
    ran = xgem("replay", file, "--frontal", address, "--model", debug_checkpoint, "--out", tmp_path / "again")
    assert ran.code == 0, ran.err
    assert f"identical to {file}" in ran.err


def test_cases_and_start_images_come_from_the_archive(
    xgem: Any, archive: Archive, cxr: Path, debug_checkpoint: Path, tmp_path: Path
) -> None:
    send(archive.dimse, [cxr])
    ds = pydicom.dcmread(cxr)
    address = f"{archive.web}/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
    common = ("--outputs", "report", "--model", debug_checkpoint, *QUICK, "--out", tmp_path / "cases")
    ran = xgem("generate", "--frontal", address, cxr, *common, "--send", archive.web)
    assert ran.code == 0, ran.err
    made = [pydicom.dcmread(tmp_path / "cases" / name / "report.dcm") for name in (ds.SOPInstanceUID, "cxr")]
    for one in made:  # both have arrived
        assert one.StudyInstanceUID in xgem("pacs", "find", archive.web, "--patient", one.PatientID).out
    common = ("--outputs", "frontal", "--model", debug_checkpoint, *QUICK, "--out", tmp_path / "start")
    ran = xgem("generate", "--report", "Clear.", "--image", f"frontal={address}", *common, "--format", "dicom")
    assert ran.code == 0, ran.err
    assert pydicom.dcmread(tmp_path / "start" / "frontal.dcm").Modality == "DX"  # its spacing is known


def test_requests_that_the_archive_refuses(
    xgem: Any, archive: Archive, cxr: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = f"{archive.web}/studies/1.2.3.4/series/1.2.3.5/instances/1.2.3.6"
    wrong_title = archive.dimse.replace("ORTHANC", "OTHER")
    nowhere = f"dicomweb://127.0.0.1:{free_port()}/dicom-web"
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("generate", "--frontal", missing, "--outputs", "lateral", "--out", tmp_path / "x"), "HTTP 404"),
        (("pacs", "fetch", missing, "--out", tmp_path / "x"), "HTTP 404"),
        (("pacs", "fetch", missing.replace(archive.web, nowhere), "--out", tmp_path / "x"), "cannot be reached"),
        (("pacs", "find", archive.web.replace("dicom-web", "elsewhere")), "HTTP 404"),
        (("pacs", "send", cxr, "--to", wrong_title), "rejects the association; check its AE title"),
        (("pacs", "send", cxr, "--to", f"dimse://ORTHANC@127.0.0.1:{free_port()}"), "no association; check host"),
        (("pacs", "send", cxr, "--to", nowhere), "cannot be reached; check host and port; 0 of 1 objects arrived"),
    ]
    for command, message in cases:
        ran = xgem(*command)
        assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
        assert message in ran.err
    monkeypatch.setenv("XGEM_DICOMWEB_PASSWORD", "wrong")
    ran = xgem("pacs", "find", archive.web)
    assert "HTTP 401 Unauthorized; set XGEM_DICOMWEB_TOKEN" in ran.err
    assert not (tmp_path / "x").exists()


def test_what_was_generated_stays_where_sending_fails(
    xgem: Any, archive: Archive, debug_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    wrong = archive.dimse.replace("ORTHANC", "OTHER")
    ran = xgem(
        *("generate", "--report", "Clear.", "--outputs", "lateral", "--model", debug_checkpoint, *QUICK),
        *("--out", out, "--send", wrong),
    )
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert f"0 of 1 objects arrived; what was generated is in {out}" in ran.err
    assert {path.name for path in out.iterdir()} == {"generation.json", "lateral.dcm"}
