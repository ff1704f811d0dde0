"""``xgem plan``: what training a preset takes, before GPUs are rented."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli import completion
from xgem.types import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xgem.train.plan import Hardware, StagePlan

_GIB = 2**30
_PARTS = (
    "weights", "frozen", "buffers", "gradients", "optimizer", "averages", "buckets", "gathered", "batch", "activations",
)  # fmt: skip


def plan(
    preset: Annotated[str, typer.Argument(help="Preset name or YAML file.", autocompletion=completion.presets)],
    gpus: Annotated[int, typer.Option("--gpus", help="Number of GPUs, of all nodes together.")] = 8,
    nodes: Annotated[int, typer.Option("--nodes", help="Number of nodes; memory depends on it with hybrid.")] = 1,
    memory: Annotated[float, typer.Option("--memory", metavar="GIB", help="Memory of a GPU in GiB.")] = 80.0,
    sharding: Annotated[
        str,
        typer.Option(
            "--sharding",
            help="no: all weights on every GPU (DDP); full: divided (FSDP2's fully_shard); hybrid: divided over a "
            "node's GPUs.",
        ),
    ] = "no",
    precision: Annotated[
        str, typer.Option("--precision", help="Mixed precision: no (float32), bf16 or fp16.")
    ] = "bf16",
    checkpoint_activations: Annotated[
        bool,
        typer.Option("--checkpoint-activations", help="Compute activations of denoisers again in the backward pass."),
    ] = False,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            "--micro-batch-size", min=1, help="Most samples of a GPU at once.", show_default="its share of a batch"
        ),
    ] = None,
    peak: Annotated[
        float, typer.Option("--peak", metavar="TFLOPS", help="Peak of a GPU in TFLOP/s; an H100's in bf16 is 989.")
    ] = 989.0,
    share: Annotated[float, typer.Option("--share", help="Share of the peak that training reaches.")] = 0.4,
    text_tokens: Annotated[
        float, typer.Option("--text-tokens", help="Mean number of tokens of a text, for the size of shards on disk.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Memory, FLOPs, time and disk of every training stage of a preset. Nothing is downloaded and no weights are
    allocated.

    Memory and FLOPs are measured on a step without data. Time is FLOPs over --share of the --peak: state what you
    have measured. Reading data, validation and communication between GPUs are not in it.

    The exit status is 2 where a stage fits with no micro-batch size.
    """
    from xgem.configs.preset import load_preset
    from xgem.train.plan import Hardware, Planner

    if precision not in {"no", "bf16", "fp16"}:
        raise InputError(f"--precision {precision}: expected no, bf16 or fp16")
    if sharding not in ("no", "full", "hybrid"):
        raise InputError(f"--sharding {sharding}: expected no, full or hybrid")
    if not 0 < text_tokens < float("inf"):
        raise InputError(f"--text-tokens {text_tokens:g}: expected more than 0")
    loaded = load_preset(preset)
    hardware = Hardware(
        gpus=gpus, memory=memory, peak=peak, share=share, precision=precision, micro_batch_size=micro_batch_size,
        sharding=sharding, nodes=nodes, checkpoint_activations=checkpoint_activations,
    )  # fmt: skip
    plans = list(Planner(loaded, hardware, text_tokens=text_tokens).plans())
    if not plans:
        raise ConfigError(f"preset {loaded.name!r} trains no stage: nothing to plan")
    if as_json:
        typer.echo(json.dumps(_record(loaded.name, hardware, text_tokens, plans), indent=2))
    else:
        _show(loaded.name, hardware, text_tokens, plans)
    none = [one for one in plans if one.greatest_micro_batch is None]
    if none:
        most = max(none, key=lambda one: one.least)
        needed = math.ceil(100 * (most.least / _GIB + hardware.reserved)) / 100
        other = "" if sharding == "full" or gpus == 1 else ", or less with --sharding full"
        raise ConfigError(
            f"{', '.join(one.stage for one in none)}: not even a micro-batch of 1 fits {memory:g} GiB: "
            f"stage {most.stage} takes --memory {needed:g}{other}"
        )


def _record(preset: str, hardware: Hardware, text_tokens: float, plans: Sequence[StagePlan]) -> dict[str, Any]:
    """JSON of a plan: bytes, FLOPs of a sample, samples a second, hours."""
    return {
        "preset": preset,
        "assumed": vars(hardware) | {"text_tokens": text_tokens},
        "stages": {one.stage: {name: value for name, value in vars(one).items() if name != "stage"} for one in plans},
    }


def _show(preset: str, hardware: Hardware, text_tokens: float, plans: Sequence[StagePlan]) -> None:
    """A table with a column for each stage, and what it assumes."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rows: list[tuple[str, Callable[[StagePlan], str]]] = [("samples at once", lambda one: str(one.micro_batch_size))]
    rows += [
        (f"{part}, GiB", lambda one, part=part: f"{one.memory[part] / _GIB:.2f}")
        for part in (*_PARTS, "peak")
        if any(one.memory[part] for one in plans)
    ]
    rows += [
        (f"fits {hardware.memory:g} GiB", lambda one: "yes" if one.fits else "no"),
        ("greatest micro-batch", lambda one: str(one.greatest_micro_batch or "none")),
        ("GFLOP a sample", lambda one: f"{one.flops / 1e9:,.1f}"),
        ("  of them again", lambda one: f"{one.recomputed / 1e9:,.1f}"),
        ("samples a second", lambda one: f"{one.samples_per_second:,.0f}"),
        ("million samples", lambda one: f"{one.samples / 1e6:,.3g}"),
        ("hours", lambda one: f"{one.hours:,.2f}"),
        ("disk, GB", lambda one: f"{sum(one.disk.values()) / 1e9:,.0f}"),
    ]
    of = f" of {hardware.nodes} nodes" if hardware.nodes > 1 else ""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"{preset} on {hardware.gpus} GPUs{of}")
    table.add_column("", no_wrap=True)
    for one in plans:
        table.add_column(one.stage.replace("-", "\n"), justify="right", vertical="bottom", no_wrap=True)
    for name, text in rows:
        table.add_row(name, *map(text, plans))
    console = Console()
    whole = console.measure(table, options=console.options.update(max_width=1000)).maximum
    Console(width=max(console.width, whole)).print(table)  # not cut, where the terminal is narrower
    console.print(
        f"Precision {hardware.precision}, sharding {hardware.sharding}. Time at {hardware.share:g} of "
        f"{hardware.peak:g} TFLOP/s a GPU. {hardware.reserved:g} GiB of a GPU are left to CUDA. Disk is of a million "
        f"studies: latents and tokens in float16, {text_tokens:g} tokens of a text in the mean; memory and FLOPs are "
        "those of the longest texts.",
        highlight=False,
    )
