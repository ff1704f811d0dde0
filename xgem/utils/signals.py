"""Signals that ask a process to end, kept until it has put its work in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""What schedulers send before they take a machine back: SLURM on preemption, submitit before the time limit."""


class Pending:
    """The number of the signal that came last; 0 if none did."""

    number: int = 0


@contextmanager
def deferred(signals: tuple[signal.Signals, ...] = ENDING) -> Iterator[Pending]:
    """Within the block, signals are only noted. After it, the last one takes its usual effect, unless the block failed.

    Outside the main thread, where Python handles no signals, nothing is deferred.
    """
    pending = Pending()
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return

    def note(number: int, frame: object) -> None:
        del frame
        pending.number = number

    before = {one: signal.signal(one, note) for one in signals}
    try:
        yield pending
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if pending.number:
        signal.raise_signal(pending.number)


@contextmanager
def interruptible(how_to_go_on: str) -> Iterator[None]:
    """Within the block, a ``KeyboardInterrupt`` carries a line that tells a user how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(*(stop.args or (how_to_go_on,))) from None
