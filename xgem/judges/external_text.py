"""RadGraph-F1 and RaTEScore, each in a Python environment of its own, as their packages need an older transformers.

The user gives a Python interpreter with the package installed. A short program runs there, reads pairs of reports as
JSON lines from standard input and answers with JSON lines: first the package's version, then the scores of each pair.
The package itself decides where its models come from (``options`` may name local folders); with ``HF_HUB_OFFLINE=1``
in the environment it downloads nothing.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from xgem.metrics.bootstrap import Array
from xgem.types import InputError, NotComputed

RADGRAPH: Final = "radgraph"
RATESCORE: Final = "ratescore"
SCORES: Final[dict[str, tuple[str, ...]]] = {
    RADGRAPH: ("radgraph_simple", "radgraph_partial", "radgraph_complete"),
    RATESCORE: ("ratescore",),
}
"""The scores of each metric for a pair of reports, F1 in [0, 1]."""
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {RADGRAPH: {"model_type": "radgraph"}, RATESCORE: {"use_gpu": False}}

_START: Final = """
import importlib.metadata, json, os, sys
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what the package prints is no answer
lines = [json.loads(line) for line in sys.stdin.buffer.read().decode("utf-8").splitlines()]
options, pairs = lines[0], lines[1:]
outputs, references = [p["output"] for p in pairs], [p["reference"] for p in pairs]
"""
# "all" gives three lists of F1 in older versions of the package, (precision, recall, F1) by pair and level in newer
_RADGRAPH: Final = """
from radgraph import F1RadGraph
rewards = F1RadGraph(reward_level="all", **options)(hyps=outputs, refs=references)[1]
if isinstance(rewards, tuple):
    rewards = list(zip(*rewards))
def f1(level):
    return float(level[2] if isinstance(level, (tuple, list)) else level)
scores = [[f1(level) for level in pair] for pair in rewards]
package = "radgraph"
"""
_RATESCORE: Final = """
from RaTEScore import RaTEScore
scores = [[float(one)] for one in RaTEScore(**options).compute_score(outputs, references)]
package = "RaTEScore"
"""
_END: Final = """
try:
    version = importlib.metadata.version(package)
except importlib.metadata.PackageNotFoundError:
    version = "of unknown version"
for answer in [package + " " + version] + scores:
    answers.write(json.dumps(answer) + "\\n")
answers.close()
"""
_PROGRAMS: Final = {RADGRAPH: _START + _RADGRAPH + _END, RATESCORE: _START + _RATESCORE + _END}


@dataclass(frozen=True)
class ExternalMetric:
    """A report metric that another Python interpreter computes.

    Attributes:
        metric: ``radgraph`` or ``ratescore``.
        python: path to a Python interpreter with the package installed.
        options: arguments of the package's scorer; by default RadGraph's model of 2021 (``model_type="radgraph"``) and
            RaTEScore on the CPU. Paths must be absolute.
        environment: environment variables of the other interpreter; None passes on those of this process.
        timeout: in seconds.
    """

    metric: str
    python: str | Path
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    environment: Mapping[str, str] | None = None
    timeout: float = 24 * 3600.0

    def __post_init__(self) -> None:
        if self.metric not in SCORES:
            raise InputError(f"metric {self.metric!r}: expected one of {', '.join(SCORES)}")

    @property
    def settings(self) -> dict[str, Any]:
        return {**_DEFAULTS[self.metric], **self.options}

    def score(self, outputs: Sequence[str], references: Sequence[str]) -> tuple[dict[str, Array], str]:
        """Score n pairs of reports, at least one.

        An empty output scores 0 and is not sent: the packages disagree on how to score it (RaTEScore gives 0.5).

        Returns:
            (n,) values in [0, 1] by the names of :data:`SCORES`, and the package with its version.

        Raises:
            NotComputed: the interpreter or the package does not exist, or it failed; with its last line of output.
        """
        rows = [row for row, output in enumerate(outputs) if output.strip()]
        pairs = [{"output": outputs[row], "reference": references[row]} for row in rows]
        answers = self._ask([dict(self.settings), *pairs])
        names = SCORES[self.metric]
        scores = np.zeros((len(outputs), len(names)))
        try:
            version, values = str(answers[0]), np.array(answers[1:], dtype=np.float64).reshape(len(rows), len(names))
        except (IndexError, ValueError, TypeError):
            raise NotComputed(f"{self.python}: {len(answers) - 1} answers for {len(rows)} pairs of reports") from None
        if not ((values >= 0) & (values <= 1 + 1e-6)).all():
            raise NotComputed(f"{self.python}: {version} gave a score outside [0, 1]: {_first_outside(values)}")
        scores[rows] = values
        return dict(zip(names, scores.T, strict=True)), version

    def _ask(self, lines: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Send JSON lines to the other interpreter, and return the decoded JSON lines that it answers."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        try:
            # In an empty folder, so that no file of the working directory is imported in place of a package
            with tempfile.TemporaryDirectory() as folder:
                process = subprocess.run(
                    [str(self.python), "-c", _PROGRAMS[self.metric]],
                    input=text,
                    capture_output=True,
                    encoding="utf-8",
                    errors="replace",
                    cwd=folder,
                    env=None if self.environment is None else dict(self.environment),
                    timeout=self.timeout,
                    check=False,
                )
        except OSError as error:
            raise NotComputed(f"{self.python}: cannot be run ({error.strerror})") from None
        except subprocess.TimeoutExpired:
            raise NotComputed(f"{self.python}: {self.metric} gave no answer in {self.timeout:g} s") from None
        if process.returncode:
            messages = process.stderr.strip().splitlines()
            reason = messages[-1][:200] if messages else process.returncode
            raise NotComputed(f"{self.python}: {self.metric} failed: {reason}")
        try:
            return [json.loads(line) for line in process.stdout.splitlines()]
        except json.JSONDecodeError:
            raise NotComputed(f"{self.python}: {self.metric} answered with something other than JSON lines") from None


def _first_outside(values: Array) -> float:
    return next(float(value) for value in values.ravel() if math.isnan(value) or not 0 <= value <= 1 + 1e-6)
