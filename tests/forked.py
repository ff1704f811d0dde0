"""Commands and Python examples in processes that are forked from one in which xgem is imported already.

Each still runs in a process, folder and environment of its own, through pipes; only the seconds of importing torch are
spent once. ``serve`` listens at a socket; ``client`` is the program that stands for ``xgem`` or ``python`` in a test.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

IMPORTED = ("xgem.cli.evaluate", "xgem.cohort.run", "xgem.eval.suite", "sklearn.metrics", "scipy.stats")
"""What most commands import, all that takes long among it."""

# Without site-packages, so that it starts at once. Signals go on to the command itself.
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    request = json.dumps([{kind!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(link, [len(request).to_bytes(8, "big")], [0, 1, 2])
    link.sendall(request)
    with link.makefile() as answers:
        process = int(answers.readline())
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, lambda number, frame: os.kill(process, number))
        sys.exit(int(answers.readline() or 1))
"""


def client(path: Path, address: Path, kind: str) -> None:
    """Write a program at ``path`` that has ``kind`` ("xgem" or "python") run by the server at ``address``."""
    path.write_text(CLIENT.format(python=sys.executable, address=str(address), kind=kind), encoding="utf-8")
    path.chmod(0o755)


@contextmanager
def server(address: Path) -> Iterator[None]:
    """A server at ``address`` in a process of its own, for as long as the context lasts."""
    project = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([sys.executable, "-m", "tests.forked", str(address)], cwd=project)
    try:
        while not address.exists():
            assert process.poll() is None, "the server of forked processes ended"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def serve(address: str) -> None:
    """Import what commands need, then fork a process for every request, until killed."""
    for name in IMPORTED:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{address}.new")
        listening.listen()
        os.rename(f"{address}.new", address)  # noqa: PTH104 -- there once it listens
        while True:
            link, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _answer(link)
            link.close()


def _answer(link: socket.socket) -> None:
    """Fork the process that was asked for; say its number, and its exit code once it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(link, 8, 3)
    with link.makefile("rb") as stream:
        kind, arguments, folder, environment = json.loads(stream.read(int.from_bytes(length, "big")))
    process = os.fork()
    if process == 0:
        link.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        # Files of their own: what the server has open was made for other descriptors.
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _run(kind, arguments)
    for stream in streams:
        os.close(stream)
    link.sendall(f"{process}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    link.sendall(f"{status if status >= 0 else 128 - status}\n".encode())
    os._exit(0)


def _run(kind: str, arguments: list[str]) -> None:
    """Be ``xgem ARGUMENTS`` or ``python -c CODE``; an exception ends the process as it always does."""
    from xgem.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if kind == "xgem":
        sys.argv = ["xgem", *arguments]
        sys.exit(main())
    sys.argv, sys.path[:0] = ["-c"], [""]
    example = sys.modules["__main__"] = ModuleType("__main__")
    exec(arguments[-1], example.__dict__)
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1])
