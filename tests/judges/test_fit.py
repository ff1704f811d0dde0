"""The training loop: its rates, its seeds, what it draws, and that an interrupted training ends as an unbroken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xgem.judges.fit import SCHEDULES, fit, label_loss, train_or_load
from xgem.judges.settings import Stage
from xgem.types import CheckpointError

N = 10
CPU = torch.device("cpu")


class Recorder:
    """Least squares of one weight to the rows' numbers; remembers rows and a random number of every batch."""

    def __init__(self, *, stops_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(1, 1)
        self.rows: list[list[int]] = []
        self.random: list[float] = []
        self.stops_at = stops_at

    def loss(self, rows: Tensor) -> Tensor:
        if len(self.rows) == self.stops_at:
            raise KeyboardInterrupt
        self.rows.append(rows.tolist())
        noise = torch.rand(())
        self.random.append(float(noise))
        x = rows[:, None].float() / N
        return ((self.network(x) - 2 * x + noise) ** 2).mean()

    def fit(self, stage: Stage, **options: Any) -> Recorder:
        fit(self.network, self.loss, N, stage, **({"seed": 3, "device": CPU, "name": "test"} | options))
        return self


def test_schedules() -> None:
    assert SCHEDULES["constant"](0.7) == 1
    assert [SCHEDULES["cosine"](p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [SCHEDULES["one_cycle"](p) for p in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_every_epoch_is_a_new_order_without_repeats() -> None:
    rows = Recorder().fit(Stage(epochs=3, batch_size=4)).rows
    assert [len(batch) for batch in rows] == [4] * 6  # the last two images of an epoch fill no batch
    epochs = [rows[i] + rows[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_steps_count_updates_and_a_batch_is_no_larger_than_the_set() -> None:
    assert len(Recorder().fit(Stage(steps=7, batch_size=4)).rows) == 7
    assert [len(batch) for batch in Recorder().fit(Stage(epochs=2, batch_size=64)).rows] == [N, N]


def test_seeds() -> None:
    stage = Stage(epochs=2, batch_size=4)
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    one = Recorder()
    torch.manual_seed(8)
    one.fit(stage)
    assert torch.equal(torch.rand(3), expected), "the random state outside is left alone"
    two, other = Recorder().fit(stage), Recorder().fit(stage, seed=4)
    assert (one.rows, one.random) == (two.rows, two.random)
    assert torch.equal(one.network.weight, two.network.weight)
    assert one.rows != other.rows


def test_chances_decide_what_is_drawn() -> None:
    chances = torch.zeros(N)
    chances[[2, 5]] = torch.tensor([0.75, 0.25])
    rows = np.concatenate(Recorder().fit(Stage(epochs=100, batch_size=10), chances=chances).rows)
    assert set(rows.tolist()) == {2, 5}
    assert (rows == 2).mean() == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("stops_at", [1, 5, 7])
def test_a_resumed_training_equals_an_unbroken_one(
    tmp_path: Path, optimizer: Literal["adam", "adamw", "sgd"], stops_at: int
) -> None:
    stage = Stage(epochs=4, batch_size=5, learning_rate=0.1, optimizer=optimizer, schedule="one_cycle")
    unbroken = Recorder().fit(stage)
    with pytest.raises(KeyboardInterrupt):
        Recorder(stops_at=stops_at).fit(stage, folder=tmp_path)
    resumed = Recorder().fit(stage, folder=tmp_path)
    done = stops_at // 2 * 2  # two updates an epoch
    assert resumed.rows == unbroken.rows[done:]
    assert torch.equal(resumed.network.weight, unbroken.network.weight)
    assert torch.equal(resumed.network.bias, unbroken.network.bias)
    assert Recorder().fit(stage, folder=tmp_path).rows == [], "a finished training is not done again"


def test_another_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    stage = Stage(epochs=1, batch_size=5)
    Recorder().fit(stage, folder=tmp_path)
    with pytest.raises(CheckpointError, match="other settings or data"):
        Recorder().fit(stage, folder=tmp_path, name="other")


def test_trained_once_for_a_key(tmp_path: Path) -> None:
    calls: list[Path | None] = []

    def run(key: dict[str, Any], cache: Path | None) -> nn.Linear:
        torch.manual_seed(0)
        network = nn.Linear(2, 1)

        def train(folder: Path | None) -> None:
            calls.append(folder)
            with torch.no_grad():
                network.weight += 1

        train_or_load(network, train, cache, "judge", key)
        return network

    first, again, other = run({"a": 1}, tmp_path), run({"a": 1}, tmp_path), run({"a": 2}, tmp_path)
    assert len(calls) == 2
    assert None not in calls
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.weight, other.weight)
    assert torch.equal(run({"a": 1}, None).weight, first.weight)
    assert calls[2:] == [None]


def test_label_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 3.0], [2.0, -1.0]])
    labels = torch.tensor([[1.0, float("nan")], [0.0, float("nan")]])
    expected = (np.log(2) + np.log1p(np.exp(2))) / 2
    assert float(label_loss(logits, labels)) == pytest.approx(expected)
    assert float(label_loss(logits, torch.full((2, 2), float("nan")))) == 0
