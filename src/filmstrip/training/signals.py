"""Being asked to stop: Ctrl-C and SIGTERM are remembered, to be obeyed between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop; a second time it stops at once, as usual."""
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def remember(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    with suppress(ValueError):  # only the main thread may handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.getsignal(number)
            signal.signal(number, remember)
    try:
        yield received
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
