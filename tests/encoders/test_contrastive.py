"""InfoNCE: open_clip's loss on the same vectors, and what a mask of alike pairs leaves out."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from xgem.encoders.contrastive import Temperature, info_nce


def unit(n: int, d: int = 8, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_equals_open_clip(n: int, scale: float) -> None:
    found = []
    for loss in (info_nce, open_clip.ClipLoss()):
        a, b, s = (x.requires_grad_() for x in (unit(n, seed=1), unit(n, seed=2), torch.tensor(scale)))
        value = loss(a, b, s)
        value.backward()
        found.append((value.detach(), a.grad, b.grad, s.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_matched_vectors_have_no_loss_and_shuffled_ones_do() -> None:
    a = torch.eye(4)
    assert float(info_nce(a, a, torch.tensor(100.0))) < 1e-6
    assert float(info_nce(a, a.roll(1, 0), torch.tensor(100.0))) > 50


def test_without_information_it_is_log_n() -> None:
    a = torch.ones(6, 1)
    assert float(info_nce(a, a, torch.tensor(5.0))) == pytest.approx(math.log(6))


@given(st.integers(2, 6), st.integers(0, 1000), st.data())
def test_alike_pairs_leave_the_denominators(n: int, seed: int, data: st.DataObject) -> None:
    keys = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    a, b, scale = unit(n, seed=seed), unit(n, seed=seed + 1), torch.tensor(10.0)
    same = keys[:, None] == keys
    terms = []
    for x, y in ((a, b), (b, a)):
        for i in range(n):
            logits = [10.0 * float(x[i] @ y[j]) for j in range(n) if j == i or keys[i] != keys[j]]
            terms.append(math.log(sum(math.exp(value) for value in logits)) - 10.0 * float(x[i] @ y[i]))
    assert float(info_nce(a, b, scale, same)) == pytest.approx(sum(terms) / len(terms), abs=1e-4)


def test_the_pair_itself_stays_and_only_alike_pairs_lose_their_gradient() -> None:
    a, b, scale = unit(3, seed=1), unit(3, seed=2).requires_grad_(), torch.tensor(10.0)
    torch.testing.assert_close(info_nce(a, b, scale, torch.eye(3, dtype=torch.bool)), info_nce(a, b, scale))
    everything = info_nce(a, b, scale, torch.ones(3, 3, dtype=torch.bool))
    assert everything.item() == 0  # no negatives are left
    everything.backward()
    assert b.grad is not None
    assert not b.grad.any()


def test_the_temperature_is_learned_and_clamped_at_100() -> None:
    temperature = Temperature()
    assert temperature().item() == pytest.approx(1 / 0.07)
    temperature().backward()
    assert float(temperature.log_scale.grad) > 0  # type: ignore[arg-type]
    with torch.no_grad():
        temperature.log_scale.fill_(9.0)
    assert temperature().item() == 100.0
