"""The command as a whole: help, errors and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import xgem as package
from xgem.cli import COMMANDS, EPILOG
from xgem.types import (
    CheckpointError,
    DataError,
    ImageError,
    NotComputed,
    OutputError,
    PrivacyError,
    SamplingError,
    XgemError,
)


def test_help_lists_every_command_and_the_exit_codes(xgem: Any) -> None:
    ran = xgem("--help")
    assert ran.code == 0
    for name in COMMANDS:
        assert name in ran.out
    assert "130 interrupted" in " ".join(ran.out.split())
    assert xgem("generate", "-h").code == 0


def test_help_answers_at_once(project: Path) -> None:
    """Processor time, so that a busy machine does not decide."""
    program = "import time, xgem.cli; xgem.cli.main(['--help']); print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0
    assert float(done.stdout.splitlines()[-1]) < 2


def test_version(xgem: Any) -> None:
    ran = xgem("--version")
    assert (ran.code, ran.out.strip()) == (0, f"xgem {package.__version__}")


def test_a_mistyped_command_is_a_usage_error_with_a_suggestion(xgem: Any) -> None:
    ran = xgem("generat")
    assert ran.code == 2
    assert "generate" in ran.err
    assert xgem("generate", "--no-such-option").code == 2
    assert xgem("generate", "--outputs", "lateral").code == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImageError("bad\nimage"), 2),
        (DataError("bad table"), 2),
        (NotComputed("no weights"), 1),
        (PrivacyError("too close"), 1),
        (SamplingError("NaN"), 1),
        (CheckpointError("bad model"), 1),
        (OutputError("bad folder"), 1),
        (XgemError("bad"), 1),
    ],
)
def test_errors_are_one_line_and_have_their_codes(
    xgem: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("xgem.cli.info.doctor", fail)
    ran = xgem("doctor")
    assert ran.code == code
    assert ran.err == f"xgem: error: {' '.join(str(error).split())}\n"
    assert ran.out == ""


def test_a_package_that_is_not_installed_is_named(xgem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("xgem.cli.info.doctor", lambda: fail("scipy.stats"))
    ran = xgem("doctor")
    assert ran.code == 1
    assert ran.err.startswith("xgem: error: this needs the package scipy, which is not installed: install xgem[eval]")
    assert ran.err.count("\n") == 1
    monkeypatch.setattr("xgem.cli.info.doctor", lambda: fail("highdicom.sr"))
    assert "the package highdicom, which is not installed: install xgem[dicom]" in xgem("doctor").err
    monkeypatch.setattr("xgem.cli.info.doctor", lambda: fail("xgem.gone"))
    with pytest.raises(ModuleNotFoundError, match=r"xgem\.gone"):  # a fault of ours
        xgem("doctor")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device", "out/model"), 1, "out/model: No space left on device"),
        (PermissionError(13, "Permission denied", "data"), 1, "data: Permission denied"),
        (
            UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates"),
            2,
            "'caf\\udce9': not valid UTF-8; rename the file",
        ),
    ],
)
def test_the_systems_errors_are_one_line(
    xgem: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("xgem.cli.info.doctor", fail)
    ran = xgem("doctor")
    assert (ran.code, ran.err.count("\n")) == (code, 1)
    assert ran.err.startswith(f"xgem: error: {line}")


def test_warnings_of_other_libraries_are_not_shown(xgem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import logging, sys, warnings
import xgem.cli.info
def doctor() -> None:
    warnings.warn_explicit("of others", UserWarning, "others.py", 1, module="others")
    logging.getLogger("others").warning("of others")
    warnings.warn_explicit("of ours", UserWarning, "xgem/x.py", 1, module="xgem.x")
    logging.getLogger("xgem.x").warning("of ours, logged")
xgem.cli.info.doctor = doctor
from xgem.cli import main
main(sys.argv[1:])
"""

    def shown(*options: str) -> str:
        command = [sys.executable, "-c", program, *options, "doctor"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    assert "of others" not in shown()
    assert "of ours" in shown()
    assert "xgem: WARNING: of ours, logged" in shown()
    assert "xgem: WARNING: of others" in shown("--verbose")


def test_ctrl_c_is_no_traceback(xgem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xgem.cli.info.doctor", stop)
    ran = xgem("doctor")
    assert (ran.code, ran.err) == (130, "xgem: interrupted\n")


def test_a_command_may_choose_its_exit_code(xgem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise typer.Exit(1)

    monkeypatch.setattr("xgem.cli.info.doctor", stop)
    assert xgem("doctor").code == 1


def test_the_codes_are_documented() -> None:
    for code in ("0 done", "1 failed", "2 bad usage", "130 interrupted"):
        assert code in EPILOG


def test_long_work_leaves_lines_in_a_log_unless_switched_off(
    xgem: Any, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stderr is no terminal here; without the wait of half a minute, every step is a line."""
    monkeypatch.setattr("xgem.utils.progress.LINE_EVERY_S", 0.0)
    ran = xgem("data", "check", manifest, "--images")
    assert "reading images: 1 of 48, 0:00:0" in ran.err
    assert xgem("--no-progress", "data", "check", manifest, "--images").err == ""
    # An option of the command holds for the work deep inside, too
    options = ["eval", "privacy", "--training", manifest, "--generated", manifest, "--pad", "--bootstrap", 20]
    options += ["--held-out", manifest, "--extractor", "xgem-classifier", "--device", "cpu"]
    ran = xgem(*options, "--out", tmp_path / "a")
    shown = {line.partition(":")[0] for line in ran.err.splitlines()}
    assert {"pixel distances of generated", "aligned distances of training"} <= shown
    assert xgem(*options, "--out", tmp_path / "b", "--no-progress").err == ""


def test_what_is_submitted_is_checked_before(xgem: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Job:
        job_id = "7"

    monkeypatch.setattr("xgem.utils.slurm.submit", lambda *what: asked.append(what) or Job())
    out = tmp_path / "out"
    options = ["frontal", "--preset", "debug", "--data", tmp_path / "toy.jsonl", "--out", out]
    ran = xgem("submit", "train", *options, "--nodes", 4, "--gpus", 8, "--timeout", 30, "--sharding", "full")
    assert (ran.code, ran.out) == (0, f"job 7: 32 processes into {out}, logs in {out}.slurm\n")
    ((work, name, logs, wanted),) = asked
    assert work.arguments == (*map(str, options), "--sharding", "full")
    assert (name, logs) == ("xgem-train", tmp_path / "out.slurm")
    assert (wanted.nodes, wanted.tasks, wanted.gpus, wanted.timeout_min) == (4, 8, 8, 30)
    assert xgem("submit", "train", *options, "--gpus", 2, "--tasks", 3).code == 2
    assert xgem("submit", "train", *options, "--no-such-option").code == 2
    assert len(asked) == 1
