"""Speed of training, as ratios within one run: what is saved, what the loop costs, and what more processes bring.

    python benchmarks/train.py [--preset openi-256] [--stage frontal] [--batch 8] [--steps 2] [--runs 5] [--no-device]

On made-up images and random weights, of one stage of a preset:

- encoded data against encoding every batch anew with the frozen codec and prompt encoders, as XGeM's code does;
- the loop against a plain PyTorch loop on the same module and batches, averaged weights included;
- 1, 2 and 4 processes of a thread each, with the same batch divided among them;
- how many times as fast batches come as training asks for them.

Both sides of a ratio alternate, and ratios are taken per pair of runs, so that a drift in machine speed does not affect
the result. With a CUDA device also, in bfloat16 and compiled: samples per second, fraction of the card's peak and most
memory of training and sampling at full size, beside the memory that ``xgem plan`` states.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

from xgem.configs.preset import Preset, load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.generators.latent_diffusion import LatentDiffusion
from xgem.generators.sampling import sample
from xgem.modalities import get_modality
from xgem.train.averaging import average_
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.diffusion import DiffusionStage
from xgem.train.footprint import footprint
from xgem.train.loop import LoopOptions, _Run, learning_rate
from xgem.train.optimizer import optimizer_of
from xgem.train.planned import planned
from xgem.train.processes import together
from xgem.train.share import Share
from xgem.train.stages import make_stage

REPORTS: Final = ("No acute disease. Clear lungs.", "Large left pleural effusion.", "Cardiomegaly. No pneumothorax.")
PROCESSES: Final = (1, 2, 4)
ROWS: Final = (
    ("chexgen-xl2-256", "frontal", 32, "training"),
    ("chexgen-xl2-256", "frontal", 16, "sampling"),
    ("chexgen-xl2-512", "frontal", 16, "training"),
    ("chexgen-xl2-512", "frontal", 8, "sampling"),
    ("paper", "frontal", 32, "training"),
    ("paper", "joint", 8, "training"),
)
"""What is measured on a GPU: preset, stage, samples at once, and what is done."""


# -------------------------------------------------------------------------------------------------- a stage to train


def write_studies(folder: Path, preset: Preset, count: int, seed: int) -> Manifest:
    """Studies with smooth noise for images, of both views and with a report, in splits train and val."""
    rng, side, rows = np.random.default_rng(seed), preset.transform.size, list[Row]()
    for split, size in (("train", count), ("val", 4)):
        for number in range(size):
            study = f"{split}{number}"
            common: dict[str, Any] = {"study": study, "subject": study, "split": split, "source": "synthetic"}
            for view in ("frontal", "lateral"):
                pixels = np.kron(rng.normal(128, 40, (8, 8)), np.ones((side // 8, side // 8))) + rng.normal(0, 6)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{study}-{view}.png")
                report = REPORTS[number % len(REPORTS)]
                rows.append(Row(view=view, file=f"{study}-{view}.png", impression=report, **common))
    manifest = Manifest(tuple(rows), folder)
    manifest.write(folder / "studies.jsonl")
    return manifest


def preset_of(options: argparse.Namespace) -> Preset:
    """The preset, with the batch of the options."""
    preset = load_preset(options.preset)
    config = preset.train[options.stage].model_copy(update={"batch_size": options.batch})
    return preset.model_copy(update={"train": {**preset.train, options.stage: config}})


def stage_of(options: argparse.Namespace, root: Path) -> DiffusionStage:
    """The stage, on the data and the components in ``root``; encodes what is not encoded yet."""
    preset, manifest = preset_of(options), Manifest.read(root / "studies.jsonl")
    train, val = (Corpus.load(manifest, split, preset, root / "cache", progress=False) for split in ("train", "val"))
    stage = make_stage(options.stage, StageContext(preset, train, val, root, options.seed))
    assert isinstance(stage, DiffusionStage)
    return stage


def run_of(stage: DiffusionStage, root: Path) -> _Run:
    """A run of the loop that has taken its first step."""
    run = _Run(stage, root, LoopOptions(progress=False, tensorboard=False))
    run.stage.module.train()
    run.step()
    return run


# ------------------------------------------------------------------------------------------------------------ ratios


def seconds(call: Callable[[], object], times: int) -> tuple[float, float]:
    """Seconds that passed, and those that this process computed: other work on the machine changes these less."""
    start, computing = time.perf_counter(), time.process_time()
    for _ in range(times):
        call()
    return time.perf_counter() - start, time.process_time() - computing


def compared(ours: Callable[[], object], theirs: Callable[[], object], steps: int, runs: int) -> dict[str, float]:
    """Their time over ours: median, least and greatest of pairs of runs that alternate, each after a first one."""
    ours()
    theirs()
    pairs = []
    for number in range(runs):
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        times = {call: seconds(call, steps) for call in order}
        pairs.append((times[ours], times[theirs]))
    ratios, computed = (sorted(theirs[kind] / ours[kind] for ours, theirs in pairs) for kind in (0, 1))
    return {
        "seconds_a_step": round(statistics.median(ours[0] for ours, _ in pairs) / steps, 4),
        "other_seconds_a_step": round(statistics.median(theirs[0] for _, theirs in pairs) / steps, 4),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(ratios[0], 3),
        "ratio_max": round(ratios[-1], 3),
        "computing_ratio_median": round(statistics.median(computed), 3),
    }


class PlainLoop:
    """What one writes without a framework: a step of AdamW with clipping and averaged weights."""

    def __init__(self, stage: DiffusionStage) -> None:
        self.stage, self.module, self.step = stage, stage.module, 0
        config = stage.config
        self.trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = optimizer_of(self.module, config)
        self.averages = [p.detach().clone() for p in self.module.parameters()]

    def __call__(self) -> Tensor:
        batch = self.stage.batch(Share.whole(self.stage.seed, self.stage.name, self.step, self.stage.config.batch_size))
        loss, _ = self.stage.loss(self.module, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.stage.config.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.stage.config, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        current = [p.detach() for p in self.module.parameters()]
        average_(self.averages, current, self.stage.config.ema_decay, self.step)
        self.step += 1
        return loss.detach()


def encoder_of(stage: DiffusionStage, root: Path, options: argparse.Namespace) -> Callable[[], None]:
    """What encodes a batch's targets and prompts anew, without a gradient."""
    preset, manifest = stage.preset, Manifest.read(root / "studies.jsonl")
    corpus = Corpus.load(manifest, "train", preset, root / "cache", progress=False)
    context = StageContext(preset, corpus, corpus, root, options.seed)
    names = {name: preset.encoder(name) for name in stage.prompts}
    parts = context.parts({preset.codec(stage.target), *names.values()}, stage.name)
    images = corpus.images.floats(list(range(options.batch)))  # (b, 1, s, s)
    texts = [REPORTS[number % len(REPORTS)] for number in range(options.batch)]

    @torch.no_grad()
    def encode() -> None:
        for name, part in [(stage.target, preset.codec(stage.target)), *names.items()]:
            parts[part].encode(images if get_modality(name).is_image else texts)

    return encode


