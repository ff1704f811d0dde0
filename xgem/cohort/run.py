"""Generate a cohort's items, batch by batch; any process can generate any shard of them, at any time, repeatedly.

An item's files are a function of the plan, the checkpoint and its number. The effect of the batch (the order in which
numbers are summed, which depends on its size) is fixed too: a batch always holds the same items. So results do not
depend on shards, interruptions and restarts, as long as device, number format, threads and versions stay the same,
which is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from xgem._version import __version__
from xgem.api import load, model_for
from xgem.cohort.check import check, of_today, options, stages
from xgem.cohort.collect import Counts, collect
from xgem.cohort.folder import Folder, Made
from xgem.cohort.items import Batch, Cohort, Item, expand
from xgem.cohort.plan import Plan
from xgem.data.study import read_study
from xgem.modalities import get_modality
from xgem.pipeline.generation import Generation
from xgem.pipeline.metadata import FORMAT
from xgem.pipeline.pipeline import XgemPipeline
from xgem.utils.devices import dtype_name
from xgem.utils.progress import StepBar
from xgem.utils.shards import Shard


@dataclass(frozen=True)
class Done:
    """Result of a run: studies ``made`` now and still ``missing`` of the cohort; ``counts`` once it is finished."""

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
    """Expand a plan, open its model, and check that the model can do it; nothing is written.

    Raises:
        InputError: the plan requests what the model cannot do. CheckpointError, DeviceError: as ``xgem.load``.
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
    """Generate a shard's missing items in the folder ``out``, and finish the cohort once no item is missing.

    Args:
        plan: of the cohort; one in ``out`` already is continued if its plan is the same or has a smaller count.
        shard: which batches; all by default.
        device: by default, shards on one machine use one GPU each.
        compile: compile the model's denoisers (``XgemPipeline.from_pretrained``).
        threads: CPU threads; by default the number that the cohort was started with, or torch's.

    Raises:
        InputError: the plan requests what the model cannot do.
        OutputError: the folder holds other files or another cohort, or cannot be written.
        CheckpointError, DeviceError: as ``xgem.load``.
    """
    shard = shard or Shard()
    if device is None and torch.cuda.is_available():
        device = f"cuda:{shard.local % torch.cuda.device_count()}"
    cohort, pipeline, requests = open_cohort(plan, device=device, dtype=dtype, compile=compile)
    folder = Folder(out)
    before = torch.get_num_threads()
    started = folder.begun() or {}
    former = bool(started) and "format" not in started  # begun before the format of its items' metadata was kept
    if threads is None:
        threads = int(started.get("threads", before))
    if of_today(started.get("requests", [])) == requests:
        requests = started["requests"]  # a cohort keeps the names that it was started with
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
            **({} if former else {"format": FORMAT}),
        }
    )
    try:
        torch.set_num_threads(threads)  # the number of threads decides the order in which numbers are summed
        # With the sampler that it was started with
        former_ddim = former and (plan.sampler or pipeline.preset.sampling.sampler) == "ddim"
        going_on = replace(cohort, plan=plan.model_copy(update={"sampler": "ddim-leading"})) if former_ddim else cohort
        made = _make_all(going_on, pipeline, folder, shard, progress)
    finally:
        torch.set_num_threads(before)
    # This shard's batches are verified; the others are when the cohort is collected.
    missing = sum(len(batch.indices) for batch in cohort.batches if folder.record(batch, verify=False) is None)
    return Done(made, missing, None if missing else collect(cohort, folder))


def _make_all(cohort: Cohort, pipeline: XgemPipeline, folder: Folder, shard: Shard, progress: bool) -> int:
    """Generate what is missing of a shard."""
    todo = [batch for batch in shard.of(cohort.batches) if folder.record(batch) is None]
    made = 0
    with StepBar(cohort.plan.name, sum(len(batch.indices) for batch in todo), shown=progress) as bar:
        for batch in todo:
            with folder.taking(batch) as ours:
                # Another process may have finished it meanwhile, or be at work on it: leave it to that one.
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
            settings: Any = dict(options(cohort.plan, outputs, pipeline))
            settings |= {"seed": [item.seed for item in items], "progress": False}
            if not number and items[0].cell.study is not None:  # one way for all studies, which expand() has checked
                settings |= items[0].cell.study.reading.model_dump()
            generations: Any = pipeline(inputs, outputs, **settings)
            with folder.guarded():
                made = [
                    _write(place, folder.images, cohort.plan, item, one, generation)
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


def _write(place: Path, images: str, plan: Plan, item: Item, made: Made, generation: Generation) -> Made:
    """Write a stage's outputs of an item below ``place``, each file with the metadata to replay it."""
    files, masks, boxes = dict(made.files), dict(made.masks), list(made.boxes)
    for output in generation:
        modality = get_modality(output)
        metadata = generation.sample_metadata(output)
        metadata["device"] = str(metadata["device"]).partition(":")[0]  # not which of several GPUs
        metadata["cohort"] = {"name": plan.name, "study": item.id, "seed": plan.seed, "item": item.index}
        kind, stem = (images, f"{item.index:08d}-{output}") if modality.is_image else ("reports", f"{item.index:08d}")
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
