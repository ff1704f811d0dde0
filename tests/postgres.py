"""A PostgreSQL server of the test's own, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{PROGRAMS or ''}{os.pathsep}{os.environ['PATH']}")


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of an empty database; as root, its server runs as nobody, since it refuses root."""
    pytest.importorskip("psycopg")
    initdb, control = program("initdb"), program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("needs the programs of PostgreSQL (initdb, pg_ctl)")
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="xgem-pg-"))
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(
            command, user=user if os.geteuid() == 0 else None, cwd=folder, check=True, timeout=120,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    try:
        if os.geteuid() == 0:
            shutil.chown(folder, user)
        run(initdb, "-D", str(data), "-U", "xgem", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        run(control, "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql://xgem@/postgres?host={folder}"
        finally:
            run(control, "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
