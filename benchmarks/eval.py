"""Time and memory of FID, KID and PRDC, compared with torchmetrics and the package prdc.

    python benchmarks/eval.py [--n 100000] [--dim 768] [--prdc-n 10000] [--runs 3] [--threads 1]

Both sides get the same random features. Every measurement runs in its own process; peak memory includes interpreter,
libraries and both feature sets. Runs alternate and ratios are taken per pair of runs, so that a drift in machine speed
does not affect the result; CPU time is reported as well. The package prdc holds three n x n matrices, so it is compared
at --prdc-n; xgem also runs once at --n (--prdc-n 0 or --no-large skips one of them). Both results must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
SUBSETS, SUBSET_SIZE, K = 100, 1000, 5
TOLERANCE = {"fid": 1e-3, "prdc": 1e-9}
"""Relative, for deterministic measures; KID draws random subsets, so it is compared within their spread."""


def features(n: int, dim: int, seed: int) -> tuple[Features, Features]:
    rng = np.random.default_rng(seed)
    real = rng.standard_normal((n, dim), dtype=np.float32)
    generated = rng.standard_normal((n, dim), dtype=np.float32)
    generated *= np.float32(1.02)
    generated += np.float32(0.02)
    return real, generated


def ours_fid(real: Features, generated: Features) -> Any:
    from xgem.metrics.fidelity import frechet

    return lambda: {"fid": frechet(real, generated)}


def ours_fid_interval(real: Features, generated: Features) -> Any:
    from xgem.metrics.fidelity import frechet_distance

    return lambda: frechet_distance(real, generated).as_dict()


def ours_kid(real: Features, generated: Features) -> Any:
    from xgem.metrics.fidelity import kernel_subsets

    def run() -> dict[str, float]:
        found = kernel_subsets(real, generated, subsets=SUBSETS, subset_size=min(SUBSET_SIZE, len(real)))
        return {"mean": float(found.mean()), "std": float(found.std())}

    return run


def ours_kid_interval(real: Features, generated: Features) -> Any:
    from xgem.metrics.fidelity import kernel_distance

    return lambda: kernel_distance(real, generated).as_dict()


def ours_prdc(real: Features, generated: Features) -> Any:
    from xgem.metrics.fidelity import prdc

    def run() -> dict[str, float]:
        found = prdc(real, generated, K)
        return {name: getattr(found, name).value for name in ("precision", "recall", "density", "coverage")}

    return run


def theirs_fid(real: Features, generated: Features) -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    return _torchmetric(FrechetInceptionDistance, real, generated, lambda found: {"fid": float(found)})


def theirs_kid(real: Features, generated: Features) -> Any:
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SUBSET_SIZE, len(real))
    return _torchmetric(
        lambda **options: KernelInceptionDistance(subsets=SUBSETS, subset_size=size, **options),
        real,
        generated,
        lambda found: {"mean": float(found[0]), "std": float(found[1])},
    )


def _torchmetric(metric: Any, real: Features, generated: Features, read: Callable[[Any], Any]) -> Any:
    import torch

    class Same(torch.nn.Module):
        num_features = real.shape[1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    def run() -> Any:
        one = metric(feature=Same())
        for values, is_real in ((real, True), (generated, False)):
            for start in range(0, len(values), 1000):
                one.update(torch.from_numpy(values[start : start + 1000]), real=is_real)
        return read(one.compute())

    return run


def theirs_prdc(real: Features, generated: Features) -> Any:
    from prdc import compute_prdc

    def run() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            return {name: float(value) for name, value in compute_prdc(real, generated, K).items()}

    return run


TASKS: dict[str, Callable[[Features, Features], Any]] = {
    "ours fid": ours_fid, "theirs fid": theirs_fid, "ours fid_interval": ours_fid_interval,
    "ours kid": ours_kid, "theirs kid": theirs_kid, "ours kid_interval": ours_kid_interval,
    "ours prdc": ours_prdc, "theirs prdc": theirs_prdc,
}  # fmt: skip


def measure(task: str, n: int, options: Namespace) -> dict[str, Any]:
    """Wall-clock and CPU seconds of one call, peak memory of this process, and the result."""
    run = TASKS[task](*features(n, options.dim, options.seed))
    start, busy = time.perf_counter(), time.process_time()
    found = run()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "cpu_seconds": busy, "peak_gb": round(peak, 3), "found": found}


def apart(task: str, n: int, options: Namespace) -> dict[str, Any]:
    """:func:`measure` in a process of its own, with so many threads."""
    command = [sys.executable, __file__, "--task", task, "--n", str(n), "--dim", str(options.dim)]
    command += ["--seed", str(options.seed), "--threads", str(options.threads)]
    threads = str(options.threads)
    limits: dict[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    # The package prdc starts eight workers, more than there may be processors here
    limits["LOKY_MAX_CPU_COUNT"] = threads
    done = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task} at {n}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    return json.loads(done.stdout)


def compare(name: str, n: int, options: Namespace) -> dict[str, Any]:
    """Alternate ours and theirs; a ratio above 1 means that ours is faster."""
    pairs = [(apart(f"ours {name}", n, options), apart(f"theirs {name}", n, options)) for _ in range(options.runs)]
    for ours, theirs in pairs:
        check(name, ours["found"], theirs["found"])
    ratios = sorted(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
    return {
        "n": n,
        "ours_s": round(statistics.median(ours["seconds"] for ours, _ in pairs), 3),
        "theirs_s": round(statistics.median(theirs["seconds"] for _, theirs in pairs), 3),
        "ours_cpu_s": round(statistics.median(ours["cpu_seconds"] for ours, _ in pairs), 3),
        "theirs_cpu_s": round(statistics.median(theirs["cpu_seconds"] for _, theirs in pairs), 3),
        "ours_peak_gb": max(ours["peak_gb"] for ours, _ in pairs),
        "theirs_peak_gb": max(theirs["peak_gb"] for _, theirs in pairs),
        "speedup_median": round(statistics.median(ratios), 3),
        "speedup_min": round(ratios[0], 3),
        "speedup_max": round(ratios[-1], 3),
        "ours": pairs[0][0]["found"],
        "theirs": pairs[0][1]["found"],
    }


def check(name: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Check that both results agree."""
    if name == "kid":
        allowed = 5 * (ours["std"] + theirs["std"]) / SUBSETS**0.5 + 1e-5
        assert abs(ours["mean"] - theirs["mean"]) <= allowed, f"kid: {ours} and {theirs} are not close"
        return
    for key, value in theirs.items():
        allowed = TOLERANCE[name] * max(1e-6, abs(value))
        assert abs(ours[key] - value) <= allowed, f"{name}: {key} {ours[key]} and {value} are not close"


def alone(name: str, n: int, options: Namespace) -> dict[str, Any]:
    found = apart(f"ours {name}", n, options)
    return {
        "n": n,
        "ours_s": round(found["seconds"], 3),
        "ours_cpu_s": round(found["cpu_seconds"], 3),
        "ours_peak_gb": found["peak_gb"],
        "ours": found["found"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--prdc-n", type=int, default=10_000)
    parser.add_argument("--no-large", action="store_true", help="no PRDC at --n, which takes minutes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task:
        print(json.dumps(measure(options.task, options.n, options)))
        return
    result: dict[str, Any] = {key: value for key, value in vars(options).items() if key != "task"}
    result["numpy"] = np.__version__
    for name in ("fid", "kid"):
        result[name] = compare(name, options.n, options)
        result[f"{name} with its interval"] = alone(f"{name}_interval", options.n, options)
    if options.prdc_n:
        result["prdc"] = compare("prdc", options.prdc_n, options)
    if not options.no_large:
        result["prdc at --n"] = alone("prdc", options.n, options)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
