"""Durations and watts of every iteration of one tensor parallelism, by clock and tokens: compiled once, shared by all
replicas of that shape."""

from collections.abc import Sequence
from typing import Protocol

from control_plane.hardware.gpu_model import IDLE, GpuSpec
from control_plane.hardware.replica_model import IterationTimes, ReplicaLimits


class MachineProfile(Protocol):
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
        self._power_w: dict[int, tuple[float, ...]] = {}

    @classmethod
    def of(cls, profile: MachineProfile, tp: int) -> "ShapeTables":
        return cls(profile.times(tp), profile.limits(tp), profile.gpu, tp)

    def alpha_ps(self, freq_mhz: int) -> Sequence[int]:
        return self.times.alpha_ps(freq_mhz)

    def attention_ps(self, freq_mhz: int) -> int:
        return self.times.attention_ps(freq_mhz)

    def power_w(self, freq_mhz: int) -> tuple[float, ...]:
        """Watts while an iteration of so many tokens runs; a context is held on every GPU."""
        table = self._power_w.get(freq_mhz)
        if table is None:
            tokens = range(self.limits.batch_tokens + self.limits.batch_requests + 1)
            table = tuple(self.tp * self.gpu.power_w(freq_mhz, 1, self.times.activity(n)) for n in tokens)
            self._power_w[freq_mhz] = table
        return table
