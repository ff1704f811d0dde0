"""Memory, start-up and speed of a training from encoded studies on the disk, and time of `xgem data check`.

    python benchmarks/encoded.py FOLDER [--studies 10000 1000000] [--steps 300] [--no-check]

For each number of studies: a manifest of made-up rows, one frontal each, and shards of made-up encodings (float16: a
latent of 64 numbers, 1 to 3 texts with a vector of 32 and 1 to 24 tokens of 32), as `xgem data encode` writes them for
preset debug-chexgen, whose generator is then trained from them in a process of its own. That says the seconds until its
first step (interpreter, imports, checks, building), by the clock and of the processor; the samples that it trains on in
a second of the processor; and its memory by /proc/self/status: the peak (VmHWM), its own pages (RssAnon) and those of
files (RssFile). `xgem data check --no-files` of the same manifest runs in another process. Seed 0; files are deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STARTED = time.time()

import numpy as np  # noqa: E402 -- the clock starts before the imports

BATCH = 64


def preset(steps: int) -> Any:
    """debug-chexgen, with a training of so many steps that validates once."""
    from xgem.configs.preset import Preset, load_preset

    record = load_preset("debug-chexgen").model_dump(mode="json")
    each = {"steps": steps, "batch_size": BATCH, "validate_every": steps, "checkpoint_every": steps}
    record["train"]["frontal"] |= each | {"loss": {"known": 0.2, "balanced": 0.2}}
    return Preset.parse(record, "debug-chexgen")


def write_manifest(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            row = {
                "study": f"s{number:07}",
                "subject": f"p{number:07}",
                "split": "val" if number % 100 == 0 else "train",
            }
            row |= {"view": "frontal", "file": f"images/{number:07}.png", "age": number % 90, "sex": "FM"[number % 2]}
            row |= {"findings": "The heart is normal in size. The lungs are clear.", "impression": f"Stable {number}."}
            row |= {"labels": ["Cardiomegaly"] if number % 3 else ["normal"], "source": "openi"}
            stream.write(json.dumps(row) + "\n")


def write_shards(folder: Path, manifest: Path, checkpoint: Path, count: int) -> None:
    """Shards of made-up numbers that are of ``manifest`` and of the components of ``checkpoint``."""
    from xgem.checkpoints import store
    from xgem.train.encode import STUDIES, finish
    from xgem.train.encoded import config_hash
    from xgem.train.shards import PLAN, Plan, preset_parts, shard_name, write_arrays, write_index
    from xgem.utils.files import file_sha256
    from xgem.utils.hashing import module_hash

    hashes = {}
    for name in ("image_vae", "text_encoder"):
        one = store.load_component(checkpoint, name)
        files = store.component_hash(checkpoint, name)
        hashes[name] = {"weights": module_hash(one), "config": config_hash(one), "files": files}
    splits = {"val": -(-count // 100), "train": count - -(-count // 100)}
    parts = {"frontal": "image_vae"}, {"report": "text_encoder"}, hashes, splits, STUDIES
    plan = Plan(file_sha256(manifest), preset_parts(preset(1)), *parts)
    write_index(folder / PLAN, plan, {})
    noted = {}
    for split, number in plan.shards:
        name, arrays = shard_name(split, number), made_up(len(plan.studies(split, number)), number)
        noted[name] = write_arrays(folder / f"{name}.safetensors", arrays, plan.key) | {"pixels": ""}
    finish(folder, plan, noted)


def made_up(count: int, seed: int) -> dict[str, Any]:
    """A shard's arrays."""
    from xgem.utils.hashing import crc

    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((count, 4, 4, 4), np.float32).astype(np.float16)
    texts = rng.integers(1, 4, count).astype(np.uint32)
    lengths = rng.integers(1, 25, texts.sum())
    ends = np.cumsum([0, *lengths])
    pooled = rng.standard_normal((len(lengths), 32), np.float32).astype(np.float16)
    tokens = rng.standard_normal((ends[-1], 32), np.float32).astype(np.float16)
    rows = [(pooled[i], tokens[ends[i] : ends[i + 1]]) for i in range(len(lengths))]
    return {
        "targets.frontal.values": latents,
        "targets.frontal.sum": latents.sum(axis=0, dtype=np.float64),
        "targets.frontal.crc": np.array([crc(one) for one in latents], np.uint32),
        "targets.frontal.counts": np.ones(count, np.uint32),
        "prompts.report.pooled": pooled,
        "prompts.report.tokens": tokens,
        "prompts.report.ends": ends,
        "prompts.report.crc": np.array([crc(*row) for row in rows], np.uint32),
        "prompts.report.counts": texts,
        "known": rng.integers(0, 16, count).astype(np.uint8),
        "classes": rng.integers(0, 1 << 14, count).astype(np.uint16),
    }


