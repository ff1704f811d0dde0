"""``xgem params``, ``xgem doctor`` and ``xgem export``."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xgem.cli import completion
from xgem.types import InputError, XgemError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "accelerate",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "numpy",
    "pillow",
    "pydantic",
    "pydicom",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "python-gdcm",
)


def params(
    preset: Annotated[
        str,
        typer.Argument(
            help="Preset name, YAML file, checkpoint folder, or diffusers:ID-OR-FOLDER.",
            autocompletion=completion.presets,
        ),
    ] = "openi-256",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME.FIELD=VALUE", help="Override a field of a component; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count the parameters of a preset, component by component, and say where it differs from its paper.

    Nothing is downloaded and no weights are allocated.
    """
    counts = count_parameters(preset, settings or ())
    if as_json:
        typer.echo(json.dumps(counts, indent=2))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table("component", "kind", title=f"Parameters of {counts['preset']}")
    table.add_column("parameters", justify="right")
    for name, entry in counts["components"].items():
        table.add_row(name, entry["kind"], f"{entry['parameters']:,}")
    table.add_section()
    table.add_row("all", "", f"{counts['total']:,}")
    console = Console()
    console.print(table)
    for key, title in (("deviations", "Differs from the paper:"), ("assumptions", "Not stated in the paper:")):
        if counts[key]:
            console.print(title)
        for text in counts[key]:
            console.print(Padding(Text(f"- {text}"), (0, 0, 0, 2)))


def count_parameters(preset: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Number of parameters of each component; tied weights count once. ``settings``: overrides as given to ``--set``.

    Returns:
        ``{"preset": name, "components": {name: {"kind", "parameters"}}, "total", "deviations", "assumptions"}``, the
        last two as the preset states them.

    Raises:
        ConfigError: unknown preset, or a setting with an invalid value. InputError: a setting that names no field of a
        component. CheckpointError: the folder is not a checkpoint.
    """
    import torch

    from xgem.checkpoints.store import read_index
    from xgem.configs.changes import with_settings
    from xgem.configs.preset import Preset, load_preset
    from xgem.convert.random_init import random_component
    from xgem.pipeline.kinds import is_peer

    if is_peer(preset):
        from xgem.peers.locate import locate_peer

        if settings:
            raise InputError("--set is of presets; a diffusers pipeline is counted as it is")
        return locate_peer(preset).folder.parameters()
    loaded = Preset.parse(dict(read_index(preset).preset), preset) if Path(preset).is_dir() else load_preset(preset)
    loaded = with_settings(loaded, settings)
    components: dict[str, Any] = {}
    for name, config in loaded.components.items():
        # Tensors on the meta device have no storage: even the largest preset can be counted on any machine.
        with torch.device("meta"):
            component = random_component(config)
        components[name] = {"kind": config.kind, "parameters": sum(p.numel() for p in component.parameters())}
    total = sum(entry["parameters"] for entry in components.values())
    stated = {"deviations": list(loaded.deviations), "assumptions": list(loaded.assumptions)}
    return {"preset": loaded.name, "components": components, "total": total} | stated


def doctor(
    model: Annotated[
        str | None,
        typer.Option("--model", help="Checkpoint to verify: embedded, folder or hub id.", show_default="all embedded"),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show versions and devices, and verify checkpoints. The exit code is 1 if there is a problem."""
    import torch

    from xgem._version import __version__
    from xgem.checkpoints.locate import embedded_names
    from xgem.utils.cache import cache_folder, size_of
    from xgem.utils.devices import available_devices

    report: dict[str, Any] = {
        "xgem": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _package_version(name) for name in PACKAGES},
        "devices": {name: _device_text(name) for name in available_devices()},
        "threads": torch.get_num_threads(),
        "cache": {"folder": str(cache_folder()), "bytes": size_of(cache_folder())},
        "checkpoints": [_check(name, revision) for name in ([model] if model is not None else embedded_names())],
    }
    problems = [f"{name} is not installed" for name, version in report["packages"].items() if version is None]
    problems += [entry["problem"] for entry in report["checkpoints"] if entry["problem"]]
    report["problems"] = problems
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report)
    if problems:
        raise typer.Exit(1)


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_text(name: str) -> str:
    import torch

    if name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return platform.processor() or platform.machine() if name == "cpu" else name


def _check(model: str, revision: str | None) -> dict[str, Any]:
    """Verify the hashes of all files, then build and load every component, as a request would."""
    from xgem.checkpoints.locate import locate
    from xgem.checkpoints.store import checkpoint_hash, load_component, read_index, verify
    from xgem.pipeline.kinds import is_peer

    result: dict[str, Any] = {"model": model, "hash": None, "components": [], "problem": None}
    try:
        if is_peer(model):
            from xgem.peers.pipeline import PeerPipeline
            from xgem.peers.preset import COMPONENT

            peer = PeerPipeline.from_pretrained(model, revision=revision, device="cpu")
            result["hash"] = peer.hash
            peer.component(COMPONENT)  # strictly: nothing is left at random
            result["components"] += peer.location.folder.components
            return result
        location = locate(model, revision=revision)
        result["hash"] = checkpoint_hash(location.root)
        verify(location.root)
        for name in read_index(location.root).components:
            load_component(location.root, name)
            result["components"].append(name)
    except XgemError as error:
        result["problem"] = str(error)
    return result


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, box=None)
    table.add_row("xgem", report["xgem"])
    table.add_row("python", f"{report['python']} on {report['platform']}")
    for name, version in report["packages"].items():
        table.add_row(name, version or "[red]not installed[/red]")
    for name, text in report["devices"].items():
        table.add_row(f"device {name}", text)
    table.add_row("threads", str(report["threads"]))
    table.add_row("cache", f"{report['cache']['folder']}, {report['cache']['bytes'] / 1e6:.1f} MB")
    console.print(table)
    for entry in report["checkpoints"]:
        state = "[green]ok[/green]" if entry["problem"] is None else "[red]damaged or incomplete[/red]"
        digest = f" ({entry['hash']})" if entry["hash"] else ""
        console.print(f"checkpoint {entry['model']}{digest}: {state}", highlight=False)
    if not report["checkpoints"]:
        console.print("no embedded checkpoint in this installation: name one with --model", highlight=False)
    for problem in report["problems"]:
        console.print(f"problem: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)


def export(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint folder, such as --out of xgem train.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write, new or empty.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Number format: float32, float16 or bfloat16.")] = "float16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Verify a checkpoint and copy it without training files and caches, in the given number format.

    The copy has the checkpoint's card, or, where there is none, one that says what its files tell.
    """
    import shutil

    import torch

    from xgem.checkpoints.card import card_text
    from xgem.checkpoints.store import CARD_NAME, copy_checkpoint, read_index

    formats = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in formats:
        raise InputError(f"--dtype {dtype}: expected one of {', '.join(formats)}")
    if overwrite and target.exists():
        read_index(target)  # raises unless it is a checkpoint: nothing else is replaced
        fresh = target.with_name(f".{target.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        copy_checkpoint(source, fresh, dtype=formats[dtype])
        shutil.rmtree(target)
        fresh.rename(target)
    else:
        copy_checkpoint(source, target, dtype=formats[dtype])
    if not (target / CARD_NAME).is_file():
        (target / CARD_NAME).write_text(card_text(target), encoding="utf-8")
    typer.echo(str(target))
