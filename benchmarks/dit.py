"""Speed of xgem's sampling from a diffusion transformer relative to diffusers' PixArt pipeline with the same weights.

    python benchmarks/dit.py [--preset chexgen-small] [--batch 2] [--steps 10] [--runs 5] [--threads 2]

Both sides share weights, captions, noise, scheduler and guidance, and must give equal latents. The pipeline projects
the captions in every step; xgem's sampler does so once per request, caches their keys and values in every block, embeds
all timesteps at once, and runs linear layers with oneDNN. Three comparisons: neither compiled, only ours compiled
(``xgem.load(..., compile=True)``), and both compiled. Compilation is not timed. Runs alternate and ratios are taken per
pair of runs, so that a drift in machine speed does not affect the result.

On a CUDA device, also the throughput of `--device-preset` in bfloat16 with random weights: latents per second by batch
size, fraction of the card's peak (`--peak-tflops`), memory, and training steps of `--train-preset`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xgem.checkpoints.store import init_checkpoint, load_component, save_component
from xgem.configs import load_preset
from xgem.configs.components import DiTGeneratorConfig
from xgem.convert.random_init import random_component
from xgem.generators.latent_diffusion import DiTLatentDiffusion
from xgem.generators.sampling import make_scheduler, sample
from xgem.types import Encoded


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def caption(config: DiTGeneratorConfig, batch: int) -> Encoded:
    """Captions of random tokens and lengths; the last has all tokens."""
    n = config.caption_tokens
    lengths = torch.linspace(n // 3, n, batch).long()
    mask = torch.arange(n)[None] < lengths[:, None]
    return Encoded(torch.zeros(batch, config.pooled_dim), torch.randn(batch, n, config.context_dim), mask)


def as_checkpoint_gives_it(model: Any) -> DiTLatentDiffusion:
    with TemporaryDirectory() as folder:
        init_checkpoint(folder, load_preset("chexgen-small"))
        save_component(folder, "frontal", model)
        loaded = load_component(folder, "frontal")
    assert isinstance(loaded, DiTLatentDiffusion)
    return loaded


def pipeline_of(model: DiTLatentDiffusion, sampler: str) -> Any:
    """diffusers' own pipeline around its own transformer with the weights of ``model``."""
    config = model.config
    build: Any = PixArtTransformer2DModel
    transformer = build(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.latent_shape[0],
        out_channels=config.latent_shape[0] * (2 if config.learned_sigma else 1),
        num_layers=config.depth,
        cross_attention_dim=config.width,
        sample_size=config.latent_shape[1],
        patch_size=config.patch_size,
        caption_channels=config.context_dim,
        use_additional_conditions=False,
        interpolation_scale=config.position_scale,
    ).eval()
    fusion: Any = model.fusion
    projection = {f"caption_projection.{key}": value for key, value in fusion.project.state_dict().items()}
    transformer.load_state_dict(model.net.pixart.state_dict() | projection)
    parts: dict[str, Any] = {"tokenizer": None, "text_encoder": None, "vae": None}
    pipeline = PixArtAlphaPipeline(
        transformer=transformer, scheduler=make_scheduler(sampler, config.diffusion), **parts
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def transformer_of(preset: str) -> DiTGeneratorConfig:
    loaded = load_preset(preset)
    config = loaded.components[loaded.generator("frontal")]
    assert isinstance(config, DiTGeneratorConfig)
    return config


def against_diffusers(options: argparse.Namespace) -> dict[str, Any]:
    """Check that latents are equal, and compare times, on the CPU."""
    config = transformer_of(options.preset)
    ours = as_checkpoint_gives_it(random_component(config))
    pipeline = pipeline_of(ours, options.sampler)
    b, item = options.batch, caption(config, options.batch)
    noise = torch.randn(b, *ours.latent_shape)
    fusion: Any = ours.fusion
    null = fusion.null_caption.detach().expand(b, -1, -1)

    def run_ours() -> Tensor:
        with torch.no_grad():
            context = ours.fuse({"report": item})
        return sample(
            ours,
            context,
            noise,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
            sampler=options.sampler,
        )

    def run_theirs() -> Tensor:
        return pipeline(
            negative_prompt=None,
            prompt_embeds=item.tokens,
            prompt_attention_mask=item.mask,
            negative_prompt_embeds=null,
            negative_prompt_attention_mask=torch.ones_like(item.mask),
            latents=noise,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
            use_resolution_binning=False,
            output_type="latent",
            return_dict=False,
        )[0]

    found = {"both as they are": compared(run_ours, run_theirs, options.runs)}
    if options.compile:
        ours.net.compile(dynamic=False)
        found["ours compiled"] = compared(run_ours, run_theirs, options.runs)
        pipeline.transformer.compile(dynamic=False)
        found["both compiled"] = compared(run_ours, run_theirs, options.runs)
    return found


def compared(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], runs: int) -> dict[str, float]:
    """Ratios of their times to ours after a first run of each, which warms up and compiles. AssertionError: unequal."""
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
    pairs = [(timed(ours), timed(theirs)) for _ in range(runs)]
    ratios = sorted(their[0] / our[0] for our, their in pairs)
    difference = max(float((our[1] - their[1]).abs().max() / their[1].abs().max()) for our, their in pairs)
    return {
        "seconds_median": round(statistics.median(our[0] for our, _ in pairs), 3),
        "diffusers_seconds_median": round(statistics.median(their[0] for _, their in pairs), 3),
        "speedup_median": round(statistics.median(ratios), 3),
        "speedup_min": round(ratios[0], 3),
        "speedup_max": round(ratios[-1], 3),
        "largest_relative_difference": difference,
    }


