"""Speed of xgem's sampler relative to a plain loop over the same diffusers modules.

    python benchmarks/generate.py [--preset openi-256] [--runs 7] [--steps 25] [--batch 1] [--threads 2] [--compile]

Both sides share weights, contexts, noise, scheduler and guidance. The plain loop calls the UNet twice per step
and projects the context each time; xgem's sampler makes one batched call and caches what is constant over the steps.
``--compile`` has ONNX Runtime run it. ``--our-steps`` gives xgem's sampler another number of steps than the plain loop;
outputs are then not compared. Runs alternate and ratios are taken per pair of runs, so that a drift in machine speed
does not affect the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from xgem.checkpoints.store import init_checkpoint, load_component, save_component
from xgem.configs import load_preset
from xgem.configs.components import ImageGeneratorConfig
from xgem.convert.random_init import random_component
from xgem.generators.image_unet import ImageUNet
from xgem.generators.latent_diffusion import ImageLatentDiffusion
from xgem.generators.onnx_denoiser import OnnxDenoiser
from xgem.generators.sampling import make_scheduler, sample
from xgem.types import Context, Encoded


@torch.no_grad()
def plain_loop(
    model: ImageLatentDiffusion, context: Context, noise: Tensor, steps: int, guidance_scale: float, sampler: str
) -> Tensor:
    """A hand-written diffusers loop: two UNet calls per step, nothing cached."""
    assert isinstance(model.net, ImageUNet)
    unet = model.net.unet
    scheduler = make_scheduler(sampler, model.config.diffusion)
    scheduler.set_timesteps(steps)
    null = model.null(len(noise))
    z = model.start(noise, scheduler.timesteps[0])

    def call(z: Tensor, t: Tensor, side: Context) -> Tensor:
        return unet(
            z,
            t,
            encoder_hidden_states=side.tokens,
            encoder_attention_mask=side.mask,
            class_labels=side.pooled,
            return_dict=False,
        )[0]

    for t in scheduler.timesteps:
        conditional, unconditional = call(z, t, context), call(z, t, null)
        z = scheduler.step(unconditional + guidance_scale * (conditional - unconditional), t, z, return_dict=False)[0]
    return z


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="openi-256")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--our-steps", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--sampler", default="dpmsolver++")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    preset = load_preset(options.preset)
    config = preset.components["lateral"]
    assert isinstance(config, ImageGeneratorConfig)
    theirs = random_component(config)
    with TemporaryDirectory() as folder:  # ours as a checkpoint gives it
        init_checkpoint(folder, preset)
        save_component(folder, "lateral", theirs)
        ours = load_component(folder, "lateral")
    assert isinstance(ours, ImageLatentDiffusion)
    assert isinstance(theirs, ImageLatentDiffusion)
    assert isinstance(theirs.net, ImageUNet)
    theirs.net.unet.set_attn_processor(AttnProcessor2_0())
    b = options.batch
    encoded = {
        "frontal": Encoded(
            torch.randn(b, config.pooled_dim), torch.randn(b, 64, config.context_dim), torch.ones(b, 64).bool()
        )
    }
    with torch.no_grad():
        context = ours.fuse(encoded)
    noise = torch.randn(b, *ours.latent_shape)
    settings = {"guidance_scale": options.guidance_scale, "sampler": options.sampler}

    if options.compile:
        ours.net = OnnxDenoiser(ours.net)
    our_steps = options.our_steps or options.steps

    def run_ours() -> Tensor:
        return sample(ours, context, noise, num_inference_steps=our_steps, **settings)

    def run_theirs() -> Tensor:
        return plain_loop(theirs, context, noise, options.steps, **settings)

    run_ours()
    run_theirs()
    pairs = [(timed(run_ours), timed(run_theirs)) for _ in range(options.runs)]
    ratios = sorted(theirs[0] / ours[0] for ours, theirs in pairs)
    difference = None
    if our_steps == options.steps:
        difference = max(float((ours[1] - theirs[1]).abs().max() / theirs[1].abs().max()) for ours, theirs in pairs)
        torch.testing.assert_close(pairs[0][0][1], pairs[0][1][1], rtol=1e-3, atol=1e-3)
    medians = [statistics.median(pair[side][0] for pair in pairs) for side in (0, 1)]
    print(
        json.dumps(
            {
                **vars(options),
                "torch": torch.__version__,
                "speedup_median": round(medians[1] / medians[0], 3),
                "speedup_min": round(ratios[0], 3),
                "speedup_max": round(ratios[-1], 3),
                "largest_relative_difference": difference,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
