"""``xgem data encode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xgem.cli import completion
from xgem.cli.counts import AsJson, show_counts
from xgem.cli.options import Progress
from xgem.types import InputError


def encode(
    manifest: Annotated[Path, typer.Argument(help="Manifest with splits train and val.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write or to go on with.")],
    preset: Annotated[
        str, typer.Option("--preset", help="Preset or YAML file to train.", autocompletion=completion.presets)
    ],
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME", help="Checkpoint with trained encoders and codecs."),
    ],
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Write only part I of N; set automatically under torchrun."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare finished shards with their checksums; encode nothing.")
    ] = False,
    size: Annotated[int, typer.Option("--studies-per-shard", min=1, help="Studies in one file.")] = 512,
    device: Annotated[
        str | None, typer.Option("--device", help="Device: cpu, cuda, cuda:1 ...", show_default="a GPU, or cpu")
    ] = None,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Encode a data set once for generators that do not fit it in memory: xgem train frontal --encoded DIR.

    Latents of all outputs and encodings of all prompts are written as float16 into shards. Processes and nodes share
    the work (torchrun, or --shard). After an interruption, the same command goes on; the last to finish writes
    DIR/index.json.
    """
    del progress  # shown or not by the option's callback
    import logging

    import torch

    from xgem.checkpoints.locate import locate
    from xgem.configs import load_preset
    from xgem.train.encode import encode as encode_shards
    from xgem.train.encoded import EncodedStudies
    from xgem.utils.devices import resolve_device
    from xgem.utils.files import file_sha256
    from xgem.utils.shards import environment_shard, parse_shard

    logging.getLogger("xgem").setLevel(logging.INFO)
    loaded = load_preset(preset)
    if not manifest.is_file():
        raise InputError(f"{manifest}: no such manifest; make one with `xgem data prepare`")
    if check:
        found = EncodedStudies.open(out)
        found.check_is_of(file_sha256(manifest), loaded)
        found.check_files()
        show_counts({"files": len(found.files), "altered": 0}, as_json)
        return
    share = environment_shard() if shard is None else parse_shard(shard)
    if device is None and torch.cuda.is_available():
        device = f"cuda:{share.local % torch.cuda.device_count()}"
    done = encode_shards(
        manifest,
        loaded,
        locate(model).root,
        out,
        share=share,
        device=resolve_device(device or "cpu"),
        studies_per_shard=size,
    )
    show_counts({"shards": done.shards, "written now": done.made, "missing": done.missing, "folder": str(out)}, as_json)
