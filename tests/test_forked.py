"""The stand-ins for ``xgem`` and ``python`` do what these do in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked

CODE = "import os, sys; print(os.getcwd(), os.environ['WORD'], sys.argv, __name__); print('x', file=sys.stderr); {}"


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "sys.exit('gone')", "1 / 0"])
def test_example_ends_as_it_does_in_python(end: str, processes: Path, tmp_path: Path) -> None:
    forked.client(tmp_path / "python", processes, "python")
    environment = {**os.environ, "WORD": "ä"}
    done = [
        subprocess.run([program, "-c", CODE.format(end)], cwd=tmp_path, env=environment, capture_output=True, text=True)
        for program in (tmp_path / "python", sys.executable)
    ]
    assert done[0].returncode == done[1].returncode
    assert done[0].stdout == done[1].stdout
    assert done[0].stderr.splitlines()[-1] == done[1].stderr.splitlines()[-1]


def test_command_reads_its_arguments_and_fails_with_its_code(processes: Path, tmp_path: Path) -> None:
    program = tmp_path / "xgem"
    forked.client(program, processes, "xgem")
    done = subprocess.run([program, "generate", "--no-such-option"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


def test_signal_reaches_the_command(processes: Path, tmp_path: Path) -> None:
    forked.client(tmp_path / "python", processes, "python")
    code = "import time; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([tmp_path / "python", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
