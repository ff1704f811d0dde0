"""Time (of the first request: 1) and memory: ``python docs/measure_hardware.py [--threads 1] [--runs 11]``.

Each model runs in a process of its own, one request for one sample with the preset's steps, seeds 0, 1, ...; the first
request, which reads the weights, is not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

REQUESTS = (
    ("openi-256", "report", "frontal"),
    ("openi-256", "report", "frontal,lateral"),
    ("openi-256", "frontal", "lateral,report"),
    ("chexgen-small", "severity", "frontal"),
)


def measure(model: str, given: str, outputs: str, threads: int, runs: int) -> None:
    """Prints the seconds of each run, and the memory in GiB."""
    import numpy as np
    import torch

    import xgem

    torch.set_num_threads(threads)
    ramp = np.linspace(0, 1, 128 * 128, dtype=np.float32).reshape(128, 128)
    inputs = {"report": {"report": "Cardiomegaly."}, "frontal": {"frontal": ramp}, "severity": {"severity": 12}}[given]
    pipeline = xgem.load(model)
    names = outputs.split(",")
    pipeline(inputs, names, seed=0, progress=False)
    seconds = []
    for seed in range(runs):
        start = time.perf_counter()
        pipeline(inputs, names, seed=seed, progress=False)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, of KiB on Linux
    print(json.dumps({"seconds": seconds, "memory": peak}))


def main() -> None:
    """Measures every request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(*options.only, threads=options.threads, runs=options.runs)
        return
    print("| model | from | to | time, median [least, most] | memory, GiB |\n|---|---|---|---|---|", flush=True)
    unit = 0.0  # median seconds of the first request
    for model, given, outputs in REQUESTS:
        command = [sys.executable, __file__, "--threads", str(options.threads), "--runs", str(options.runs)]
        command += ["--only", model, given, outputs]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        unit = unit or statistics.median(found["seconds"])
        median, least, most = (value(found["seconds"]) / unit for value in (statistics.median, min, max))
        shown, took = outputs.replace(",", ", "), f"{median:.2f} [{least:.2f}, {most:.2f}]"
        print(f"| {model} | {given} | {shown} | {took} | {found['memory']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
