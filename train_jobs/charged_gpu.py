"""One rank's simulated GPU: computations are charged to it at the clock it has, in its own time.

Simulated time is the node's monotonic time, one to one. A computation begins when what it waits for is done, not when
the operating system woke us, and the worker sleeps until its end: late wake-ups delay nothing but the worker.
"""

import os
import time
from collections.abc import Callable

from actors.gpu.drivers import ChargeableNode
from control_plane.hardware.gpu_model import IDLE, GpuSpec
from control_plane.hardware.stage_model import NS_PER_S, StageWork, finish_ns
from train_jobs.meter import Reading


class ChargedGpu:
    """Opens a context on the GPU for as long as it lives; ``clock_ns`` is the node's."""

    def __init__(
        self,
        node: ChargeableNode,
        index: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        sleep_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self._node, self._index = node, index
        self._clock_ns, self._sleep_s = clock_ns, sleep_s
        node.open_context(index, os.getpid())

    @property
    def spec(self) -> GpuSpec:
        return self._node.spec

    def now_ns(self) -> int:
        return self._clock_ns()

    def compute(self, work: StageWork, at_ns: int) -> Reading:
        """Run ``work`` from ``at_ns`` on; returns when it is done, with the GPU at its end."""
        began = self._node.work(self._index, work.activity, at_ns)
        end_ns = finish_ns(self.spec, began, work)
        self.sleep_until(end_ns)
        ended = self._node.work(self._index, IDLE, end_ns)
        return Reading(end_ns, ended.energy_j, ended.freq_mhz)

    def reading(self, at_ns: int) -> Reading:
        """The GPU at a moment when it waits."""
        state = self._node.work(self._index, IDLE, at_ns)
        return Reading(state.at_ns, state.energy_j, state.freq_mhz)

    def look(self) -> Reading:
        """The GPU now, whatever it does; changes nothing, so any thread may look."""
        state = self._node.state(self._index)
        return Reading(state.at_ns, state.energy_j, state.freq_mhz)

    def target_mhz(self) -> int:
        """The clock it has been told to take."""
        return self._node.state(self._index).target_mhz

    def set_clock(self, freq_mhz: int, at_ns: int) -> None:
        self._node.lock_freq(self._index, freq_mhz, at_ns)

    def settle(self) -> None:
        """Sleep until the clock it was told to take is in force."""
        state = self._node.state(self._index)
        if state.freq_mhz != state.target_mhz:
            self.sleep_until(state.settles_at_ns + 1)

    def sleep_until(self, until_ns: int) -> None:
        left_ns = until_ns - self._clock_ns()
        if left_ns > 0:
            self._sleep_s(left_ns / NS_PER_S)

    def close(self) -> None:
        self._node.close_context(self._index, os.getpid())
