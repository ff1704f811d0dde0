"""Values that a shell completes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xgem.checkpoints.locate import embedded_names
from xgem.cli import completion
from xgem.generators.sampling import SAMPLERS
from xgem.train.stages import stages


def test_lists_are_those_of_the_library() -> None:
    assert set(completion.STAGES) == {"all", "reid", "lora", "full", *stages()}
    assert set(completion.samplers("")) == set(SAMPLERS)
    assert completion.models("") == embedded_names()
    assert "openi-256" in completion.presets("openi")
    assert completion.outputs("lateral,re") == ["lateral,report"]
    assert completion.outputs("lateral,") == ["lateral,frontal", "lateral,report"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("generate --sampler d", {"dpmsolver++", "ddim"}),
        ("generate --outputs fro", {"frontal"}),
        ("train image-", {"image-vae", "image-decoder"}),
        ("params chexgen-xl2-2", {"chexgen-xl2-256"}),
    ],
)
def test_the_shell_gets_them(words: str, expected: set[str]) -> None:
    *_, last = words.split()
    line = {"COMP_WORDS": f"xgem {words}", "COMP_CWORD": str(len(words.split())), "_XGEM_COMPLETE": "complete_bash"}
    program = "import sys; sys.argv[0] = 'xgem'; from xgem.cli import app; app(prog_name='xgem')"
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **line}, capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done.stderr
    assert all(word.startswith(last) for word in expected)
