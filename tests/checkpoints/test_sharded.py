"""Parts of tensors, as one of several made-up processes has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.placement_types import Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from xgem.checkpoints.sharded import part_of


@pytest.fixture
def second_of_four() -> Iterator[None]:
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("second_of_four")
def test_a_part_keeps_no_more_than_its_rows() -> None:
    whole = torch.arange(36.0).reshape(12, 3)
    like = distribute_tensor(torch.zeros(12, 3), init_device_mesh("cpu", (4,)), [Shard(0)], src_data_rank=None)
    part = part_of(whole, like)
    assert isinstance(part, DTensor)
    assert (part.placements, part.shape) == (like.placements, whole.shape)
    assert torch.equal(part.to_local(), whole[3:6])
    assert part.to_local().untyped_storage().nbytes() == 3 * 3 * 4
    assert part_of(whole, None) is whole
