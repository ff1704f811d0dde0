"""Trains all stages of a preset on one GPU, side by side where none builds on another; call it again to go on.

    xgem data pack openi.parquet --out packed
    python benchmarks/train_gpu.py --data packed/manifest.parquet --out runs/gpu --steps 100     # speeds, and a scale
    python benchmarks/train_gpu.py --data packed/manifest.parquet --out runs/gpu-1 --scale 0.8 --minutes 9

Each call works for `--minutes` at most and ends with status 0: stages that are not finished go on at the next call,
with the same weights as if they had not stopped. What is left is printed, with the time that it takes at the speed
measured. A small network keeps a large card waiting for the next step most of the time, so that several train at once.

The settings are kept in `OUT/preset.yaml`, which extends `--preset`: `--scale` multiplies the steps of all stages,
`--steps` sets them. Each stage's output is in `OUT/training/STAGE/output.log`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from xgem.configs import load_preset
from xgem.configs.preset import Preset
from xgem.configs.yaml_text import read_yaml

NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "image-vae": (),
    "clip": (),
    "report-vae": (),
    "image-decoder": ("image-vae",),
    # Not beside image-decoder, which changes the codec that they are trained with
    "frontal": ("image-vae", "image-decoder", "clip"),
    "lateral": ("image-vae", "image-decoder", "clip"),
    "report": ("report-vae", "clip"),
    "joint": ("frontal", "lateral", "report", "image-decoder"),
}
"""The stages that each one builds on; those that begin chains of others come first."""
SETTINGS: Final = "preset.yaml"
BY_STEPS: Final = ("warmup_steps",)
"""Settings that are numbers of steps and change with ``steps``."""
LEAST: Final = 0.25
"""Minutes below which no further stage is started: reading the data takes about as long."""


def scaled(preset: Preset, *, steps: int | None, scale: float, batch: int | None) -> dict[str, dict[str, Any]]:
    """The training settings with other steps, and what counts steps changed with them."""
    train: dict[str, dict[str, Any]] = {}
    for name, config in preset.train.items():
        values = config.model_dump(mode="json")
        values["steps"] = steps or max(1, round(config.steps * scale))
        factor = values["steps"] / config.steps
        values |= {field: round(values[field] * factor) for field in BY_STEPS}
        values["loss"] |= {key: round(config.loss[key] * factor) for key in ("alone", "after") if key in config.loss}
        values["batch_size"] = batch or config.batch_size
        train[name] = values
    return train


def settle(preset: str, out: Path, train: Mapping[str, Any]) -> Path:
    """The file of the run's settings; SystemExit where the run has others."""
    file = out / SETTINGS
    extends = str(Path(preset).resolve()) if preset.endswith((".yaml", ".yml")) else preset
    values = {"extends": extends, "train": dict(train)}
    if file.exists():
        if read_yaml(file) != values:
            raise SystemExit(f"{out}: a run with other settings ({SETTINGS}); use those again or another folder")
        return file
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")  # JSON is YAML
    return file


def finished(out: Path, stage: str) -> bool:
    return (out / "training" / stage / "finished").is_file()


def ready(out: Path, stages: Sequence[str], started: Sequence[str]) -> list[str]:
    """The stages that can start: neither finished nor started in this call, with all that they build on finished."""
    return [
        stage
        for stage in stages
        if stage not in started
        and not finished(out, stage)
        and all(finished(out, need) for need in NEEDS[stage] if need in stages)
    ]


def start(stage: str, command: Sequence[str], out: Path) -> subprocess.Popen[bytes]:
    """Start ``xgem train``; its output goes to the stage's folder."""
    file = out / "training" / stage / "output.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)


