"""Time of every experiment of the papers at debug size, in one process each.

    python benchmarks/experiments.py [--only fairness] [--device cpu]

Prints seconds of the clock and of the processor, starting Python included, and both in all.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xgem.experiments.papers.plans import EXPERIMENTS


def measure(name: str, folder: Path, device: str) -> tuple[float, float]:
    """Seconds of the clock and of the processor that ``xgem bench NAME`` takes; nothing is cached before."""
    command = [sys.executable, "-m", "xgem", "--no-progress", "bench", name, "--out", str(folder / name)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "XGEM_CACHE": str(folder / "cache")}
    subprocess.run([*command, "--device", device], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=EXPERIMENTS)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    totals = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only or EXPERIMENTS:
            seconds = measure(name, Path(folder), args.device)
            totals = [total + one for total, one in zip(totals, seconds, strict=True)]
            print(f"{name:15} {seconds[0]:6.1f} s, processor {seconds[1]:6.1f} s", flush=True)
    print(f"{'in all':15} {totals[0]:6.1f} s, processor {totals[1]:6.1f} s")


if __name__ == "__main__":
    main()
