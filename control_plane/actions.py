"""What a controller may ask of the world. Every action names a target, so repeating one does no harm."""

from dataclasses import dataclass

from control_plane.domain import PoolName, ReplicaId, Role


@dataclass(frozen=True, slots=True)
class SetGpuBudget:
    """Cluster → pool: how many GPUs the pool may hold."""

    pool: PoolName
    gpus: int
    why: str


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Pool → Ray Serve: how many replicas of this role and tensor parallelism should run.

    ``stop_first`` says which replicas should end first where the count falls; a host that cannot choose ignores it.
    """

    pool: PoolName
    tp: int
    replicas: int
    why: str
    role: Role = Role.COMBINED
    stop_first: tuple[ReplicaId, ...] = ()


@dataclass(frozen=True, slots=True)
class SetFrequency:
    """Pool → GPU agent: the highest clock the replica's GPUs may take. Always sent under a lease."""

    replica_id: ReplicaId
    freq_mhz: int
    why: str


@dataclass(frozen=True, slots=True)
class SetGovernor:
    """Pool → replica: the bounds within which the replica's own governor may move the clock."""

    replica_id: ReplicaId
    floor_mhz: int
    ceiling_mhz: int
    why: str


@dataclass(frozen=True, slots=True)
class SetPowerLimit:
    """Pool → GPU agent: the power each of the replica's GPUs may draw; None restores the default limit. Always sent
    under a lease."""

    replica_id: ReplicaId
    power_w: float | None
    why: str


Action = SetGpuBudget | SetReplicas | SetFrequency | SetGovernor | SetPowerLimit


@dataclass(frozen=True, slots=True)
class Step:
    """A controller's answer: what to do, and when it wants to be asked again."""

    actions: tuple[Action, ...]
    wake_at_s: float
