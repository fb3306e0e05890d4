"""Taking the time, and waiting."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def median_ms(call: Callable[[], object], times: int) -> float:
    """Milliseconds of one call: the median of `times`, after one that does not count."""
    call()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def wait_until(condition: Callable[[], bool], seconds: float = 120, every: float = 0.1) -> None:
    """Return when `condition` holds.

    Raises:
        TimeoutError: it does not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(every)


@contextmanager
def repeatedly(call: Callable[[], None], seconds: float) -> Iterator[None]:
    """Make `call` in a thread every so many seconds, until the block ends."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