def train(folder: Path, steps: int) -> dict[str, float]:
    """Train the generator from the shards in ``folder``."""
    from xgem.train.stages import run_encoded

    places = folder / "manifest.jsonl", folder / "encoded", folder / "root"
    return measured(steps, lambda options: run_encoded(["frontal"], preset(steps), *places, options))


def measured(steps: int, run: Callable[[Any], object]) -> dict[str, float]:
    """What ``run``, which trains one stage with the options that it is given, takes of this process."""
    import torch

    from xgem.train import stages
    from xgem.train.loop import LoopOptions

    torch.set_num_threads(1)
    begun: list[float] = []
    cpu: list[float] = []
    loop = stages.train

    def timed(*arguments: Any) -> Any:
        begun.append(time.time())
        cpu.append(time.process_time())
        return loop(*arguments)

    stages.train = timed
    run(LoopOptions(progress=False, tensorboard=False, log_every=steps))
    taken = time.process_time() - cpu[0]
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    memory = {name: round(int(lines[name].split()[0]) / 1024) for name in ("VmHWM", "RssAnon", "RssFile")}
    return {
        "startup_s": round(begun[0] - STARTED, 1),
        "startup_cpu_s": round(cpu[0], 1),
        "samples_per_cpu_s": round(steps * BATCH / taken),
        **memory,
    }


def check(folder: Path) -> dict[str, float]:
    """Time and peak memory of `xgem data check`."""
    call = [sys.executable, "-m", "xgem", "data", "check", str(folder / "manifest.jsonl"), "--no-files", "--json"]
    start = time.perf_counter()
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    taken = {"check_s": time.perf_counter() - start, "check_cpu_s": used.ru_utime + used.ru_stime}
    return {name: round(value, 1) for name, value in taken.items()} | {"check_peak_mb": used.ru_maxrss // 1024}


def measure(folder: Path, count: int, steps: int, checked: bool) -> dict[str, Any]:
    from xgem.convert.random_init import random_checkpoint

    (folder / "encoded").mkdir(parents=True)
    try:
        write_manifest(folder / "manifest.jsonl", count)
        random_checkpoint(folder / "root", preset(steps), seed=0)
        start = time.perf_counter()
        write_shards(folder / "encoded", folder / "manifest.jsonl", folder / "root", count)
        wrote = round(time.perf_counter() - start)
        size = sum(path.stat().st_size for path in (folder / "encoded").iterdir())
        found: dict[str, Any] = {"studies": count, "shards_mb": size // 2**20, "write_s": wrote}
        call = [sys.executable, __file__, str(folder), "--steps", str(steps), "--only-train"]
        said = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
        found |= json.loads(said.splitlines()[-1])
        return found | (check(folder) if checked else {})
    finally:
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the files")
    parser.add_argument("--studies", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--no-check", action="store_true", help="leave `xgem data check` out")
    parser.add_argument("--only-train", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.only_train:
        print(json.dumps(train(given.folder, given.steps)))
        return
    for count in given.studies:
        found = measure(given.folder / f"{count}-{os.getpid()}", count, given.steps, not given.no_check)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
