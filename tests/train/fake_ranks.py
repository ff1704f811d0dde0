"""Bytes of one rank's shards of every stage of a preset, sharded over made-up ranks; started by test_plan.py."""

from __future__ import annotations

import json
import math
import sys

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from xgem.configs.preset import load_preset
from xgem.train.planned import planned
from xgem.train.sharding import layers, mesh_of, shard


def main(name: str, *shape: int) -> dict[str, dict[str, int]]:
    """``shape`` of the mesh: the number of ranks, or of nodes and of ranks of each."""
    dist.init_process_group("fake", rank=0, world_size=math.prod(shape), store=FakeStore())
    mesh, preset = mesh_of(shape, "cpu"), load_preset(name)
    sizes: dict[str, dict[str, int]] = {}
    for stage in preset.train:
        module = planned(stage, preset).stage.module
        blocks = layers(module)
        shard(module, mesh)
        assert all(isinstance(p, DTensor) for p in module.parameters())
        shards = [p.to_local() for p in module.parameters() if isinstance(p, DTensor)]
        assert all(one.device == torch.device("meta") for one in shards)
        sizes[stage] = {"bytes": sum(one.numel() * one.element_size() for one in shards), "blocks": len(blocks)}
    dist.destroy_process_group()
    return sizes


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:]))))
