"""What one computation of a pipeline stage takes on a GPU: time at a clock, and its end when the clock still moves."""

import math
from dataclasses import dataclass

from control_plane.hardware.gpu_model import Activity, GpuSpec, GpuState

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class StageWork:
    """A forward or backward of one micro-batch. Compute stretches with a lower clock, memory traffic does not."""

    compute_s: float
    """At the highest clock."""
    memory_s: float
    activity: Activity

    def time_s(self, spec: GpuSpec, freq_mhz: int) -> float:
        return self.compute_s * spec.max_freq_mhz / freq_mhz + self.memory_s

    def energy_j(self, spec: GpuSpec, freq_mhz: int) -> float:
        """At one steady clock."""
        return spec.power_w(freq_mhz, 1, self.activity) * self.time_s(spec, freq_mhz)


def finish_ns(spec: GpuSpec, state: GpuState, work: StageWork) -> int:
    """When work begun at ``state.at_ns`` ends: at the old clock until a new one has settled, then at the new one."""
    left = 1.0
    at_ns = state.at_ns
    if state.freq_mhz != state.target_mhz:
        time_s = work.time_s(spec, state.freq_mhz)
        settles_in_s = max(0, state.settles_at_ns - at_ns) / NS_PER_S
        if settles_in_s >= time_s:
            return at_ns + math.ceil(time_s * NS_PER_S)
        left -= settles_in_s / time_s
        at_ns = max(at_ns, state.settles_at_ns)
    return at_ns + math.ceil(left * work.time_s(spec, state.target_mhz) * NS_PER_S)
