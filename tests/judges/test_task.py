"""What all downstream tasks share: items that can be used, and balanced sampling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xgem.data.sets import EvalSet, Item
from xgem.judges.tasks.task import with_targets
from xgem.judges.tasks.training import balanced_chances
from xgem.types import InputError


def items(*files: str | None) -> EvalSet:
    return EvalSet("toy", tuple(Item(str(row), file=Path(file) if file else None) for row, file in enumerate(files)))


def test_only_items_with_an_image_and_a_target_are_kept() -> None:
    kept = with_targets(items("a.png", None, "b.png", "c.png"), [True, True, False, True], "a mask")
    assert [item.id for item in kept.items] == ["0", "3"]
    everything = items("a.png", "b.png")
    assert with_targets(everything, [True, True], "a mask") is everything


@pytest.mark.parametrize("has", [[False, True], [False, False]])
def test_nothing_to_use_is_an_error_that_says_what_is_needed(has: list[bool]) -> None:
    with pytest.raises(InputError, match="toy: none of its 2 items has an image and a mask; this task needs both"):
        with_targets(items("a.png", None), has, "a mask")


def test_balanced_chances_give_every_class_the_same_share() -> None:
    """Six images of class 0, two of class 1, one of neither."""
    presence = np.zeros((9, 2), dtype=bool)
    presence[:6, 0] = presence[6:8, 1] = True
    chances = balanced_chances(presence)
    assert chances[:6].sum() == pytest.approx(1)
    assert chances[6:8].sum() == pytest.approx(1)
    assert chances[8] == pytest.approx(1)
    both = np.array([[True, True], [True, False]])
    np.testing.assert_allclose(balanced_chances(both), [1 / 2 + 1, 1 / 2])
