"""What each request of a replica used, by the energy counters of the replica's GPUs."""

import logging
from collections.abc import Callable, Sequence

from actors.gpu.energy_meter import EnergyMeter
from control_plane.ports import Gpu, GpuError
from control_plane.serving.energy_shares import EnergyShares
from serve_apps.engines.protocol import GenerateRequest

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""Counters move every 100 ms, and reading one may cost milliseconds."""


class ReplicaEnergy:
    """Told of every request's begin, progress and end; looks at the counters at most ten times a second."""

    def __init__(self, gpus: Sequence[Gpu], prompt_token_work: float, clock_s: Callable[[], float]) -> None:
        self._gpus, self._prompt_token_work, self._clock_s = gpus, prompt_token_work, clock_s
        self._meters = [EnergyMeter() for _ in gpus]
        self._shares = EnergyShares(0.0)
        self._prompts: dict[str, int] = {}
        """Tokens of the prompts that have brought no token yet."""
        self._looked_s: float | None = None
        self._readable = True

    @property
    def idle_j(self) -> float:
        return self._shares.idle_j

    def began(self, request: GenerateRequest) -> None:
        self.look()
        self._shares.began(request.request_id)
        self._prompts[request.request_id] = request.input_tokens

    def progressed(self, request_id: str, tokens: float) -> None:
        prompt = self._prompts.pop(request_id, 0) if tokens else 0
        self._shares.worked(request_id, tokens + prompt * self._prompt_token_work)

    def ended(self, request_id: str) -> float | None:
        """Its joules; None where the counters cannot be read."""
        self.look()
        self._prompts.pop(request_id, None)
        used_j = self._shares.ended(request_id, self._clock_s())
        return used_j if self._readable and self._looked_s is not None else None

    def look(self) -> None:
        """Read the counters, unless that was done just now."""
        now_s = self._clock_s()
        if self._looked_s is not None and now_s - self._looked_s < LOOK_S:
            return
        try:
            self._meters = [
                meter.seen(now_s, gpu.energy_j(), gpu.power_w())
                for meter, gpu in zip(self._meters, self._gpus, strict=True)
            ]
        except GpuError as error:
            if self._readable:
                log.warning("requests are not told their energy, a GPU cannot be read: %s", error)
            self._readable = False
            return
        self._readable = True
        self._looked_s = now_s
        self._shares.looked(now_s, sum(meter.total_j for meter in self._meters))
