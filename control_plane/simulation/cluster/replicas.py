"""The replicas that a simulated cluster hosts, by number, by id, and as candidates for requests."""

from collections.abc import Iterator
from dataclasses import dataclass

from control_plane.domain import PoolName, ReplicaId, ReplicaState, Role, advance
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.policy import Governor
from control_plane.serving.routing import Candidate
from control_plane.simulation.event_loop import ReplicaEngine


@dataclass(slots=True, eq=False)
class Hosted:
    """One replica: what it is, where it sits, and the engine that runs it."""

    number: int
    replica_id: ReplicaId
    pool: PoolName
    tp: int
    role: Role
    nodes: tuple[int, ...]
    """The node of each of its GPUs."""
    engine: ReplicaEngine
    state: ReplicaState
    kv_tokens: int
    governor: Governor | None = None

    @property
    def empty(self) -> bool:
        """It has nothing left to do and nothing left to send."""
        return not self.engine.busy and self.engine.outbox == 0

    @property
    def counts(self) -> bool:
        """It serves or is about to."""
        return self.state in (ReplicaState.STARTING, ReplicaState.READY)


class Replicas:
    """All that are hosted now. A change of state goes through ``advance``, so that candidates stay true."""

    def __init__(self, profile: MachineProfile) -> None:
        self._profile = profile
        self._by_number: dict[int, Hosted] = {}
        self.by_id: dict[ReplicaId, Hosted] = {}
        self.names: list[tuple[PoolName, ReplicaId]] = []
        """Of all that ever were, by number."""
        self.peak = 0
        self._candidates: dict[Role, tuple[Candidate, ...]] = {}

    def __iter__(self) -> Iterator[Hosted]:
        """In order of their numbers."""
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)

    def get(self, number: int) -> Hosted | None:
        """None where it is gone."""
        return self._by_number.get(number)

    def add(self, hosted: Hosted) -> None:
        self._by_number[hosted.number] = self.by_id[hosted.replica_id] = hosted
        self.names.append((hosted.pool, hosted.replica_id))
        self.peak = max(self.peak, len(self._by_number))
        self._candidates.clear()

    def advance(self, hosted: Hosted, to: ReplicaState) -> None:
        hosted.state = advance(hosted.state, to)
        if to is ReplicaState.STOPPED:
            del self._by_number[hosted.number], self.by_id[hosted.replica_id]
        self._candidates.clear()

    @property
    def changed(self) -> bool:
        """Replicas came, went or changed state since candidates were last asked for."""
        return not self._candidates

    def ready(self, role: Role) -> tuple[Candidate, ...]:
        """Those of a role that take requests: the same object until a replica comes or goes."""
        found = self._candidates.get(role)
        if found is None:
            found = self._candidates[role] = tuple(
                candidate_of(self._profile, hosted.replica_id, hosted.pool, hosted.tp)
                for hosted in self
                if hosted.state is ReplicaState.READY and hosted.role is role
            )
        return found


def candidate_of(profile: MachineProfile, replica_id: ReplicaId, pool: PoolName, tp: int) -> Candidate:
    """A replica as the router ranks it: its speed at full clock."""
    times = profile.times(tp)
    top = profile.max_freq_mhz
    return Candidate(replica_id, pool, times.token_ps[top] / PS_PER_S, times.base_ps[top] / PS_PER_S)
