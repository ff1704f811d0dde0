"""Make a cohort's items, batch by batch; any process can take any share of them, at any time, again and again.

An item's files are a function of the plan, the checkpoint and its number. What a batch adds (the order in which sums
are formed, which its size decides) is fixed too: a batch always holds the same items. So shards, interruptions and
restarts leave no trace, as long as device, number format, threads and versions stay the same, which is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from xgem._version import __version__
from xgem.api import load, model_for
from xgem.cohort.check import check, options, stages
from xgem.cohort.collect import Counts, collect
from xgem.cohort.folder import Folder, Made
from xgem.cohort.items import Batch, Cohort, Item, expand
from xgem.cohort.plan import Plan
from xgem.cohort.shards import Shard
from xgem.data.study import read_study
from xgem.modalities import get_modality
from xgem.pipeline.generation import Generation
from xgem.pipeline.pipeline import XgemPipeline
from xgem.utils.devices import dtype_name
from xgem.utils.progress import StepBar


@dataclass(frozen=True)
class Done:
    """What a run did: ``made`` studies now, ``missing`` of the whole cohort yet; ``counts`` once it is finished."""

    made: int
    missing: int
    counts: Counts | None


def open_cohort(
    plan: Plan,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool = False,
) -> tuple[Cohort, XgemPipeline, list[dict[str, Any]]]:
    """Expand a plan, open its model, and check the one against the other; nothing is written.

    Raises:
        InputError: the plan asks for what the model cannot do. CheckpointError, DeviceError: as ``xgem.load``.
    """
    cohort = expand(plan)
    model = plan.model or model_for([cohort.item(0).inputs])
    pipeline = load(model, revision=plan.revision, device=device, dtype=dtype, compile=compile)
    return cohort, pipeline, check(cohort, pipeline)


def run(
    plan: Plan,
    out: str | Path,
    *,
    shard: Shard | None = None,
    device: str | None = None,
    dtype: str | None = None,
    compile: bool = False,
    threads: int | None = None,
    progress: bool = True,
) -> Done:
    """Make what is missing of a shard's items in the folder ``out``, and finish the cohort where nothing else is.

    Args:
        plan: what to make; a cohort that ``out`` holds already is continued if it is of the same plan, or of one with
            a smaller count.
        shard: which part of the batches; all of them by default.
        device: a shard of several on one machine takes its own GPU unless this names one.
        compile: compile the model's diffusion transformer.
        threads: of the CPU; those that the cohort was begun with, or torch's number.

    Raises:
        InputError: the plan asks for what the model cannot do.
        OutputError: the folder holds something else or another cohort, or cannot be written.
        CheckpointError, DeviceError: as ``xgem.load``.
    """
    shard = shard or Shard()
    if device is None and torch.cuda.is_available():
        device = f"cuda:{shard.local % torch.cuda.device_count()}"
    cohort, pipeline, requests = open_cohort(plan, device=device, dtype=dtype, compile=compile)
    folder = Folder(out)
    before = torch.get_num_threads()
    if threads is None:
        threads = int((folder.begun() or {}).get("threads", before))
    folder.begin(
        {
            "plan": cohort.sha256,
            "checkpoint": {"name": pipeline.name, "hash": pipeline.hash},
            "device": pipeline.device.type,
            "dtype": dtype_name(pipeline.dtype),
            "compiled": pipeline.compiled,
            "threads": threads,
            "torch": torch.__version__,
            "xgem": __version__,
            "requests": requests,
            "count": plan.count,
        }
    )
    try:
        torch.set_num_threads(threads)  # how many threads share a sum decides the order of its additions
        made = _make_all(cohort, pipeline, folder, shard, progress)
    finally:
        torch.set_num_threads(before)
    # Its own batches are verified, the others' by whoever collects.
    missing = sum(len(batch.indices) for batch in cohort.batches if folder.record(batch, verify=False) is None)
    return Done(made, missing, None if missing else collect(cohort, folder))


def _make_all(cohort: Cohort, pipeline: XgemPipeline, folder: Folder, shard: Shard, progress: bool) -> int:
    todo = [batch for batch in shard.of(cohort.batches) if folder.record(batch) is None]
    made = 0
    with StepBar(cohort.plan.name, sum(len(batch.indices) for batch in todo), shown=progress) as bar:
        for batch in todo:
            with folder.taking(batch) as ours:
                # Another process may have finished it since, or be at it: then it is theirs.
                if ours and folder.record(batch) is None:
                    _make(cohort, pipeline, folder, batch)
                    made += len(batch.indices)
            for _ in batch.indices:
                bar.advance()
    return made


def _make(cohort: Cohort, pipeline: XgemPipeline, folder: Folder, batch: Batch) -> None:
    items = [cohort.item(index) for index in batch.indices]
    made = [Made(item.index, {}, {}, []) for item in items]
    inputs = [_read(item, pipeline) for item in items]
    with folder.part(batch) as place:
        for number, (outputs, _) in enumerate(stages(items[0].cell.outputs, tuple(inputs[0]))):
            if number:
                inputs = [{view: place / file for view, file in one.files.items()} for one in made]
            generations: Any = pipeline(
                inputs,
                outputs,
                seed=[item.seed for item in items],
                progress=False,
                **options(cohort.plan, outputs, pipeline),
            )
            with folder.guarded():
                made = [
                    _write(place, cohort.plan, item, one, generation)
                    for item, one, generation in zip(items, made, generations, strict=True)
                ]
        folder.keep(batch, place, made)


def _read(item: Item, pipeline: XgemPipeline) -> dict[str, Any]:
    """An item's inputs with its annotations read, on the model's grid."""
    inputs = dict(item.inputs)
    if item.cell.annotations:
        assert item.cell.study is not None
        annotation = read_study(item.cell.study, pipeline.preset.transform)
        if "mask" in inputs:
            inputs["mask"] = annotation.masks
        if "boxes" in inputs:
            inputs["boxes"] = [{"label": b.label, "bbox": [b.x, b.y, b.w, b.h]} for b in annotation.boxes]
    return inputs


def _write(place: Path, plan: Plan, item: Item, made: Made, generation: Generation) -> Made:
    """Write what a stage made of an item, each file with the metadata that replays it."""
    files, masks, boxes = dict(made.files), dict(made.masks), list(made.boxes)
    for output in generation:
        modality = get_modality(output)
        metadata = generation.sample_metadata(output)
        metadata["device"] = str(metadata["device"]).partition(":")[0]  # which of several GPUs says nothing
        metadata["cohort"] = {"name": plan.name, "study": item.id, "seed": plan.seed, "item": item.index}
        kind, stem = (
            ("pictures", f"{item.index:08d}-{output}") if modality.is_image else ("reports", f"{item.index:08d}")
        )
        path = modality.write(generation.outputs[output][0], place / kind, stem, metadata)
        assert path is not None  # every output has a file
        files[output] = f"{kind}/{path.name}"
    for name, annotation in generation.annotations.items():
        if name == "mask":
            for structure, mask in annotation.masks.items():
                masks[structure] = f"masks/{item.index:08d}-{structure.replace(' ', '_')}.png"
                Image.fromarray(mask.astype(np.uint8) * 255).save(place / masks[structure])
        if name == "boxes":
            boxes = [{"label": b.label, "x": b.x, "y": b.y, "w": b.w, "h": b.h} for b in annotation.boxes]
    return Made(item.index, files, masks, boxes)
