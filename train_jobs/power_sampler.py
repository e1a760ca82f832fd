"""What a real GPU draws while it trains, sampled in a thread: NVML's calls take milliseconds, computations too.

A computation's energy is its time multiplied by the mean power of its kind. The sensor of an H100 averages over tens of
milliseconds, so that kinds shorter than that hardly differ; sums over iterations are right all the same.
"""

import threading
import time
from bisect import bisect_right
from collections import deque
from statistics import fmean

from control_plane.ports import Gpu, GpuError
from train_jobs.meter import Reading

EVERY_S = 0.02
KEPT = 60_000


class PowerSampler:
    """Twenty minutes of samples of one GPU."""

    def __init__(self, gpu: Gpu, every_s: float = EVERY_S) -> None:
        self._gpu, self._every_s = gpu, every_s
        self._samples: deque[tuple[int, float, int]] = deque(maxlen=KEPT)
        self._last = (0.0, 0)
        """Energy since the start and the clock, of the last sample: one tuple, so that the training thread reads it
        without a lock."""
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._sample_forever, name="power", daemon=True)
        self._thread.start()

    def now(self) -> Reading:
        """The last sample; its energy is the power integrated since the start."""
        return Reading(time.monotonic_ns(), *self._last)

    def between(self, begin_ns: int, end_ns: int) -> list[tuple[int, float, int]]:
        """(moment, watts, MHz) of the samples in between."""
        with self._lock:
            samples = list(self._samples)
        first = bisect_right(samples, (begin_ns, float("inf"), 0))
        return samples[first : bisect_right(samples, (end_ns, float("inf"), 0))]

    def mean_w(self, begin_ns: int, end_ns: int) -> float | None:
        """None where there is no sample in between."""
        found = self.between(begin_ns, end_ns)
        return fmean(watts for _, watts, _ in found) if found else None

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _sample_forever(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                sample = self._gpu.sample()
            except GpuError:
                continue
            if sample.power_w is None:
                continue
            at_ns = time.monotonic_ns()
            energy_j, clock_mhz = self._last[0], sample.freq_mhz or 0
            with self._lock:
                if self._samples:
                    energy_j += sample.power_w * (at_ns - self._samples[-1][0]) * 1e-9
                self._samples.append((at_ns, sample.power_w, clock_mhz))
            self._last = (energy_j, clock_mhz)