def chain(arguments: argparse.Namespace, stages: Sequence[str], preset: Path) -> list[str]:
    """Train until all is done or the time is up; the names of stages that failed."""
    ends = time.monotonic() + 60 * arguments.minutes
    running: dict[str, subprocess.Popen[bytes]] = {}
    started: list[str] = []
    failed: list[str] = []
    while True:
        for stage, process in list(running.items()):
            if process.poll() is not None:
                del running[stage]
                failed += [stage] if process.returncode else []
                print(f"{stage}: {state_of(arguments.out, stage, process.returncode)}", flush=True)
        left = (ends - time.monotonic()) / 60
        waiting = [] if failed or left < LEAST else ready(arguments.out, stages, started)
        for stage in waiting[: max(0, arguments.jobs - len(running))]:
            command = [sys.executable, "-m", "xgem", "--no-progress", "train", stage, "--preset", str(preset)]
            command += ["--data", str(arguments.data), "--out", str(arguments.out), "--resume", "--no-progress"]
            command += ["--max-minutes", f"{left:.3f}", "--precision", arguments.precision]
            command += ["--threads", str(max(1, (os.cpu_count() or 1) // arguments.jobs))]
            command += ["--device", arguments.device] if arguments.device else []
            print(f"{stage}: starts, {left:.1f} minutes left", flush=True)
            running[stage] = start(stage, command, arguments.out)
            started.append(stage)
        if not running:
            return failed
        time.sleep(arguments.poll)


def state_of(out: Path, stage: str, status: int) -> str:
    if status:
        log = (out / "training" / stage / "output.log").read_text(encoding="utf-8", errors="replace")
        return f"failed with status {status}:\n" + "\n".join(log.splitlines()[-5:])
    return "finished" if finished(out, stage) else f"stopped at step {position(out, stage)[0]}, its time is up"


def position(out: Path, stage: str) -> tuple[int, float]:
    """The step of the last checkpoint, and steps a second (the median of what was logged; NaN before the first)."""
    work = out / "training" / stage
    last = max((int(path.name.removeprefix("step-")) for path in work.glob("checkpoints/step-*")), default=0)
    log = work / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    rates = [line["steps_per_s"] for line in lines if "steps_per_s" in line]
    return last, statistics.median(rates) if rates else math.nan


def report(out: Path, stages: Sequence[str], preset: Preset, own: Mapping[str, Any], total: float) -> str:
    """A line a stage, and the scale at which the steps of ``preset`` take ``total`` minutes at the measured speeds."""
    lines = [f"{'stage':<14}{'step':>7}{'of':>7}{'steps/s':>9}{'minutes left':>14}"]
    minutes: dict[str, float] = {}
    for stage in stages:
        step, rate = position(out, stage)
        steps = own[stage]["steps"]
        step = steps if finished(out, stage) else step
        lines.append(f"{stage:<14}{step:>7}{steps:>7}{rate:>9.2f}{(steps - step) / rate / 60:>14.1f}")
        before = max((minutes[need] for need in NEEDS[stage] if need in minutes), default=0.0)
        minutes[stage] = before + preset.train[stage].steps / rate / 60
    longest = max(minutes.values())
    if math.isfinite(sum(minutes.values())):
        scale = total / longest
        (out / "scale").write_text(f"{scale:.3f}\n")
        lines.append(
            f"The steps of {preset.name} take {longest:.1f} minutes at these speeds, without reading data and "
            f"validation; --scale {scale:.2f} makes that {total:g}."
        )
    return "\n".join(lines)


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="openi-256-gpu", help="preset or YAML file")
    parser.add_argument("--data", type=Path, required=True, help="manifest")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=9.0, help="time of this call")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the steps of all stages")
    parser.add_argument("--steps", type=int, help="steps of every stage")
    parser.add_argument("--batch", type=int, help="batch size of every stage")
    parser.add_argument("--jobs", type=int, default=4, help="stages that train at once")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", help="device; default: a GPU, or cpu")
    parser.add_argument("--total", type=float, default=22.0, help="minutes for which a scale is printed")
    parser.add_argument("--poll", type=float, default=0.2, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    arguments = arguments_of(words)
    preset = load_preset(arguments.preset)
    train = scaled(preset, steps=arguments.steps, scale=arguments.scale, batch=arguments.batch)
    stages = [stage for stage in NEEDS if stage in train]
    failed = chain(arguments, stages, settle(arguments.preset, arguments.out, train))
    print(report(arguments.out, stages, preset, train, arguments.total))
    if not failed and all(finished(arguments.out, stage) for stage in stages):
        print(f"all stages are finished: {arguments.out}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
