"""A clock that is set by a thread of its own."""

import threading
from collections.abc import Callable

from gpud_process import eventually

from train_jobs.threaded_clock import ThreadedClock


class SlowGpu:
    """Setting takes as long as the test says."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.broken = False

    def set_clock(self, freq_mhz: int, at_ns: int) -> None:
        assert self.go.wait(5)
        if self.broken:
            raise OSError("the driver hangs")
        self.told.append(freq_mhz)

    def target_mhz(self) -> int:
        return self.told[-1]


def test_nobody_waits_and_of_several_clocks_the_newest_is_set() -> None:
    gpu = SlowGpu()
    clock = ThreadedClock(gpu, 1980)
    gpu.go.clear()
    for mhz in (1800, 1500, 1200, 900):
        clock.set_clock(mhz, 0)
    assert (clock.target_mhz(), gpu.told) == (900, [])
    gpu.go.set()
    assert clock.flush(5.0)
    assert gpu.told[-1] == 900
    assert len(gpu.told) <= 2, "one that was under way, and the newest"
    clock.close()


def test_a_clock_is_set_when_the_gpu_has_come_to_where_it_was_asked_for() -> None:
    gpu, marks = SlowGpu(), [threading.Event(), threading.Event()]
    waiting = iter(marks)

    def mark() -> Callable[[], bool]:
        return next(waiting).is_set

    clock = ThreadedClock(gpu, 1980, mark)
    clock.set_clock(1500, 0)
    clock.set_clock(900, 0)
    assert not clock.flush(0.05)
    marks[0].set()
    eventually(lambda: gpu.told == [1500])
    marks[1].set()
    assert clock.flush(5.0)
    assert gpu.told == [1500, 900]
    clock.close()


def test_a_driver_that_fails_does_not_end_the_thread() -> None:
    gpu = SlowGpu()
    clock = ThreadedClock(gpu, 1980)
    gpu.broken = True
    clock.set_clock(1500, 0)
    assert clock.flush(5.0)
    gpu.broken = False
    clock.set_clock(1400, 0)
    assert clock.flush(5.0)
    assert gpu.told == [1400]
    clock.close()
