"""Progress by a clock that the test turns: silent for short work, lines in a log, bars on a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from xgem.utils.progress import LEAST_S, LINE_EVERY_S, Shown, StepBar, announce, showing, track


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stderr(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False) -> io.StringIO:
    """What is written to stderr from now on."""
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def work(steps: int, seconds: float, *, shown: bool = True) -> Iterator[StepBar]:
    """``steps`` steps that take ``seconds`` each."""
    clock = Clock()
    with StepBar("reading images", steps, shown=shown, clock=clock) as bar:
        for _ in range(steps):
            clock.now += seconds
            bar.advance()
            yield bar


def test_a_log_gets_a_line_now_and_then_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch)
    with showing(Shown.EVERYWHERE):
        list(work(100, 1.0))
    assert LINE_EVERY_S == 30
    assert log.getvalue().splitlines() == [
        "reading images: 30 of 100, 0:01:10 left",
        "reading images: 60 of 100, 0:00:40 left",
        "reading images: 90 of 100, 0:00:10 left",
    ]


def test_work_that_is_resumed_is_timed_by_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch)
    clock = Clock()
    with showing(Shown.EVERYWHERE), StepBar("training", 1000, done=900, clock=clock) as bar:
        clock.now += 100
        bar.move_to(910, "loss 0.5")
    assert log.getvalue() == "training: 910 of 1000, 0:15:00 left (loss 0.5)\n"


@pytest.mark.parametrize("where", [Shown.NOWHERE, Shown.TERMINAL])
def test_a_library_call_writes_no_lines(where: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch)
    with showing(where):
        list(work(100, 10.0))
    assert log.getvalue() == ""


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr(monkeypatch, terminal=True)
    with showing(Shown.EVERYWHERE):
        list(work(100, (LEAST_S - 0.5) / 100))
        list(work(1, 100.0, shown=False))
        list(work(0, 1.0))
    assert terminal.getvalue() == ""


def test_a_bar_appears_as_soon_as_the_work_is_known_to_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr(monkeypatch, terminal=True)
    for number, _ in enumerate(work(100, 0.5), start=1):
        assert ("reading images" in terminal.getvalue()) == (number >= 2), number
        if number == 3:
            break


def test_bars_inside_one_another_share_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stderr(monkeypatch, terminal=True)
    clock = Clock()
    with StepBar("outside", 10, clock=clock) as outer:
        clock.now += 9
        outer.advance()
        with StepBar("inside", 10, clock=clock) as inner:
            clock.now += 9
            inner.advance(note="epoch 1 of 2")
        outer.advance()
    shown = terminal.getvalue()
    assert "outside" in shown
    assert "inside" in shown
    assert "0:01:21 left" in shown
    assert "epoch 1 of 2" in shown


def test_no_progress_is_for_all_bars_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch)
    with showing(Shown.EVERYWHERE), showing(False), showing(True):
        list(work(100, 1.0))
    assert log.getvalue() == ""


def test_track_gives_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch)
    assert list(track([1, 2, 3], "three")) == [1, 2, 3]
    assert list(track(iter("ab"), "two", 2)) == ["a", "b"]
    assert log.getvalue() == ""


def test_what_begins_is_announced_where_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    log = stderr(monkeypatch)
    announce("a library call in a log")
    with showing(Shown.EVERYWHERE):
        announce("bench: model, part")
        announce("not this one", shown=False)
    with showing(False):
        announce("nor this one")
    assert log.getvalue() == "bench: model, part\n"
    terminal = stderr(monkeypatch, terminal=True)
    announce("bench: model, part")
    assert terminal.getvalue() == "bench: model, part\n"
