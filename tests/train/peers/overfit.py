"""Learning a few pictures by heart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xgem.configs.components import TransformConfig
from xgem.data.manifest import Manifest
from xgem.peers.loading import load_pipeline
from xgem.peers.locate import locate_peer
from xgem.peers.preset import peer_preset
from xgem.train.corpus import Corpus
from xgem.train.peers.settings import PeerTraining
from xgem.train.peers.stage import PeerStage
from xgem.train.share import Share

STEPS = 25


def overfit(
    base: Path, manifest: Manifest, cache: Path, settings: Callable[[str, int], PeerTraining]
) -> tuple[float, float]:
    """The loss on the pictures of a batch, at fixed times and noise, before and after."""
    location = locate_peer(f"diffusers:{base}")
    config = settings(location.folder.kind.__name__, 5)
    resolution = config.resolution or location.folder.size
    preset = peer_preset(location.folder, None).model_copy(update={"transform": TransformConfig(size=resolution)})
    corpora = tuple(Corpus.load(manifest, split, preset, cache, progress=False) for split in ("train", "val"))
    pipe = load_pipeline(location, device="cpu", dtype=torch.float32)
    stage = PeerStage("full", pipe, location, config, (corpora[0], corpora[1]), resolution, 0)
    batch: dict[str, Any] = stage.batch(Share.whole(0, "full", 0, 4))
    batch["u"] = torch.tensor([0.3, 0.6, 0.8, 0.9])
    with torch.no_grad():
        conditions = stage.family.encode(batch["texts"])
    vars(stage.family)["encode"] = lambda texts: conditions  # the same at every step
    optimizer = torch.optim.AdamW(stage.module.parameters(), lr=1e-2)

    def loss() -> torch.Tensor:
        return stage.loss(stage.module, batch)[0]

    before = float(loss())
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return before, float(loss())
