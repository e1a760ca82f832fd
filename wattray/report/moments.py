"""What the reports plot over time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """One look at the cluster while the trace ran."""

    at_s: float
    power_w: float
    energy_j: float
    clocks_mhz: dict[str, int]
    """Highest clock allowed, by replica."""
    ready: dict[str, int]
    """Ready replicas by pool and tensor parallelism."""
    load_rps: dict[str, float]
