"""What controllers are shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from control_plane.domain import Load, PoolName, ReplicaView
from control_plane.serving.arrival_log import Arrivals


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """All that a pool's controller may look at. ``reactive`` is the load of the last seconds, from ARRIVALS
    (completions hide overload); ``forecast`` is the upper prediction for the next planning period."""

    now_s: float
    pool: PoolName
    gpu_budget: int
    reactive: Load
    forecast: Load
    replicas: tuple[ReplicaView, ...]


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """All that the cluster's controller may look at."""

    now_s: float
    gpus: int
    forecast: Mapping[PoolName, Load]
    gpu_budgets: Mapping[PoolName, int]
    recent: Arrivals = field(default_factory=Arrivals.none)
    """The arrivals of the last hour; empty unless the policy's ``Needs`` ask for them."""