def _synchronised(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def sampling_rate(
    config: DiTGeneratorConfig, batch: int, steps: int, device: torch.device, peak_flops: float, compiled: bool
) -> dict[str, Any]:
    """Latents per second with guidance in bfloat16, and the fraction of the peak FLOP/s."""
    model: Any = random_component(config).to(device, torch.bfloat16).requires_grad_(False)
    noise = torch.randn(batch, *model.latent_shape, device=device, dtype=torch.bfloat16)
    item = caption(config, batch)
    encoded = Encoded(item.pooled, item.tokens.bfloat16(), item.mask).to(device)
    with torch.no_grad():
        context = model.fuse({"report": encoded})
    settings: dict[str, Any] = {"guidance_scale": 4.0, "sampler": "ddim"}
    with FlopCounterMode(display=False) as counter:
        sample(model, context, noise, num_inference_steps=1, **settings)
    if compiled:
        model.net.pixart.compile()
    for _ in range(2):
        sample(model, context, noise, num_inference_steps=2, **settings)
    start = _synchronised(device)
    sample(model, context, noise, num_inference_steps=steps, **settings)
    seconds = _synchronised(device) - start
    return {
        "batch": batch,
        "latents_per_second": round(batch / seconds, 3),
        "share_of_peak": round(counter.get_total_flops() * steps / seconds / peak_flops, 3),
        "memory_gib": _memory(device),
    }


def training_rate(
    config: DiTGeneratorConfig, batch: int, steps: int, device: torch.device, peak_flops: float, compiled: bool
) -> dict[str, Any]:
    """Samples per second in training: float32 weights, bfloat16 autocast, AdamW.

    A step counts as three forward passes (the backward pass as two); recomputation by checkpointing is not counted.
    """
    model: Any = random_component(config).to(device).train().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    z0 = torch.randn(batch, *model.latent_shape, device=device)
    encoded = {"report": caption(config, batch).to(device)}

    def loss() -> Tensor:
        t = torch.randint(config.diffusion.num_train_timesteps, (batch,), device=device)
        z, target = model.noisy(z0, torch.randn_like(z0), t)
        with torch.autocast(device.type, torch.bfloat16):
            prediction = model(z, t, model.fuse(encoded))
        return torch.nn.functional.mse_loss(prediction.float(), target)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        loss()
    model.requires_grad_()
    if compiled:
        model.net.pixart.compile()
    for _ in range(3):
        step()
    start = _synchronised(device)
    for _ in range(steps):
        step()
    seconds = _synchronised(device) - start
    return {
        "batch": batch,
        "samples_per_second": round(batch * steps / seconds, 2),
        "share_of_peak": round(3 * counter.get_total_flops() * steps / seconds / peak_flops, 3),
        "memory_gib": _memory(device),
    }


def on_device(options: argparse.Namespace, device: torch.device, compiled: bool = True) -> dict[str, Any]:
    """Sampling and training rates of the presets' transformers on ``device``."""
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}
    peak = options.peak_tflops * 1e12
    for name, measure, steps, batches in (
        (options.device_preset, sampling_rate, options.device_steps, options.batches),
        (options.train_preset, training_rate, options.train_steps, options.train_batches),
    ):
        config = transformer_of(name)
        rows = []
        for batch in batches:
            torch.compiler.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            rows.append(measure(config, batch, steps, device, peak, compiled))
        found[f"{measure.__name__} of {name}"] = rows
    return found


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", default="chexgen-small", help="preset whose transformer is measured, with random weights"
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device-preset", default="chexgen-xl2-512")
    parser.add_argument("--device-steps", type=int, default=20)
    parser.add_argument("--batches", type=numbers, default="1,4,16,32")
    parser.add_argument("--train-preset", default="chexgen-xl2-256")
    parser.add_argument("--train-steps", type=int, default=10)
    parser.add_argument("--train-batches", type=numbers, default="32,64")
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="dense bfloat16; H100 and H200: 989, A100: 312"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    result = {**vars(options), "torch": torch.__version__, **against_diffusers(options)}
    if torch.cuda.is_available():
        result |= on_device(options, torch.device("cuda"))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
