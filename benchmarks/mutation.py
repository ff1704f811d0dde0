"""Mutation testing: the share of small changes to a module that its tests notice.

    python benchmarks/mutation.py [TARGET ...] [--sample 100] [--seed 0] [--minutes 20] [--survivors]

mutmut changes one operator, number, string, argument or keyword at a time and runs those of the module's own tests that
call the changed function, in a clone of the last commit. Lines that raise or log, and decorated functions, stay as they
are. A mutant counts as killed when a test fails or exceeds its time. Some survivors change nothing that can be seen: a
default that every caller overrides, say, or the device of a tensor on a machine that has only one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Modules and the tests that are to notice changes to them; both relative to xgem/ and tests/, without ".py".
TARGETS = {
    "sampling": (
        "generators/sampling",
        ["generators/test_sampling", "generators/test_sampling_start", "generators/test_controlnet"],
    ),
    "fusion": ("encoders/fusion", ["encoders/test_fusion"]),
    "contrastive": ("encoders/contrastive", ["encoders/test_contrastive"]),
    "subsets": ("train/corpus", ["train/test_subsets", "train/test_corpus"]),
    "joint": ("train/joint", ["train/test_joint"]),
    "alignment": ("alignment/*", ["alignment/test_alignment"]),
    "manifest": ("data/manifest", ["data/test_manifest", "data/test_manifest_merge"]),
    "bootstrap": ("metrics/bootstrap", ["metrics/test_bootstrap"]),
    "classification": ("metrics/classification", ["metrics/test_classification", "metrics/test_utility_scores"]),
    "agreement": ("metrics/agreement", ["metrics/test_agreement"]),
    "consistency": ("metrics/consistency", ["metrics/test_consistency"]),
    "fidelity": ("metrics/fidelity", ["metrics/test_fidelity", "metrics/test_fidelity_draws"]),
    "neighbours": ("metrics/neighbours", ["metrics/test_neighbours"]),
    "privacy": ("metrics/privacy", ["metrics/test_privacy"]),
    "privacy gate": ("pipeline/privacy_gate", ["pipeline/test_privacy_gate"]),
    "cohort plan": ("cohort/plan", ["cohort/test_plan"]),
    "cohort items": ("cohort/items", ["cohort/test_items", "cohort/test_plan"]),
}
SETTINGS = """
[tool.mutmut]
source_paths = ["xgem"]
only_mutate = ["xgem/{module}.py"]
also_copy = ["README.md", "benchmarks", "docs"]
pytest_add_cli_args = ["-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = [{tests}]
process_isolation = "forkserver"
do_not_mutate_patterns = ['raise \\w+', 'logger\\.\\w+']
"""
KILLED = ("killed", "timeout", "segfault", "caught by type check")


@dataclass
class Score:
    """What became of the mutants of a target."""

    total: int
    outcomes: dict[str, str]  # of a mutant that was run

    @property
    def killed(self) -> int:
        return sum(outcome in KILLED for outcome in self.outcomes.values())


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def checkout(work: Path) -> str:
    """Clones the last commit into ``work`` and returns its short name."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(work)], check=True)
    named = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=work, check=True, capture_output=True, text=True
    )
    return named.stdout.strip()


def mutants_of(paths: list[Path]) -> list[str]:
    """Names of all mutants of the files, in the current folder's settings."""
    from mutmut.configuration import reset_config
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    reset_config()
    return [
        get_mutant_name(path, name)
        for path in paths
        for name in mutate_file_contents(str(path), path.read_text(encoding="utf-8"), None, None).mutant_names
    ]


def outcomes_of(paths: list[Path]) -> dict[str, str]:
    """The outcome of every mutant that was run."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.stats import status_by_exit_code

    found = {}
    for path in paths:
        data = SourceFileMutationData(path=path)
        data.load()
        found |= {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items() if code is not None}
    return found


def print_survivors(paths: list[Path], outcomes: dict[str, str]) -> None:
    """The changed lines of every mutant that no test noticed."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    for path in paths:
        prefix = ".".join(path.with_suffix("").parts)
        for name, outcome in outcomes.items():
            if name.startswith(f"{prefix}.") and outcome not in KILLED:
                lines = get_diff_for_mutant(name, path=path).splitlines()
                changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
                print(f"# {name}: {outcome}", *changed, sep="\n")


def run(target: str, work: Path, sample: int | None, seed: int, seconds: float, survivors: bool) -> Score:
    """Runs mutmut on one target inside the clone ``work``."""
    module, tests = TARGETS[target]
    selection = ", ".join(f'"tests/{test}.py"' for test in tests)
    (work / "pyproject.toml").write_text(
        git(work, "show", "HEAD:pyproject.toml") + SETTINGS.format(module=module, tests=selection)
    )
    shutil.rmtree(work / "mutants", ignore_errors=True)  # of the target before: its timings would be taken for these
    with contextlib.chdir(work):
        paths = sorted(Path("xgem").glob(f"{module}.py"))
        names = mutants_of(paths)
        drawn = sorted(random.Random(seed).sample(names, sample)) if sample and sample < len(names) else names
        process = subprocess.Popen(
            [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *drawn],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # every outcome is on the disk as soon as it is known
            output, _ = process.communicate()
        outcomes = {name: outcome for name, outcome in outcomes_of(paths).items() if name in set(drawn)}
        if not outcomes:
            raise SystemExit(f"mutmut ran no mutant of {target!r}:\n{output[-3000:]}")
        if survivors:
            print_survivors(paths, outcomes)
    return Score(len(names), outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--sample", type=int, help="mutants drawn per target; all by default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--minutes", type=float, default=60, help="time limit per target")
    parser.add_argument("--survivors", action="store_true", help="print the mutants that no test noticed")
    parser.add_argument("--work", type=Path, help="empty folder for the clone, which is kept")
    options = parser.parse_args()
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        parser.error(f"unknown targets {unknown}, expected of {list(TARGETS)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary) / "xgem"
        commit = checkout(work)
        print(f"commit {commit}, seed {options.seed}\n")
        rows = ["| module | mutants | run | killed | share |", "| --- | --- | --- | --- | --- |"]
        for target in options.targets or TARGETS:
            began = time.monotonic()
            score = run(target, work, options.sample, options.seed, 60 * options.minutes, options.survivors)
            n = len(score.outcomes)
            name = f"`xgem/{TARGETS[target][0]}.py`"
            rows.append(f"| {name} | {score.total} | {n} | {score.killed} | {score.killed / n:.0%} |")
            print(f"{rows[-1]}  {time.monotonic() - began:.0f} s", flush=True)
        print("", *rows, sep="\n")


if __name__ == "__main__":
    main()
