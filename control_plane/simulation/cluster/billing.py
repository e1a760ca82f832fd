"""The energy meter of a whole cluster: replicas that run, replicas that are gone, and GPUs that nobody holds."""

from collections.abc import Iterable

from control_plane.simulation.cluster.replicas import Hosted


class Billing:
    """Of ``idle_gpus`` GPUs those that no replica holds draw ``idle_w`` each. Energies in watt-picoseconds."""

    def __init__(self, idle_gpus: int, idle_w: float) -> None:
        self._idle_gpus, self._idle_w = idle_gpus, idle_w
        self._idle_at_ps = 0
        self.idle_wps = 0.0
        """Of GPUs that no replica holds."""
        self._gone_wps = 0.0
        self._gone_gpu_ps = 0

    def charge_idle(self, now_ps: int, held: int) -> None:
        """``held`` GPUs were held since the last call: call it before that number changes."""
        idle = max(0, self._idle_gpus - held)
        self.idle_wps += idle * self._idle_w * (now_ps - self._idle_at_ps)
        self._idle_at_ps = now_ps

    def stopped(self, hosted: Hosted, now_ps: int) -> None:
        self._gone_wps += hosted.engine.energy_wps(now_ps)
        self._gone_gpu_ps += (now_ps - hosted.engine.born_ps) * hosted.tp

    def metered_wps(self, replicas: Iterable[Hosted], now_ps: int) -> float:
        """All energy up to now; idle GPUs up to the last ``charge_idle``."""
        metered_wps = self._gone_wps + self.idle_wps
        for hosted in replicas:
            metered_wps += hosted.engine.energy_wps(now_ps)
        return metered_wps

    def held_gpu_ps(self, replicas: Iterable[Hosted], now_ps: int) -> int:
        """GPU time held by replicas up to now."""
        return self._gone_gpu_ps + sum((now_ps - hosted.engine.born_ps) * hosted.tp for hosted in replicas)
