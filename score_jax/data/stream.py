"""Background threads that prepare the next batches on the host while the devices compute."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Step = TypeVar("Step")
Value = TypeVar("Value")


def prefetch(
    function: Callable[[Step], Value],
    steps: Iterable[Step],
    *,
    ahead: int = 2,
    workers: int = 2,
) -> Generator[Value, None, None]:
    """Like `map(function, steps)`, but threads compute the next values in advance.

    Values come in the order of `steps`, and an exception of `function` is raised at its own step.
    The threads start when the first value is requested. They stop with the iterator: at its end,
    at an exception, or when it is closed or garbage-collected.

    Args:
        function: Function of a step; several threads call it at once.
        steps: Arguments of the calls; may be endless.
        ahead: Number of values that are computed or kept beyond the one in use, at least 1.
        workers: Number of threads, at least 1.

    Raises:
        ValueError: If `ahead` or `workers` is less than 1.
    """
    if ahead < 1 or workers < 1:
        raise ValueError(f"ahead={ahead} and workers={workers} must be at least 1")
    return _prefetch(function, steps, ahead, workers)


def _prefetch(
    function: Callable[[Step], Value], steps: Iterable[Step], ahead: int, workers: int
) -> Generator[Value, None, None]:
    remaining = iter(steps)
    pending: deque[Future[Value]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")

    def submit(number: int) -> None:
        for step in itertools.islice(remaining, number):
            pending.append(pool.submit(function, step))

    try:
        submit(ahead)
        while pending:
            future = pending.popleft()
            # Replace the value that is about to be used, so that `ahead` others stay in work.
            submit(1)
            yield future.result()
    finally:
        # Wait for the calls that are running, so that no thread touches a file afterwards.
        pool.shutdown(wait=True, cancel_futures=True)
