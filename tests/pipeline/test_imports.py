"""A request imports what it uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

UNUSED = (
    "open_clip", "timm", "sklearn", "pandas", "matplotlib", "pydicom", "pyarrow", "typer",
    "transformers.models.bert.modeling_bert", "xgem.generators.report_vae", "xgem.encoders.t5",
    "xgem.train", "xgem.eval", "xgem.judges", "xgem.cohort", "xgem.convert", "xgem.cli",
)  # fmt: skip
"""Trees of others, and parts of xgem, that a radiograph from a report and a radiograph has no use for."""

PROGRAM = """
import sys
import numpy as np
import xgem
assert "torch" not in sys.modules
inputs = {"report": "Edema.", "lateral": np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)}
xgem.generate(inputs, "frontal", model=sys.argv[1], seed=1, num_inference_steps=1, progress=False)
print(*sys.modules)
"""


def test_a_radiograph_imports_what_it_uses(checkpoint: Path, project: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(checkpoint)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {"diffusers", "xgem.encoders.text", "xgem.encoders.image"} <= imported
    assert not imported & set(UNUSED)
