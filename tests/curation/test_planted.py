"""The bars of curation on real radiographs and on many rows, which take long: set XGEM_PLANTED to a new folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("XGEM_PLANTED" not in os.environ, reason="takes an hour: set XGEM_PLANTED to a new folder"),
]
KINDS = ("exact", "resized", "JPEG", "brightness", "cropped", "several", "mirrored", "turned", "negative", "rotated",
         "inverted", "wrong view", "not chest", "mislabelled")  # fmt: skip


def ran(project: Path, script: str, *options: object) -> str:
    """What a benchmark prints."""
    command = [sys.executable, str(project / "benchmarks" / script), *map(str, options)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.data
@pytest.mark.timeout(7200)
def test_what_is_planted_among_real_radiographs_is_found(project: Path, data_dir: Path) -> None:
    folder = Path(os.environ["XGEM_PLANTED"]) / "planted"
    printed = ran(project, "curation_planted.py", "--data", data_dir, "--folder", folder)
    found: dict[str, Any] = json.loads(printed[printed.index("{\n") :])
    assert all(found["planted"][kind]["found"] >= 0.95 * found["planted"][kind]["n"] >= 190 for kind in KINDS), found
    # Copies within the published sets, and pictures that lie on their side there, are no loss
    lost = sum(count for what, count in found["good"]["lost or changed"].items() if what != "dropped: duplicate")
    assert lost <= 0.02 * found["good"]["n"], found


@pytest.mark.timeout(7200)
def test_many_rows_killed_again_and_again(project: Path) -> None:
    folder = Path(os.environ["XGEM_PLANTED"]) / "many"
    lines = [json.loads(line) for line in ran(project, "curation_scale.py", "--folder", folder).splitlines()]
    assert lines[0]["killed"] == 10
    assert lines[2] == {"rows": 200_000, "equal": True}
    assert lines[1]["peak of all runs so far, MB"] < 2000
