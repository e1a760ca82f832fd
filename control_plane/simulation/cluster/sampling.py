"""The cluster's power and size over time."""

from control_plane.hardware.replica_model import PS_PER_S
from control_plane.simulation.cluster.billing import Billing
from control_plane.simulation.cluster.gpu_slots import GpuSlots
from control_plane.simulation.cluster.replicas import Replicas
from control_plane.simulation.outcome import Sample


class Sampling:
    """Power samples are means since the sample before, so their integral is the meter's energy."""

    def __init__(self, replicas: Replicas, slots: GpuSlots, billing: Billing) -> None:
        self._replicas, self._slots, self._billing = replicas, slots, billing
        self.samples: list[Sample] = []
        self.metered_wps = 0.0
        """The meter's reading at the last sample, in watt-picoseconds."""
        self.sampled_ps = 0
        """When it was taken."""

    def take(self, now_ps: int, in_flight: int) -> None:
        held = self._slots.held
        self._billing.charge_idle(now_ps, held)
        metered_wps = self._billing.metered_wps(self._replicas, now_ps)
        power_w = (metered_wps - self.metered_wps) / (now_ps - self.sampled_ps) if self.samples else 0.0
        self.metered_wps, self.sampled_ps = metered_wps, now_ps
        clock_gpus = sum(hosted.tp * hosted.engine.target_mhz for hosted in self._replicas)
        mean_mhz = clock_gpus / held if held else 0.0
        energy_j, replicas = metered_wps / PS_PER_S, len(self._replicas)
        self.samples.append(Sample(now_ps / PS_PER_S, power_w, energy_j, held, replicas, mean_mhz, in_flight))
