import itertools
import threading
import time

import pytest

from score_jax.data.stream import prefetch


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_values_come_in_the_order_of_the_steps():
    def slow_when_even(step):
        time.sleep(0.01 * (step % 2 == 0))
        return step * step

    assert list(prefetch(slow_when_even, range(9), ahead=3, workers=3)) == [
        step * step for step in range(9)
    ]
    assert list(prefetch(str, [])) == []
    assert not threads()


def test_values_are_computed_ahead_and_not_farther():
    done = []
    values = prefetch(done.append, itertools.count(), ahead=3)
    time.sleep(0.01)
    assert done == []
    next(values)
    wait_until(lambda: len(done) == 4)
    time.sleep(0.05)
    assert sorted(done) == [0, 1, 2, 3]
    next(values)
    wait_until(lambda: len(done) == 5)
    values.close()


def test_workers_compute_at_the_same_time():
    together = threading.Barrier(2)
    assert sorted(
        prefetch(lambda step: (together.wait(20), step)[1], range(4), ahead=2, workers=2)
    ) == [0, 1, 2, 3]


def test_an_exception_is_raised_at_its_step():
    def fails(step):
        if step == 2:
            raise OSError("step 2")
        return step

    values = prefetch(fails, range(100))
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(OSError, match="step 2"):
        next(values)
    assert not threads()
    assert list(values) == []


def test_closing_early_ends_the_threads_and_computes_no_more():
    started, released = [], threading.Event()

    def work(step):
        started.append(step)
        return step == 0 or released.wait(20)

    values = prefetch(work, itertools.count(), ahead=50, workers=2)
    assert next(values)
    wait_until(lambda: len(started) == 3)
    threading.Timer(0.5, released.set).start()
    values.close()
    assert not threads()
    assert sorted(started) == [0, 1, 2]


def test_leaving_the_loop_ends_the_threads():
    for step in prefetch(abs, itertools.count()):
        if step == 3:
            break
    wait_until(lambda: not threads())


@pytest.mark.parametrize("numbers", [{"ahead": 0}, {"workers": 0}])
def test_numbers_that_make_no_sense(numbers):
    with pytest.raises(ValueError, match="must be at least 1"):
        prefetch(abs, range(3), **numbers)
