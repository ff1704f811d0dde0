"""Progress with the time left, on stderr: stdout is for results.

On a terminal it is a bar; elsewhere, as in the log of a cluster's job, a line now and then. Work that takes less than
five seconds shows nothing. Where it is shown is set for all bars by :func:`showing`; a library call shows bars on a
terminal, the command line also writes the lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
LEAST_S: Final = 5.0
"""Work that is expected to take less than so many seconds shows nothing."""
LINE_EVERY_S: Final = 30.0
"""Seconds between two lines where stderr is no terminal."""
_FIRST_LOOK_S: Final = 1.0  # after which the duration is estimated


class Shown(Enum):
    """Where progress is shown: nowhere, on terminals alone, or on terminals and as lines elsewhere."""

    NOWHERE = "nowhere"
    TERMINAL = "terminal"
    EVERYWHERE = "everywhere"


_SHOWN: ContextVar[Shown] = ContextVar("shown", default=Shown.TERMINAL)


@contextmanager
def showing(where: Shown | bool) -> Iterator[None]:
    """Within the block, progress is shown ``where``; ``True`` leaves it as it is, ``False`` shows nothing."""
    wanted = where if isinstance(where, Shown) else _SHOWN.get() if where else Shown.NOWHERE
    token = _SHOWN.set(wanted)
    try:
        yield
    finally:
        _SHOWN.reset(token)


class StepBar:
    """Counts ``total`` steps of one piece of work; a context manager.

    A bar opened inside another one (a training inside an evaluation) is shown below it.

    Args:
        description: what is done, such as ``reading images``.
        total: number of steps; with 0 nothing is shown.
        done: steps of an earlier run that need not be done again; they do not count for the time left.
        shown: False shows nothing; True leaves it to :func:`showing`.
        clock: the time in seconds, from any start.
    """

    def __init__(
        self,
        description: str,
        total: int,
        *,
        done: int = 0,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.description, self.total, self.done = description, total, done
        self.note = ""
        self._first, self._clock = done, clock
        where = _SHOWN.get() if shown else Shown.NOWHERE
        self._terminal = sys.stderr.isatty()
        self._silent = where is Shown.NOWHERE or total <= 0 or (where is Shown.TERMINAL and not self._terminal)
        self._start = self._said = clock()
        self._drawn: _Drawn | None = None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count more steps; a ``note``, such as the loss, is shown beside them until the next one."""
        self.move_to(self.done + steps, note)

    def move_to(self, done: int, note: str = "") -> None:
        """Set the number of finished steps."""
        self.done, self.note = done, note or self.note
        if self._silent or done <= self._first:
            return
        now = self._clock()
        if self._terminal:
            if self._drawn is None and self._is_long(now):
                self._drawn = _Drawn(self, now)
            if self._drawn is not None:
                self._drawn.update(self, now)
        elif now - self._said >= LINE_EVERY_S:
            self._said = now
            sys.stderr.write(self.line(now) + "\n")
            sys.stderr.flush()

    def _is_long(self, now: float) -> bool:
        """Whether the work takes ``LEAST_S`` or longer, by its speed until now."""
        elapsed = now - self._start
        return elapsed >= LEAST_S or (elapsed >= _FIRST_LOOK_S and elapsed + self.seconds_left(now) >= LEAST_S)

    def seconds_left(self, now: float) -> float:
        """Seconds to go at the mean speed until now; infinite before the first step."""
        steps = self.done - self._first
        return (now - self._start) / steps * max(0, self.total - self.done) if steps > 0 else float("inf")

    def line(self, now: float) -> str:
        """``reading images: 512 of 3034, 0:01:12 left``, with the note in brackets if there is one."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.description}: {self.done} of {self.total}, {self.left(now)}{note}"

    def left(self, now: float) -> str:
        """``0:01:12 left``."""
        seconds = round(self.seconds_left(now))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    def __enter__(self) -> StepBar:
        self._start = self._said = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._silent = True
        if self._drawn is not None:
            self._drawn.remove()
            self._drawn = None


def announce(text: str, *, shown: bool = True) -> None:
    """A line on stderr at once, where progress is shown: which of several long pieces of work begins."""
    where = _SHOWN.get() if shown else Shown.NOWHERE
    if where is Shown.NOWHERE or (where is Shown.TERMINAL and not sys.stderr.isatty()):
        return
    if _Drawn._display is not None:
        _Drawn._display.console.print(text, markup=False, highlight=False)
        return
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def track(values: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The values one by one, with a :class:`StepBar`; ``total`` is needed where they have no length."""
    count = total if total is not None else len(values) if isinstance(values, Sequence) else 0
    with StepBar(description, count) as bar:
        for value in values:
            yield value
            bar.advance()


class _Drawn:
    """A line of the display that all bars on a terminal share: rich allows one at a time."""

    _display: Progress | None = None
    _open = 0

    def __init__(self, bar: StepBar, now: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        if _Drawn._display is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[note]}"),
            )
            _Drawn._display = Progress(*columns, console=Console(stderr=True), transient=True)
            _Drawn._display.start()
        _Drawn._open += 1
        self._task = _Drawn._display.add_task(
            bar.description, total=bar.total, completed=bar.done, left=bar.left(now), note=bar.note
        )

    def update(self, bar: StepBar, now: float) -> None:
        assert _Drawn._display is not None
        _Drawn._display.update(self._task, completed=bar.done, left=bar.left(now), note=bar.note)

    def remove(self) -> None:
        assert _Drawn._display is not None
        _Drawn._display.remove_task(self._task)
        _Drawn._open -= 1
        if not _Drawn._open:
            _Drawn._display.stop()
            _Drawn._display = None
