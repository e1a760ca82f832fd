"""What changing replicas costs, and when the change pays."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReconfigurationCost:
    """Energy spent before a change brings anything, in joules, and the watts it then saves."""

    energy_j: float
    saves_w: float

    def pays_within(self, horizon_s: float) -> bool:
        """Reconfigure only where energy now > reconfiguration energy + energy after (DynamoLLM section IV-C)."""
        return self.saves_w * horizon_s > self.energy_j


def start_energy_j(gpus: int, context_gpu_w: float, startup_s: float) -> float:
    """New replicas hold their GPUs, and a context on each, while they start."""
    return gpus * context_gpu_w * startup_s
