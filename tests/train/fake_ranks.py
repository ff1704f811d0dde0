"""Bytes of one rank's shards of every stage of a preset, sharded over made-up ranks; started by test_plan.py."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from xgem.configs.preset import load_preset
from xgem.train.plan import blocks_of
from xgem.train.planned import planned


def main(name: str, ranks: int) -> dict[str, dict[str, int]]:
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    mesh, preset = init_device_mesh("cpu", (ranks,)), load_preset(name)
    sizes: dict[str, dict[str, int]] = {}
    for stage in preset.train:
        module = planned(stage, preset).stage.module
        blocks = blocks_of(module)
        for block in blocks:
            fully_shard(block, mesh=mesh)
        scalars = {p for p in module.parameters() if p.ndim == 0}  # the temperature, which cannot be divided
        fully_shard(module, mesh=mesh, ignored_params=scalars)
        sharded = [p for p in module.parameters() if isinstance(p, DTensor)]
        assert len(sharded) + len(scalars) == len(list(module.parameters()))
        shards = [*(p.to_local() for p in sharded), *scalars]
        assert all(one.device == torch.device("meta") for one in shards)
        sizes[stage] = {"bytes": sum(one.numel() * one.element_size() for one in shards), "blocks": len(blocks)}
    dist.destroy_process_group()
    return sizes


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
