"""Requests of many users at once, with workers and servers that are killed: all done, each once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.serve.conftest import body
from xgem.pipeline.replay import replay
from xgem.serve.app import make_app
from xgem.serve.state import Server

KILLS = int(os.environ.get("XGEM_KILLS", "3"))
"""How often the worker is killed; ten times for a thousand requests."""


def test_killed_workers_lose_and_double_nothing(server: Server, debug_checkpoint: Path, tmp_path: Path) -> None:
    app, total, rng = make_app(server, ["cpu"]), 100 * KILLS, random.Random(0)
    with TestClient(app) as client:
        requests = [body(["frontal"] if k % 3 else ["report"]) for k in range(total)]

        def post(request: dict[str, Any]) -> str:
            answer = client.post("/api/generations", json=request)
            assert answer.status_code == 202, answer.text
            return answer.json()["id"]

        with ThreadPoolExecutor(16) as pool:
            names = list(pool.map(post, requests))
        killed = 0
        deadline = time.monotonic() + 60 + 20 * KILLS
        while (counts := server.queue.counts())["done"] < total:
            assert time.monotonic() < deadline, counts
            assert counts["failed"] == 0
            if killed < KILLS and counts["done"] >= total * killed / (KILLS + 1) and counts["running"]:
                time.sleep(rng.uniform(0, 0.1))
                for worker in server.queue.workers():
                    os.kill(worker.pid, signal.SIGKILL)
                    killed += 1
            time.sleep(0.05)
        assert killed == KILLS
    assert server.queue.counts()["done"] == total == len(set(names))
    folders = {folder.name for folder in (server.settings.folder / "results").iterdir()}
    assert folders == set(names)
    for name, request in zip(names, requests, strict=True):
        job = server.queue.get(name, None)
        assert job is not None
        record = json.loads((server.settings.results(name) / "png" / "generation.json").read_text())
        assert (record["seed"], list(record["files"])) == (job.seed, request["outputs"])
    pictures = sorted((server.settings.folder / "results").glob("*/png/frontal.png"))
    assert len({file.read_bytes() for file in pictures}) == len(pictures)
    assert replay(pictures[0], model=debug_checkpoint, progress=False).identical
    assert not list((server.settings.folder / "previews").glob("*"))


def test_a_killed_server_goes_on_with_its_queue(server: Server) -> None:
    command = [sys.executable, "-m", "xgem", "serve", "--data", str(server.settings.folder), "--port", "0"]
    command += [part for model in server.settings.models for part in ("--model", model)]
    with subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        said = next(line for line in running.stderr if line.startswith("xgem: http"))
        address = said.split()[1].removesuffix("/docs")
        names = [httpx.post(f"{address}/api/generations", json=body(["frontal"])).json()["id"] for _ in range(30)]
        while not server.queue.counts()["done"]:
            time.sleep(0.05)
        running.kill()
    counts = server.queue.counts()
    assert counts["queued"] + counts["running"] > 0
    with TestClient(make_app(Server.open(server.settings), ["cpu"])) as client:
        until = time.monotonic() + 60
        while server.queue.counts()["done"] < len(names) and time.monotonic() < until:
            time.sleep(0.1)
        assert server.queue.counts()["done"] == len(names)
        assert client.get("/health").json()["workers"] == 1
    assert server.queue.workers() == []


@pytest.mark.parametrize("option", [("--port", "{taken}"), ("--host", "no.such.host.invalid"), ("--host", "0.0.0.0")])
def test_where_it_cannot_listen_is_one_line(xgem: Any, server: Server, option: tuple[str, str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        value = option[1].format(taken=taken.getsockname()[1])
        models = [part for model in server.settings.models for part in ("--model", model)]
        ran = xgem("serve", "--data", server.settings.folder, option[0], value, "--device", "cpu", *models)
    assert ran.code in (1, 2)
    assert ran.err.startswith("xgem: error: ")
    assert len(ran.err.splitlines()) == 1


def test_tokens_by_command(xgem: Any, server: Server) -> None:
    ran = xgem("serve", "--data", server.settings.folder, "--add-token", "radiology")
    assert ran.code == 0
    assert server.tokens.user(ran.out.strip()) is not None
    assert xgem("serve", "--data", server.settings.folder, "--add-token", "radiology").code == 2
    assert xgem("serve", "--data", server.settings.folder, "--revoke-token", "radiology").code == 0
    assert server.tokens.user(ran.out.strip()) is None
    ran = xgem("serve", "--data", server.settings.folder, "--database", "oracle://x/y", "--add-token", "a")
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
