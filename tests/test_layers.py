"""The layers of the package, as pyproject.toml states them: imports point downwards, and none closes a circle."""

from __future__ import annotations

import logging.config
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def loggers_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """import-linter configures logging and thereby disables all loggers that exist, for every later test too."""
    monkeypatch.setattr(logging.config, "dictConfig", lambda config: None)


def test_imports_point_downwards_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0, capsys.readouterr().out
    assert "2 kept, 0 broken" in capsys.readouterr().out


def test_an_import_that_points_upwards_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "planted"
    for name, text in {"__init__": "", "low": "from planted import high", "high": ""}.items():
        package.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text(text)
    contract = (
        '[[tool.importlinter.contracts]]\nname = "l"\ntype = "layers"\nlayers = ["planted.high", "planted.low"]\n'
    )
    (tmp_path / "pyproject.toml").write_text(f'[tool.importlinter]\nroot_package = "planted"\n{contract}')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert lint_imports(config_filename=str(tmp_path / "pyproject.toml"), no_cache=True) == 1
    assert "planted.low -> planted.high" in capsys.readouterr().out
    sys.modules.pop("planted", None)
