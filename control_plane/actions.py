"""What a controller may ask of the world. Every action names a target, so repeating one does no harm."""

from dataclasses import dataclass

from control_plane.domain import PoolName, ReplicaId


@dataclass(frozen=True, slots=True)
class SetGpuBudget:
    """Cluster → pool: how many GPUs the pool may hold."""

    pool: PoolName
    gpus: int
    why: str


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Pool → Ray Serve: how many replicas of this tensor parallelism should run."""

    pool: PoolName
    tp: int
    replicas: int
    why: str


@dataclass(frozen=True, slots=True)
class SetFrequency:
    """Pool → GPU agent: the highest clock the replica's GPUs may take. Always sent under a lease."""

    replica_id: ReplicaId
    freq_mhz: int
    why: str


Action = SetGpuBudget | SetReplicas | SetFrequency


@dataclass(frozen=True, slots=True)
class Step:
    """A controller's answer: what to do, and when it wants to be asked again."""

    actions: tuple[Action, ...]
    wake_at_s: float
