"""Cost of joint sampling of two outputs, relative to two independent runs.

    python benchmarks/joint.py [--preset openi-256] [--outputs frontal,lateral] [--runs 7] [--steps 25] [--threads 2]

Random weights of the preset's sizes; both sides share contexts, noise, schedulers and guidance. Runs alternate and
ratios are taken per pair of runs, so that a drift in machine speed does not affect the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch

from xgem.alignment.model import Alignment
from xgem.checkpoints.store import load_component
from xgem.configs import load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.generators.sampling import Output, sample_together
from xgem.types import Encoded


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="openi-256")
    parser.add_argument("--outputs", default="frontal,lateral")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    preset, b = load_preset(options.preset), options.batch
    outputs: dict[str, Output] = {}
    with TemporaryDirectory() as folder:
        random_checkpoint(folder, preset, seed=options.seed)
        assert preset.alignment is not None
        alignment = load_component(folder, preset.alignment)
        assert isinstance(alignment, Alignment)
        names = options.outputs.split(",")
        for name in names:
            model: Any = load_component(folder, preset.generator(name))
            prompt = next(one for one in model.config.prompts if one not in names)
            encoded = Encoded(
                torch.randn(b, model.config.pooled_dim),
                torch.randn(b, 32, model.config.context_dim),
                torch.ones(b, 32).bool(),
            )
            with torch.no_grad():
                context = model.fuse({prompt: encoded})
            outputs[name] = Output(model, context, torch.randn(b, *model.latent_shape), options.guidance_scale)

    def together() -> Any:
        return sample_together(outputs, num_inference_steps=options.steps, environment=alignment)

    def apart() -> Any:
        return [sample_together({name: one}, num_inference_steps=options.steps) for name, one in outputs.items()]

    together()
    apart()
    pairs = [(timed(together), timed(apart)) for _ in range(options.runs)]
    ratios = sorted(joint / independent for joint, independent in pairs)
    result = {
        **vars(options),
        "torch": torch.__version__,
        "cost_median": round(statistics.median(ratios), 3),
        "cost_min": round(ratios[0], 3),
        "cost_max": round(ratios[-1], 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
