"""The HTTP API, on a tiny checkpoint, with a worker in this process."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import xgem as package
from tests.serve.conftest import Work, body, contents, picture
from xgem.pipeline.privacy_gate import PrivacyGate, Thresholds
from xgem.pipeline.replay import replay
from xgem.serve.app import allowed_hosts, make_app
from xgem.serve.settings import Settings
from xgem.serve.state import Server
from xgem.serve.worker import Worker
from xgem.types import InputError


def done(client: TestClient, server: Server, work: Work, **request: Any) -> dict[str, Any]:
    """A finished request."""
    answer = client.post("/api/generations", **request)
    assert answer.status_code == 202, answer.text
    work(server)
    view = client.get(f"/api/generations/{answer.json()['id']}").json()
    assert view["state"] == "done", view["error"]
    return view


def as_form(request: dict[str, Any], **files: bytes) -> dict[str, Any]:
    """A form with the request and its files, whose names and types say nothing."""
    parts = {name.replace("__", ":"): ("../../a name.exe", data, "text/html") for name, data in files.items()}
    return {"data": {"request": json.dumps(request)}, "files": parts}


def test_the_same_seed_gives_the_same_by_http_command_and_python(
    client: TestClient, server: Server, work: Work, xgem: Any, debug_checkpoint: Path, tmp_path: Path
) -> None:
    cxr = tmp_path / "cxr.png"
    cxr.write_bytes(picture())
    request = body(["lateral", "report"], seed=11, num_samples=2)
    # Others, which would be batched with it if it had no seed of its own
    for k in range(3):
        client.post("/api/generations", **as_form(body(["lateral", "report"], num_samples=2), frontal=picture(k)))
    view = done(client, server, work, **as_form(request, frontal=picture()))
    made = package.generate(
        {"frontal": cxr}, ["lateral", "report"], model=debug_checkpoint, num_inference_steps=2, seed=11, num_samples=2
    )
    command = ("--seed", 11, "--num-samples", 2, "--num-inference-steps", 2, "--model", debug_checkpoint)
    ran = xgem("generate", "--frontal", cxr, "--outputs", "lateral,report", "--out", tmp_path / "out", *command)
    assert ran.code == 0, ran.err
    for index in range(2):
        sent = client.get(f"/api/generations/{view['id']}/samples/lateral/{index}")
        assert sent.headers["content-type"] == "image/png"
        by_http = Image.open(io.BytesIO(sent.content))
        by_command = Image.open(tmp_path / "out" / f"lateral-00{index}.png")
        assert by_http.tobytes() == by_command.tobytes() == made.lateral[index].tobytes()
        text = client.get(f"/api/generations/{view['id']}/samples/report/{index}?format=txt").text.strip()
        assert text == view["samples"]["report"][index]["text"] == made.report[index]
    assert view["samples"]["lateral"][0]["metadata"]["batch"] == {"size": 2, "position": 0}
    assert made.lateral[0].tobytes() != made.lateral[1].tobytes()


def test_requests_without_a_seed_share_a_batch_and_replay(
    client: TestClient, server: Server, work: Work, debug_checkpoint: Path, tmp_path: Path
) -> None:
    given = [client.post("/api/generations", json=body(["frontal"], {"report": text})).json() for text in ("A.", "B.")]
    other = client.post("/api/generations", json=body(["lateral"], {"report": "A."})).json()
    work(server)
    views = [client.get(f"/api/generations/{one['id']}").json() for one in (*given, other)]
    batches = [next(iter(view["samples"].values()))[0]["metadata"]["batch"] for view in views]
    assert batches == [{"size": 2, "position": 0}, {"size": 2, "position": 1}, {"size": 1, "position": 0}]
    assert views[0]["seed"] != views[1]["seed"]
    sent = client.get(f"/api/generations/{views[1]['id']}/samples/frontal/0")
    (tmp_path / "b.png").write_bytes(sent.content)
    assert replay(tmp_path / "b.png", model=debug_checkpoint, progress=False).identical


def test_a_request_that_fails_does_not_fail_its_batch(
    client: TestClient, server: Server, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xgem.pipeline.pipeline import XgemPipeline

    call = XgemPipeline.__call__

    def fails(self: XgemPipeline, inputs: Any, outputs: Any, **options: Any) -> Any:
        if any(one["report"] == "Bad." for one in inputs):
            raise RuntimeError("secret of the server")
        return call(self, inputs, outputs, **options)

    monkeypatch.setattr(XgemPipeline, "__call__", fails)
    made = [client.post("/api/generations", json=body(["frontal"], {"report": text})).json() for text in ("A.", "Bad.")]
    work(server)
    good, bad = (client.get(f"/api/generations/{one['id']}").json() for one in made)
    assert good["state"] == "done"
    assert (bad["state"], "samples" in bad) == ("failed", False)
    assert bad["error"] == "internal error (RuntimeError); the server's log has it"
    assert client.get(f"/api/generations/{bad['id']}/download").status_code == 409


def test_a_privacy_gate_of_the_server_is_on_every_request(
    settings: Settings, work: Work, tmp_path: Path, debug_checkpoint: Path
) -> None:
    training = tmp_path / "training"
    training.mkdir()
    made = package.generate({}, "frontal", model=debug_checkpoint, num_inference_steps=2, seed=5)
    made.frontal[0].save(training / "copied.png")
    for k in range(8):
        (training / f"other-{k}.png").write_bytes(picture(k, 32))
    index = tmp_path / "index.safetensors"
    gate = PrivacyGate.open(training, thresholds=Thresholds(latent=1e-3, pixel=1e-3))
    gate.indexed(package.load(debug_checkpoint), ["frontal"]).save(index)
    server = Server.open(replace(settings, privacy_gate=index))
    with TestClient(make_app(server)) as client:
        view = done(client, server, work, json=body(["frontal"], seed=5))
    metadata = view["samples"]["frontal"][0]["metadata"]
    assert metadata["privacy_gate"]["tries"] > 1
    assert metadata["seed"] != 5


def test_masks_boxes_and_an_image_to_start_from(client: TestClient, server: Server, work: Work) -> None:
    box = Image.new("L", (32, 32))
    box.paste(255, (4, 4, 20, 20))
    box.save(mask := io.BytesIO(), "png")
    inputs = {"boxes": [{"label": "nodule", "bbox": [0.1, 0.2, 0.3, 0.4]}], "severity": 7}
    request = body(["frontal"], {**inputs, "report": "Opacity.", "demographics": {"sex": "F", "age": 71}}, seed=3)
    files = {"mask__left lung": mask.getvalue()}
    view = done(client, server, work, **as_form(request, **files))
    metadata = view["samples"]["frontal"][0]["metadata"]
    assert set(metadata["inputs"]) == {"report", "mask", "boxes", "severity", "demographics"}
    assert sorted(metadata["annotations"]) == ["frontal.boxes.json", "frontal.mask.png"]
    assert view["request"]["inputs"]["mask"] == {"file": True, "structures": ["left lung"]}
    assert view["request"]["model"] != "random"
    # Edited: near to the picture that it starts from if the strength is low
    start = picture(2, 32)
    edited = done(client, server, work, **as_form(body(["lateral"], seed=3, strength=0.5), image__lateral=start))
    assert edited["request"]["image"] == ["lateral"]
    assert edited["samples"]["lateral"][0]["metadata"]["strength"] == 0.5
    shown = client.get(f"/api/generations/{edited['id']}/inputs/image-lateral")
    assert Image.open(io.BytesIO(shown.content)).tobytes() == Image.open(io.BytesIO(start)).tobytes()
    assert client.get(f"/api/generations/{edited['id']}/inputs/given-frontal").status_code == 404


def test_files_in_json(client: TestClient, server: Server, work: Work) -> None:
    request = body(["lateral"], {"frontal": {"base64": base64.b64encode(picture()).decode()}}, seed=1)
    view = done(client, server, work, json=request)
    shown = client.get(f"/api/generations/{view['id']}/inputs/frontal")
    assert Image.open(io.BytesIO(shown.content)).size == (32, 32)
    assert (
        view["samples"]["lateral"][0]["metadata"]["inputs"]["frontal"]["sha256"]
        == hashlib.sha256(picture()).hexdigest()
    )


def test_everything_in_a_zip(client: TestClient, server: Server, work: Work) -> None:
    view = done(client, server, work, json=body(["frontal", "report"], seed=1))
    packed = client.get(f"/api/generations/{view['id']}/download")
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        names = {Path(name).name for name in archive.namelist()}
        record = json.loads(archive.read(f"xgem-{view['id'][:8]}/generation.json"))
    assert names == {"frontal.png", "generation.json", "report.json", "report.txt"}
    assert record["seed"] == 1
    packed = client.get(f"/api/generations/{view['id']}/download?format=dicom")
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        objects = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist() if "dcm" in name]
    assert {one.Modality for one in objects} == {"OT", "SR"}
    assert {one.SyntheticData for one in objects} == {"YES"}
    assert len({one.StudyInstanceUID for one in objects}) == 1
    picture_sent = client.get(f"/api/generations/{view['id']}/samples/frontal/0?format=dicom")
    assert picture_sent.headers["content-type"] == "application/dicom"
    as_png = Image.open(io.BytesIO(client.get(f"/api/generations/{view['id']}/samples/frontal/0").content))
    assert pydicom.dcmread(io.BytesIO(picture_sent.content)).pixel_array.tobytes() == as_png.tobytes()
    sent = client.get(f"/api/generations/{view['id']}/samples/frontal/0?format=json")
    assert sent.json()["sha256"] == view["samples"]["frontal"][0]["metadata"]["sha256"]
    for path in ("frontal/1", "frontal/-1", "lateral/0", "frontal/0?format=txt", "report/0?format=png"):
        assert client.get(f"/api/generations/{view['id']}/samples/{path}").status_code == 404


def test_history_is_the_newest_first_and_deleting_leaves_nothing(
    client: TestClient, server: Server, work: Work
) -> None:
    made = [client.post("/api/generations", json=body(["frontal"])).json()["id"] for _ in range(3)]
    work(server)
    listed = client.get("/api/generations?limit=2").json()["generations"]
    assert [one["id"] for one in listed] == [made[2], made[1]]
    assert [one["id"] for one in client.get(f"/api/generations?before={made[1]}").json()["generations"]] == [made[0]]
    for name in made:
        assert client.delete(f"/api/generations/{name}").status_code == 204
        assert client.get(f"/api/generations/{name}").status_code == 404
    assert contents(server.settings.folder) == set()


def test_events_tell_of_steps_and_previews_and_end(client: TestClient, server: Server) -> None:
    request = body(["frontal"], num_samples=2, num_inference_steps=20)
    name = client.post("/api/generations", json=request).json()["id"]
    previews: list[Any] = []

    def ended() -> bool:
        """Asked after every step: looks at the previews, and slows the steps down."""
        state = client.get(f"/api/generations/{name}").json()["state"]
        if state == "running":
            time.sleep(0.1)
            previews.append(client.get(f"/api/generations/{name}/previews/frontal/1"))
        return state == "done"

    thread = threading.Timer(0.6, Worker(server.settings, "cpu", ended).run)
    thread.start()
    found: dict[str, list[Any]] = {"state": [], "progress": [], "preview": []}
    with client.stream("GET", f"/api/generations/{name}/events") as stream:
        lines = stream.iter_lines()
        for line in lines:
            if line.startswith("event: "):
                found[line.removeprefix("event: ")].append(json.loads(next(lines).removeprefix("data: ")))
    thread.join()
    states = [view["state"] for view in found["state"]]
    assert (states[0], states[-1]) == ("queued", "done")
    assert found["state"][-1]["samples"]["frontal"][1]["index"] == 1
    steps = [one["step"] for one in found["progress"]]
    assert len(steps) > 3
    assert steps == sorted(steps)
    assert all(one["steps"] == 20 for one in found["progress"])
    assert {one["sample"] for one in found["preview"]} == {0, 1}
    assert found["preview"][0]["url"].startswith(f"/api/generations/{name}/previews/frontal/")
    shown = [Image.open(io.BytesIO(one.content)).convert("L") for one in previews if one.status_code == 200]
    final = Image.open(io.BytesIO(client.get(f"/api/generations/{name}/samples/frontal/1").content))
    distances = [np.abs(np.asarray(image, float) - np.asarray(final, float)).mean() for image in shown]
    assert distances[-1] < distances[0]
    assert not server.settings.previews(name).exists()


def test_a_cancelled_request_ends_within_a_step(client: TestClient, server: Server) -> None:
    waiting = client.post("/api/generations", json=body(["frontal"])).json()["id"]
    assert client.post(f"/api/generations/{waiting}/cancel").json()["state"] == "cancelled"
    running = client.post("/api/generations", json=body(["frontal"], num_inference_steps=50)).json()["id"]
    steps: list[int] = []

    def ended() -> bool:
        """Asked after every step; cancels at the third."""
        job = server.queue.get(running, None)
        assert job is not None
        if job.state == "running":
            steps.append(job.step)
            time.sleep(0.12)  # slower than what is looked at
            if len(steps) == 3:
                client.post(f"/api/generations/{running}/cancel")
        return job.state == "cancelled"

    Worker(server.settings, "cpu", ended).run()
    assert len(steps) == 3
    assert client.get(f"/api/generations/{running}").json()["state"] == "cancelled"
    assert not server.settings.results(running).exists()


def test_a_worker_told_to_stop_gives_back_what_it_had(client: TestClient, server: Server, work: Work) -> None:
    name = client.post("/api/generations", json=body(["frontal"], num_inference_steps=50)).json()["id"]
    asked: list[int] = []

    def told() -> bool:
        asked.append(1)
        return len(asked) > 4

    Worker(server.settings, "cpu", told).run()
    view = client.get(f"/api/generations/{name}").json()
    assert (view["state"], view["position"]) == ("queued", 0)
    assert server.queue.workers() == []
    work(server)
    assert client.get(f"/api/generations/{name}").json()["state"] == "done"


def test_users_need_their_token_and_see_their_own(server: Server, work: Work) -> None:
    first, second = server.tokens.add("first"), server.tokens.add("second")
    server = Server.open(server.settings)
    with TestClient(make_app(server)) as client:
        mine: dict[str, Any] = {"headers": {"Authorization": f"Bearer {first}"}}
        other: dict[str, Any] = {"headers": {"Authorization": f"Bearer {second}"}}
        name = client.post("/api/generations", json=body(["frontal"]), **mine).json()["id"]
        work(server)
        paths = ["", "/events", "/samples/frontal/0", "/download", "/inputs/frontal", "/previews/frontal/0"]
        for path in [f"/api/generations/{name}{end}" for end in paths]:
            assert client.get(path, **other).status_code == 404
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.delete(f"/api/generations/{name}", **other).status_code == 404
        assert client.post(f"/api/generations/{name}/cancel", **other).status_code == 404
        for path in ("/api/generations", "/api/checkpoints", "/api/options", "/metrics"):
            assert client.get(path).status_code == 401
        assert client.get("/api/generations", **other).json() == {"generations": []}
        assert client.get(f"/api/generations/{name}", **mine).json()["state"] == "done"
        # By a link, for pages
        assert client.get("/login?token=wrong", follow_redirects=False).status_code == 401
        entered = client.get(f"/login?token={first}", follow_redirects=False)
        assert re.search("httponly.*samesite=strict", entered.headers["set-cookie"].lower())
        assert client.get(f"/api/generations/{name}").status_code == 200
        with pytest.raises(InputError, match="has a token already"):
            server.tokens.add("first")
        server.tokens.revoke("first")
        assert client.get(f"/api/generations/{name}").status_code == 401
    stored = (server.settings.folder / "xgem.sqlite").read_bytes()
    assert first.encode() not in stored


def test_without_tokens_only_this_machine_is_served(server: Server) -> None:
    with pytest.raises(InputError, match="make one first: xgem serve --add-token"):
        allowed_hosts(server, "0.0.0.0", [])
    with TestClient(make_app(server, hosts=allowed_hosts(server, "127.0.0.1", []))) as client:
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 400
        foreign = {"Origin": "https://evil.example"}
        assert client.post("/api/generations", json=body(["frontal"]), headers=foreign).status_code == 403
        own = {"Origin": "http://testserver"}
        assert client.post("/api/generations", json=body(["frontal"]), headers=own).status_code == 202


def test_health_metrics_and_descriptions(client: TestClient, server: Server, work: Work) -> None:
    assert client.get("/health").status_code == 503
    client.post("/api/generations", json=body(["frontal"]))
    metrics = client.get("/metrics").text
    assert 'xgem_requests{state="queued"} 1.0' in metrics
    work(server)
    assert 'xgem_requests{state="done"} 1.0' in client.get("/metrics").text
    page = client.get("/docs")
    assert page.status_code == 200
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page.text)  # works offline
    assert "/api/generations/{identifier}/events" in client.get("/openapi.json").json()["paths"]
    options = {one["name"]: one for one in client.get("/api/options").json()["options"]}
    assert options["num_inference_steps"]["limits"] == {"low": 1, "high": 1000}
    assert options["sampler"]["choices"][0] == "dpmsolver++"
    assert "device" not in options
    first, second = client.get("/api/checkpoints").json()["checkpoints"]
    assert first["outputs"] == ["frontal", "lateral", "report"]
    assert "left lung" in second["structures"]


def test_answers_carry_their_protection(client: TestClient) -> None:
    headers = client.get("/api/checkpoints").headers
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


def test_what_a_crash_left_is_deleted_when_it_is_old(client: TestClient, server: Server) -> None:
    made = client.post("/api/generations", **as_form(body(["lateral"]), frontal=picture())).json()["id"]
    old, new = (server.settings.inputs(digit * 32) for digit in "01")
    for folder in (old, new, server.settings.inputs(made)):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in (old, server.settings.inputs(made)):
        os.utime(folder, (0, 0))
    Server.open(server.settings)
    assert {folder.name for folder in old.parent.iterdir()} == {new.name, made}
