"""A stand-in for the API: generations wait until a test lets them go on, and every picture is a ramp."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from sse_starlette.sse import EventSourceResponse
from starlette.datastructures import UploadFile

from xgem.configs.components import TransformConfig
from xgem.serve.page.page import add_page
from xgem.types import InputError
from xgem.web.app import new_app
from xgem.web.run import address_of, listen

SIZE = 64
CHECKPOINTS = [
    {"name": "any", "inputs": ["frontal", "lateral", "report"], "outputs": ["frontal", "lateral", "report"],
     "size": SIZE, "structures": [], "box_classes": [], "loaded": True},
    {"name": "control", "inputs": ["report", "demographics", "severity", "mask", "boxes"], "outputs": ["frontal"],
     "size": SIZE, "structures": ["left lung", "right lung"], "box_classes": ["nodule", "effusion"], "loaded": False},
]  # fmt: skip


def about(name: str, type: str, default: Any = None, unset: str = "", **more: Any) -> dict[str, Any]:
    """An option as the API describes it."""
    return {"name": name, "help": f"What {name} does.", "type": type, "default": default, "unset": unset, **more}


OPTIONS = [
    about("seed", "integer", unset="random", limits={"low": 0, "high": 99}),
    about("num_samples", "integer", 1, limits={"low": 1, "high": 9}),
    about("joint", "boolean", unset="jointly where it can"),
    about("greedy", "boolean", True),
    about("voi", "choice", unset="the preset's", choices=["none", "window"]),
    about("strength", "number", unset="0.5", limits={"low": 0, "high": 1}),
]


def ramp() -> Image.Image:
    """Every grey level once a row: (256, 256)."""
    return Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))


class FakeApi:
    """What was sent, and how far generations are."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.files: list[dict[str, bytes]] = []
        self.generations: dict[str, dict[str, Any]] = {}
        self.step = 4  # at which generations wait; at 4 they are done
        self.url = ""

    def now(self, id: str) -> dict[str, Any]:
        one = self.generations[id]
        if one["state"] in ("queued", "running"):
            one["step"] = self.step
            one["state"] = "done" if self.step >= 4 else "running" if self.step else "queued"
            one["position"] = 0 if one["state"] == "queued" else None
        if one["state"] == "done" and "samples" not in one:
            count = one["request"]["options"].get("num_samples", 1)
            samples = [{"index": index, "metadata": {"seed": 5, "sample": index}} for index in range(count)]
            texts = [{**sample, "text": "Clear."} for sample in samples]
            outputs = one["request"]["outputs"]
            one["samples"] = {name: texts if name == "report" else samples for name in outputs}
        return dict(one)


def fake_app(state: FakeApi) -> FastAPI:
    app = new_app("fake", max_body=2**22)
    add_page(app, lambda model: TransformConfig(size=SIZE))

    @app.get("/api/checkpoints")
    def checkpoints() -> Any:
        return {"checkpoints": CHECKPOINTS}

    @app.get("/api/options")
    def options() -> Any:
        return {"options": OPTIONS}

    @app.post("/api/generations", status_code=202)
    async def create(request: Request) -> Any:
        form = await request.form()
        sent = json.loads(str(form["request"]))
        if not sent["outputs"]:
            raise InputError("no outputs were requested, name at least one modality, like 'lateral'")
        if sent["inputs"].get("severity", 0) > 18:
            raise InputError("severity is 20, expected a number from 0 to 18")
        state.sent.append(sent)
        state.files.append({name: await part.read() for name, part in form.items() if isinstance(part, UploadFile)})
        id = f"g{len(state.generations)}"
        given = {name: {"origin": "text", "text": str(value)} for name, value in sent["inputs"].items()}
        given |= {name: {"origin": f"{name}.png"} for name in state.files[-1] if name in ("frontal", "lateral")}
        asked = {**sent, "inputs": given}
        state.generations[id] = {
            "id": id, "state": "queued", "created": "2026-01-02T03:04:05Z", "position": 0, "step": 0, "steps": 4,
            "error": None, "request": asked, "seed": 5,
        }  # fmt: skip
        return state.now(id)

    @app.get("/api/generations")
    def several(limit: int = 50, before: str | None = None) -> Any:
        ids = list(state.generations)[::-1]
        if before:
            ids = ids[ids.index(before) + 1 :]
        return {"generations": [state.now(id) for id in ids[:limit]]}

    @app.get("/api/generations/{id}")
    def one(id: str) -> Any:
        if id not in state.generations:
            return JSONResponse({"error": f"no generation {id!r}"}, 404)
        return state.now(id)

    @app.get("/api/generations/{id}/events")
    async def events(id: str) -> Any:
        async def stream() -> Any:
            seen = None
            while True:
                current = state.now(id)
                if (current["state"], current["step"]) != seen:
                    yield {"event": "state", "data": json.dumps(current)}
                    for output in current["request"]["outputs"] if current["state"] == "running" else ():
                        progress = {"output": output, "step": current["step"], "steps": 4}
                        yield {"event": "progress", "data": json.dumps(progress)}
                        url = f"/api/generations/{id}/previews/{output}/0"
                        yield {"event": "preview", "data": json.dumps({"output": output, "sample": 0, "url": url})}
                    if current["state"] in ("done", "failed", "cancelled"):
                        return
                seen = (current["state"], current["step"])
                await asyncio.sleep(0.02)

        return EventSourceResponse(stream())

    @app.get("/api/generations/{id}/previews/{output}/{index}")
    @app.get("/api/generations/{id}/samples/{output}/{index}")
    @app.get("/api/generations/{id}/inputs/{output}")
    def file(id: str, output: str, index: int = 0, format: str = "png") -> Response:
        assert id in state.generations
        if output == "report":
            return Response("Clear.", media_type="text/plain")
        png = io.BytesIO()
        ramp().save(png, "PNG")
        headers = {"Content-Disposition": f'attachment; filename="{output}-{index}.{format}"'}
        return Response(png.getvalue(), media_type="image/png", headers=headers)

    @app.post("/api/generations/{id}/cancel")
    def cancel(id: str) -> Any:
        state.generations[id]["state"] = "cancelled"
        return state.now(id)

    @app.delete("/api/generations/{id}", status_code=204)
    def delete(id: str) -> None:
        del state.generations[id]

    return app


@contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The address of an application that runs in a thread."""
    listening = listen("127.0.0.1", port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
