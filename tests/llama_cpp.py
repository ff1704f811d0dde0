"""llama.cpp's own server with a tiny random model, in a process of its own: ``llama_cpp(folder)``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tiny_gguf import TEMPLATE, write_tiny_eyes, write_tiny_model

_PROGRAM = """
import sys, xllamacpp
options = xllamacpp.CommonParams()
options.model.path, options.mmproj.path = sys.argv[1:]
options.n_ctx, options.n_parallel, options.port = 8192, 2, 0
options.cpuparams.n_threads = 1
options.warmup = False
options.verbosity = 0
server = xllamacpp.Server(options)
print("at " + server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_cpp(folder: Path, *, template: bool = True, eyes: bool = True) -> Iterator[str]:
    """The base URL of a running server; the test is skipped where the package is not installed."""
    for package in ("xllamacpp", "gguf"):
        pytest.importorskip(package, reason=f"{package} is not installed: no llama.cpp server to test")
    model, projector = folder / "tiny.gguf", folder / "mmproj.gguf"
    write_tiny_model(model, TEMPLATE if template else None)
    if eyes:
        write_tiny_eyes(projector)
    command = [sys.executable, "-c", _PROGRAM, str(model), str(projector) if eyes else ""]
    log = folder / "log"
    pipe = subprocess.PIPE
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            place = next((line.split()[1] for line in server.stdout if line.startswith("at ")), None)
            assert place is not None, f"llama.cpp did not start: {log.read_text()[-2000:]}"
            yield f"{place}/v1"
        finally:
            server.kill()
