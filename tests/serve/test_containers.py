"""The container files say what exists: commands, options, extras, files."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from xgem.cli import app

FOLDER = "containers"


def commands(project: Path) -> list[list[str]]:
    """What the containers of xgem run."""
    compose = yaml.safe_load((project / FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    own = [service["command"].split() for service in compose["services"].values() if service["image"] == "xgem"]
    text = (project / FOLDER / "Dockerfile").read_text(encoding="utf-8")
    own.append(json.loads(next(line for line in text.splitlines() if line.startswith("CMD")).removeprefix("CMD ")))
    head = (project / FOLDER / "compose.yaml").read_text(encoding="utf-8")
    own += [re.split(r" app ", line, maxsplit=1)[1].split() for line in head.splitlines() if " run --rm app " in line]
    return own


def test_commands_and_options_exist(project: Path) -> None:
    group: Any = typer.main.get_command(app)
    found = commands(project)
    assert {name for name, *_ in found} == {"app", "worker", "serve"}
    for name, *arguments in found:
        command = group.get_command(None, name)
        assert command is not None
        context = command.make_context(name, list(arguments), resilient_parsing=True)
        assert str(context.params["data"]) == "/data"


def test_the_image_copies_and_installs_what_there_is(project: Path) -> None:
    text = (project / FOLDER / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in text.splitlines() if line.startswith("COPY") for name in line.split()[1:-1]]
    assert copied
    assert all((project / name).exists() for name in copied)
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.search(r"/source\[(.*?)\]", text)
    assert asked is not None
    assert set(asked[1].split(",")) <= extras.keys()


@pytest.mark.parametrize("wanted", ["restart: unless-stopped", "postgresql://", "POSTGRES_PASSWORD:?"])
def test_the_services_restart_and_need_passwords(project: Path, wanted: str) -> None:
    assert wanted in (project / FOLDER / "compose.yaml").read_text(encoding="utf-8")
