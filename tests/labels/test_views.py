"""The vocabulary of views."""

from __future__ import annotations

import pytest

from xgem.labels.views import VIEWS, add_view, view_of


def test_view_positions_mean_one_view(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [view_of(position) for position in ("PA", "AP", "LL", "RL", "LAO", "")] == [
        *("frontal", "frontal", "lateral", "lateral"),
        *(None, None),
    ]
    monkeypatch.setitem(VIEWS, "oblique", ())
    add_view("oblique", ("LAO", "RAO"))
    assert view_of("RAO") == "oblique"


@pytest.mark.parametrize("name", ["", "Oblique", "left lateral", "a/b", "2nd"])
def test_a_view_needs_a_name_that_files_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="lower-case letters"):
        add_view(name)
    assert name not in VIEWS


def test_a_view_position_cannot_mean_two_views() -> None:
    with pytest.raises(ValueError, match="ViewPosition PA means a frontal view"):
        add_view("oblique", ("LAO", "PA"))
    assert "oblique" not in VIEWS
