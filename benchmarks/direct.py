"""Memory, start-up and speed of stages that are trained from image files and texts, without `xgem data encode`.

    python benchmarks/direct.py FOLDER [--studies 10000 1000000] [--steps 300] [--stages image-vae clip report-vae]

For each number of studies: the manifest of benchmarks/encoded.py, one frontal each, whose files are hard links to PNGs
of noise, 64 x 64. Each stage of preset debug is trained from it twice, in processes of their own and with the cache of
the runs before: the first time fills the cache with what the stage needs (hashes, pixels, places of rows, what is known
of the studies, tokenizer). Of each run it says what benchmarks/encoded.py says: seconds until the first step, by the
clock and of the processor; samples a second of the processor; memory. Seed 0; files are deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from encoded import BATCH, measured, write_manifest
from PIL import Image

LINKS = 60_000
"""Most names of one file; ext4 allows 65,000."""


def preset(stage: str, steps: int) -> Any:
    """debug, with a training of so many steps that validates once."""
    from xgem.configs.preset import Preset, load_preset

    record = load_preset("debug").model_dump(mode="json")
    record["train"][stage] |= {
        "steps": steps, "batch_size": BATCH, "validate_every": steps, "checkpoint_every": steps,
    }  # fmt: skip
    return Preset.parse(record, "debug")


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for first in range(0, count, LINKS):
        source = folder / f"{first:07}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(source)
        for number in range(first + 1, min(first + LINKS, count)):
            (folder / f"{number:07}.png").hardlink_to(source)


def train(folder: Path, stage: str, steps: int) -> dict[str, float]:
    """Train a stage from the files in ``folder``, with the cache that is there."""
    from xgem.train.stages import run

    data, root = folder / "manifest.jsonl", folder / "root"
    return measured(steps, lambda options: run([stage], preset(stage, steps), data, root, options))


def measure(folder: Path, count: int, steps: int, stages: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    try:
        write_manifest(folder / "manifest.jsonl", count)
        write_images(folder / "images", count)
        for stage in stages:
            for time_of in ("first", "second"):
                call = [sys.executable, __file__, str(folder), "--steps", str(steps), "--only-train", stage]
                said = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
                found = {"studies": count, "stage": stage, "start": time_of} | json.loads(said.splitlines()[-1])
                size = sum(path.stat().st_size for path in (folder / "root/cache").rglob("*") if path.is_file())
                print(json.dumps(found | {"cache_mb": size // 2**20}), flush=True)
                (folder / "root/cache").rename(folder / "cache")
                shutil.rmtree(folder / "root")
                (folder / "root").mkdir()
                (folder / "cache").rename(folder / "root/cache")
    finally:
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the files")
    parser.add_argument("--studies", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--stages", nargs="+", default=["image-vae", "clip", "report-vae"])
    parser.add_argument("--only-train", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.only_train:
        print(json.dumps(train(given.folder, given.only_train, given.steps)))
        return
    for count in given.studies:
        measure(given.folder / f"{count}-{os.getpid()}", count, given.steps, given.stages)


if __name__ == "__main__":
    main()
