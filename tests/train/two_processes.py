"""What each of two processes of a gathered InfoNCE does; started by test_processes.py, and imported by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from xgem.configs.preset import load_preset
from xgem.data.prepare import PreparedImages
from xgem.data.study import Study
from xgem.train.clip import ClipStage
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus

# Frontal, lateral, report; process r takes studies r, r + 2, ...: each has its own mix of what is missing.
PRESENT = ["FLR", "FLR", "FR", "LR", "FL", "FL", "LR", "FR", "FLR", "FLR"]
LABELS = ["normal", "normal", "effusion", "normal", "", "", "mass", "effusion", "normal", "mass"]


def make_stage() -> ClipStage:
    """The contrastive stage of the debug preset on studies that exist in memory alone."""
    torch.manual_seed(0)
    studies, index, count = [], {}, 0
    for number, (present, label) in enumerate(zip(PRESENT, LABELS, strict=True)):
        name = f"s{number}"
        for view, letter in (("frontal", "F"), ("lateral", "L")):
            if letter in present:
                index[name, view] = [count]
                count += 1
        impression = f"Finding number {number}." if "R" in present else ""
        studies.append(Study(name, name, "train", impression=impression, labels=(label,) if "R" in present else ()))
    images = PreparedImages(torch.randint(0, 256, (count, 32, 32)).byte(), index, (), "toy")
    corpus = Corpus(tuple(studies), images, ("impression",))
    return ClipStage(StageContext(load_preset("debug"), corpus, corpus, Path("root"), seed=0))


def batch_of(stage: ClipStage, rank: int, world: int) -> dict[str, Any]:
    """The part of one batch that falls to a process, without augmentation."""
    return stage._collate(stage.train, list(range(len(PRESENT)))[rank::world], None)


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    stage = make_stage()
    module = DistributedDataParallel(stage.module)
    loss, terms = stage.loss(module, batch_of(stage, rank, 2))
    loss.backward()
    found = {f"grad.{name}": p.grad for name, p in stage.module.named_parameters() if p.grad is not None}
    found |= {f"term.{name}": value for name, value in terms.items()} | {"loss": loss.detach()}
    save_file({name: value.contiguous() for name, value in found.items()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__worker__":
    torch.set_num_threads(1)
    main(*globals()["TASK"])
