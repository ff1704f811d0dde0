"""Curates many rows, uninterrupted and killed again and again: peak memory, time, and whether the results are equal.

python benchmarks/curation_scale.py --rows 200000 --kills 10 --folder FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xgem.data.rows import Row
from xgem.utils.files import file_sha256

SIDE = 48
FILES = ("manifest.parquet", "decisions.parquet", "README.md", "costs.json")
COPIES = 50
"""One row in so many is a brighter copy of the row before it."""


def make(folder: Path, rows: int) -> Path:
    """A manifest of drawn pictures, no two of which are equal; nothing is made twice."""
    done = folder / "manifest.jsonl"
    if done.exists():
        return done
    rng = np.random.default_rng(0)
    last = np.zeros((SIDE, SIDE), np.uint8)
    with (folder / "partial").open("w", encoding="utf-8") as stream:
        for k in range(rows):
            place = folder / "images" / f"{k // 1000:04d}"
            place.mkdir(parents=True, exist_ok=True)
            if k % COPIES == COPIES - 1:
                pixels = np.clip(last.astype(np.int32) * 9 // 10 + 12, 0, 255).astype(np.uint8)
            else:
                coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
                pixels = last = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            file = place / f"{k:07d}.png"
            Image.fromarray(pixels).save(file, compress_level=1)
            labels = ("Effusion",) if k % 3 else ("No Finding",)
            name = f"study-{k:07d}"
            patient: Any = {"study": name, "subject": name, "split": "train", "age": 20 + k % 70, "sex": "FM"[k % 2]}
            row = Row(**patient, view="frontal", file=str(file), labels=labels, source="nih", licence="CC BY 4.0")
            stream.write(row.model_dump_json() + "\n")
    (folder / "partial").replace(done)
    return done


def curate(folder: Path, name: str, part: int, kills: int, longest: float, seed: int = 0) -> dict[str, object]:
    """Run the command, killed ``kills`` times with SIGKILL after at most ``longest`` seconds; memory and hashes."""
    plan = folder / "plan.yaml"
    plan.write_text(
        f"name: many\nsources: [{{name: many, manifest: {folder}/manifest.jsonl}}]\npart: {part}\n"
        "content: {judge: false, min_side: 32}\n"
    )
    command = [sys.executable, "-m", "xgem", "data", "curate", str(plan), "--out", str(folder / name)]
    rng, start, killed = random.Random(seed), time.time(), 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            code = process.wait(timeout=rng.uniform(0.1, 1) * longest if killed < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        if code:
            raise SystemExit(f"the command failed with {code}")
        break
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    hashes = {file: file_sha256(folder / name / file) for file in FILES}
    seconds = round(time.time() - start)
    return {"killed": killed, "seconds": seconds, "peak of all runs so far, MB": round(peak), "hashes": hashes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--part", type=int, default=1000)
    parser.add_argument("--longest", type=float, default=60, help="seconds until a kill, at most")
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    make(folder, options.rows)
    killed = curate(folder, "killed", options.part, options.kills, options.longest)
    print(json.dumps(killed), flush=True)
    whole = curate(folder, "whole", options.part, 0, 0)
    print(json.dumps(whole))
    print(json.dumps({"rows": options.rows, "equal": killed["hashes"] == whole["hashes"]}))


if __name__ == "__main__":
    main()
