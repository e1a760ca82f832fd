"""What actors, replicas and the router tell each other. Plain frozen values: they travel by pickle inside one Ray
cluster and never come from outside."""

from dataclasses import dataclass, field

from control_plane.domain import PoolName, ReplicaId, ReplicaState, Role
from control_plane.serving.advice import Advice


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
    role: Role = Role.COMBINED
    freq_mhz: int | None = None
    """The clock that its slowest GPU runs at, as observed; None where the replica cannot see it."""
    kv_used_ratio: float | None = None
    queued_tokens: int | None = None
    tightest_slack_s: float | None = None
    power_w: float | None = None
    ttft_p99_s: float | None = None
    tbt_p99_s: float | None = None
    mean_tbt_s: float | None = None
    """Over the last minute, for the correction of the profile."""


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What one tenant's requests used. ``energy_j`` is their shares of the replicas' metered energy; energy of idle
    replicas and GPUs is nobody's."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    energy_j: float = 0.0
    unmetered_requests: int = 0
    """Their energy is not known: a GPU could not be read, or the request broke off."""

    def __add__(self, other: "TenantUsage") -> "TenantUsage":
        return TenantUsage(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.energy_j + other.energy_j,
            self.unmetered_requests + other.unmetered_requests,
        )


@dataclass(frozen=True, slots=True)
class Orders:
    """A pool manager's answer to a replica's report: the bounds of its governor, where it has one."""

    governor_floor_mhz: int | None = None
    governor_ceiling_mhz: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One action taken and why, for `explain`."""

    decision_id: str
    at_s: float
    """Seconds since the epoch."""
    source: str
    action: str
    why: str
    outcome: str = "done"
    """"done", "recommended" where wattray only recommends, or what went wrong."""


@dataclass(frozen=True, slots=True)
class Held:
    """An agent's answer to a hold: the highest clock in force by GPU, in MHz, and why the other GPUs were refused."""

    in_force_mhz: dict[str, int]
    refused: dict[str, str]


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now. ``locked_mhz`` is the highest clock it may take."""

    uuid: str
    freq_mhz: int
    locked_mhz: int
    power_w: float
    energy_j: float
    owner: str | None
    events: tuple[str, ...] = ()
    """Why it runs below the clock it may take."""
    lease_age_s: float | None = None
    """Since its lease was last renewed; None where it has none."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """One pool now."""

    pool: PoolName
    gpu_budget: int | None
    """None where a manager that restarted has not been told yet."""
    replicas: tuple[ReplicaReport, ...]
    clocks_mhz: dict[str, int]
    """Observed, by replica."""
    wished_mhz: dict[str, int]
    """What the policy wants, by replica: the same as observed but for a moment, or where it only recommends."""
    load_rps: float
    plan: str
    wished_replicas: dict[str, int] = field(default_factory=dict)
    """By shape, such as "TP4" or "TP4 decode": what the policy asked for last."""
    advice: Advice | None = None
    """What control would have saved; None where it acts."""


@dataclass(frozen=True, slots=True)
class ControlPlaneStatus:
    """All of it now, as `wattray status` and the client show it."""

    version: str
    control: str
    pools: tuple[PoolStatus, ...]
    gpus: tuple[GpuReading, ...]
    energy_j: float
    power_w: float
    missing: tuple[str, ...] = ()
    """Control actors that did not answer: what they know is left out above."""
