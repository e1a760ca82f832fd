"""What actors, replicas and the router tell each other. Plain frozen values: they travel by pickle inside one Ray
cluster and never come from outside."""

from dataclasses import dataclass

from control_plane.domain import Load, PoolName, ReplicaId, ReplicaState


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica's account of itself, pushed every second; a pool manager that restarted learns from the next one."""

    replica_id: ReplicaId
    pool: PoolName
    tp: int
    node_id: str
    gpu_uuids: tuple[str, ...]
    state: ReplicaState
    waiting: int
    running: int
    oldest_wait_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """One action taken and why, for `explain`."""

    decision_id: str
    at_s: float
    """Seconds since the epoch."""
    source: str
    action: str
    why: str


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now. ``locked_mhz`` is the highest clock it may take."""

    uuid: str
    freq_mhz: int
    locked_mhz: int
    power_w: float
    energy_j: float
    owner: str | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the load forecaster says: seen now, and the upper bound for the next period."""

    reactive: Load
    upper: Load


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """One pool now."""

    pool: PoolName
    gpu_budget: int
    replicas: tuple[ReplicaReport, ...]
    clocks_mhz: dict[str, int]
    load_rps: float
    plan: str


@dataclass(frozen=True, slots=True)
class ControlPlaneStatus:
    """All of it now, as `wattray status` and the client show it."""

    version: str
    control: str
    pools: tuple[PoolStatus, ...]
    gpus: tuple[GpuReading, ...]
    energy_j: float
    power_w: float
