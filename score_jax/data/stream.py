"""Work done ahead by threads: the host prepares the next batches while the devices compute."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Step = TypeVar("Step")
Value = TypeVar("Value")


def prefetch(function: Callable[[Step], Value], steps: Iterable[Step], *, ahead: int = 2, workers: int = 2) -> Iterator[Value]:
    """`map(function, steps)`, computed ahead by threads.

    The order is that of `steps`, and an exception of `function` is raised at the step it belongs to. Threads start when the first
    value is asked for, and end with the iterator: at its end, at an exception, or when it is closed or no longer referred to.

    Args:
        function: Called by several threads at once.
        steps: What it is called with; may be endless.
        ahead: How many values are computed, or waiting, beyond the one in use; at least 1.
        workers: Threads, at least 1.

    Raises:
        ValueError: If `ahead` or `workers` is less than 1.
    """
    if ahead < 1 or workers < 1:
        raise ValueError(f"ahead={ahead} and workers={workers} must be at least 1")
    return _prefetch(function, steps, ahead, workers)


def _prefetch(function: Callable[[Step], Value], steps: Iterable[Step], ahead: int, workers: int) -> Iterator[Value]:
    remaining = iter(steps)
    pending: deque[Future[Value]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    try:
        pending.extend(pool.submit(function, step) for step in itertools.islice(remaining, ahead))
        while pending:
            future = pending.popleft()
            pending.extend(pool.submit(function, step) for step in itertools.islice(remaining, 1))
            yield future.result()
    finally:
        # Waits for what runs, a step's work at most: afterwards no thread touches a file.
        pool.shutdown(wait=True, cancel_futures=True)
