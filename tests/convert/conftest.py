"""The command line, run in this process."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from xgem.cli import main


class Ran(NamedTuple):
    """What a command did: its exit code, and what it wrote where."""

    code: int
    out: str
    err: str


@pytest.fixture
def xgem(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Ran:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
