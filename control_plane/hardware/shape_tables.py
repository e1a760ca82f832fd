"""Durations and watts of every iteration of one tensor parallelism, by clock and tokens: compiled once, shared by all
replicas of that shape."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from control_plane.hardware.gpu_model import IDLE, GpuSpec
from control_plane.hardware.replica_model import IterationTimes, ReplicaLimits


class SteppedMachine(Protocol):
    """The part of a profile that a simulation steps: iteration times, limits and the GPU's power."""

    @property
    def name(self) -> str: ...
    @property
    def tps(self) -> Sequence[int]: ...
    @property
    def gpu(self) -> GpuSpec: ...
    def times(self, tp: int) -> IterationTimes: ...
    def limits(self, tp: int) -> ReplicaLimits: ...


class ShapeTables:
    """``alpha_ps(clock)[tokens]`` and ``power_w(clock)[tokens]`` of a whole replica (all its GPUs)."""

    def __init__(self, times: IterationTimes, limits: ReplicaLimits, gpu: GpuSpec, tp: int) -> None:
        self.tp = tp
        self.limits = limits
        self.times = times
        self.gpu = gpu
        self.context_ps = times.context_ps
        self.idle_w = tp * gpu.power_w(gpu.max_freq_mhz, 1, IDLE)
        activity = [times.activity(tokens) for tokens in range(limits.batch_tokens + limits.batch_requests + 1)]
        self._sm, self._mem = np.array([a.sm for a in activity]), np.array([a.mem for a in activity])
        self._power_w: dict[int, tuple[float, ...]] = {}

    @classmethod
    def of(cls, profile: SteppedMachine, tp: int) -> "ShapeTables":
        return cls(profile.times(tp), profile.limits(tp), profile.gpu, tp)

    def alpha_ps(self, freq_mhz: int) -> Sequence[int]:
        return self.times.alpha_ps(freq_mhz)

    def attention_ps(self, freq_mhz: int) -> int:
        return self.times.attention_ps(freq_mhz)

    def power_w(self, freq_mhz: int) -> tuple[float, ...]:
        """Watts while an iteration of so many tokens runs: ``GpuSpec.power_w`` of every GPU, all tokens at once."""
        table = self._power_w.get(freq_mhz)
        if table is None:
            gpu = self.gpu
            drawn_w = gpu.context_w + gpu.mem_w * self._mem
            drawn_w += gpu.sm_w * self._sm * gpu.sm_scale(freq_mhz)
            table = tuple((self.tp * np.minimum(drawn_w, gpu.power_limit_w)).tolist())
            self._power_w[freq_mhz] = table
        return table