def of_one_process(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Encoded data, the loop's overhead, and the supply of batches."""
    run, plain = run_of(stage_of(options, root), root), PlainLoop(stage_of(options, root))
    plain.module.train()
    encode = encoder_of(plain.stage, root, options)

    def encoding() -> None:
        encode()
        run.step()

    found: dict[str, Any] = {
        "encoding at every step, over encoded data": compared(run.step, encoding, options.steps, options.runs),
        "the loop, over a plain one": compared(plain, run.step, options.steps, options.runs),
    }
    steps = iter(range(10**9))

    def batch() -> None:
        plain.stage.batch(Share.whole(options.seed, options.stage, next(steps), options.batch))

    found["batches, times as fast as steps"] = compared(batch, plain, options.steps, options.runs)
    return found


# ---------------------------------------------------------------------------------------------------------- processes


def work(options: argparse.Namespace, root: Path) -> None:
    """What each of several processes does; the first prints the seconds of a step."""
    torch.set_num_threads(1)
    with together():
        run = run_of(stage_of(options, root), root)
        found = [seconds(run.step, options.steps)[0] / options.steps for _ in range(options.runs)]
        if run.main:
            print(json.dumps(statistics.median(found)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def of_processes(words: Sequence[str], options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Throughput of several processes over that of one."""
    found: dict[int, float] = {}
    for count in PROCESSES:
        if options.batch % count:
            continue
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank in range(count):
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}  # fmt: skip
            environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
            command = [sys.executable, __file__, *words, "--worker", str(root)]
            started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in started]
        if any(process.returncode for process in started):
            raise SystemExit(f"{count} processes: one of them failed")
        found[count] = float(outputs[0].splitlines()[-1])
    return {
        "cores": os.cpu_count(),
        "seconds_a_step": {count: round(value, 4) for count, value in found.items()},
        "throughput_ratio": {count: round(found[1] / value, 3) for count, value in found.items()},
    }


# ---------------------------------------------------------------------------------------------------------------- GPU


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def training_step(name: str, preset: Preset, size: int, device: torch.device, compiled: bool) -> Callable[[], object]:
    """A step of a stage with random weights: float32 weights, bfloat16 autocast, AdamW, averaged weights."""
    one = planned(name, preset, str(device))
    stage, module = one.stage, one.stage.module.train()
    _, make = one.batches[-1]
    with torch.device(device):
        batch = make(size)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    averages = [p.detach().clone() for p in trained]
    call: Any = torch.compile(module) if compiled else module

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = stage.loss(call, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average_(averages, [p.detach() for p in trained], 0.999, 100)

    return step


def sampling_step(name: str, preset: Preset, size: int, device: torch.device, compiled: bool) -> Callable[[], object]:
    """One step of DDIM with guidance, in bfloat16 with random weights."""
    model = planned(name, preset, str(device)).stage.module.get_submodule("model")
    assert isinstance(model, LatentDiffusion)
    model.eval().bfloat16().requires_grad_(False)
    with torch.no_grad():
        context = model.null(size)
    noise = torch.randn(size, *model.latent_shape, device=device, dtype=torch.bfloat16)
    if compiled:
        model.net.compile()
    return lambda: sample(model, context, noise, num_inference_steps=1, guidance_scale=4.0, sampler="ddim")


def _planned_step(name: str, preset: Preset, size: int) -> tuple[int, int]:
    """Bytes at most and FLOPs of a step, as ``xgem plan`` states them."""
    config = preset.train[name].model_copy(update={"batch_size": size})
    one = planned(name, preset.model_copy(update={"train": {name: config}}))
    _, make = one.batches[-1]
    found = footprint(one.using(make), one.frozen, processes=1, most=None, precision="bf16")
    return found.peak, found.flops


def _sampling_flops(step: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def on_device(
    options: argparse.Namespace, device: torch.device, rows: Sequence[tuple[str, str, int, str]], compiled: bool = True
) -> list[dict[str, Any]]:
    """A table of ``rows``; those that the time of the options does not suffice for say so."""
    ends, table = time.monotonic() + 60 * options.minutes, list[dict[str, Any]]()
    for name, stage, size, what in rows:
        row: dict[str, Any] = {"preset": name, "stage": stage, "what": what, "samples": size}
        table.append(row)
        if time.monotonic() > ends:
            row["left_out"] = "the time is up: see --minutes"
            continue
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        preset, training = load_preset(name), what == "training"
        step = (training_step if training else sampling_step)(stage, preset, size, device, compiled)
        flops = 0
        if training:
            peak, flops = _planned_step(stage, preset, size)
            row["planned_gib"] = round(peak / 2**30, 2)
        else:
            flops = _sampling_flops(sampling_step(stage, preset, size, device, False))
        for _ in range(3):
            step()
        start = _now(device)
        for _ in range(options.device_steps):
            step()
        taken = (_now(device) - start) / options.device_steps
        row["samples_per_second" if training else "sampling_steps_per_second"] = round(size / taken, 2)
        row["share_of_peak"] = round(flops / taken / (options.peak_tflops * 1e12), 3)
        if device.type == "cuda":
            row["memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        del step
    return table


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="openi-256", help="preset whose components get random weights")
    parser.add_argument("--stage", default="frontal", help="stage of a generator")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--studies", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="steps of a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", action=argparse.BooleanOptionalAction, default=True, help="measure the GPU, if any")
    parser.add_argument("--minutes", type=float, default=8.0, help="time after which no further row of a GPU starts")
    parser.add_argument("--device-steps", type=int, default=10)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bfloat16; H100 and H200: 989")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else list(words)
    options = parser_of().parse_args(words)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.worker is not None:
        work(options, options.worker)
        return
    result: dict[str, Any] = {**vars(options), "torch": torch.__version__}
    del result["worker"]
    AcceleratorState._reset_state(reset_partial_state=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        preset = preset_of(options)
        write_studies(root, preset, options.studies, options.seed)
        random_checkpoint(root, preset, seed=options.seed)
        with together("cpu"):
            result |= of_one_process(options, root)
        result["processes"] = of_processes(words, options, root)
    if options.device and torch.cuda.is_available():
        result["on a GPU"] = on_device(options, torch.device("cuda", 0), ROWS)
    else:
        result["on a GPU"] = "left out: no CUDA device" if options.device else "left out: --no-device"
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
