"""The replicas that requests may be sent to, as the policy's candidates: whose they are and how fast they prefill."""

from collections.abc import Mapping
from dataclasses import dataclass

from control_plane.domain import PoolName, ReplicaId, Role
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.policy import Policy
from control_plane.serving.routing import Candidate
from serve_apps import running_replicas
from serve_apps.naming import pool_app


@dataclass(frozen=True, slots=True)
class AppSpeed:
    """One application's pool, and the prefill time per token and per iteration of its replicas at full clock."""

    pool: PoolName
    token_s: float
    base_s: float


def speeds(policy: Policy, profile: MachineProfile) -> dict[str, AppSpeed]:
    """Every application that may come to run, by name."""
    top_mhz = profile.max_freq_mhz
    by_app = {}
    for pool in policy.pools:
        for tp in profile.tps:
            times = profile.times(tp)
            token_s, base_s = times.token_ps[top_mhz] / PS_PER_S, times.base_ps[top_mhz] / PS_PER_S
            by_app[pool_app(pool.pool, tp, Role.COMBINED)] = AppSpeed(pool.pool, token_s, base_s)
    return by_app


class ReplicaDirectory:
    """Follows ``running_replicas``; what it returns is the same object until a replica comes or goes."""

    def __init__(self, by_app: Mapping[str, AppSpeed]) -> None:
        self._by_app = by_app
        self._version = -1
        self._candidates: tuple[Candidate, ...] = ()
        self._app_of: dict[ReplicaId, str] = {}

    def candidates(self) -> tuple[Candidate, ...]:
        version = running_replicas.version()
        if version != self._version:
            self._version = version
            self._read()
        return self._candidates

    def app_of(self, replica_id: ReplicaId) -> str:
        """The application of a replica that was among the candidates. Raises KeyError for any other."""
        return self._app_of[replica_id]

    def by_pool(self) -> dict[PoolName, frozenset[ReplicaId]]:
        pools: dict[PoolName, frozenset[ReplicaId]] = {speed.pool: frozenset() for speed in self._by_app.values()}
        for candidate in self.candidates():
            pools[candidate.pool] |= {candidate.replica_id}
        return pools

    def _read(self) -> None:
        candidates = []
        apps: dict[ReplicaId, str] = {}
        for app, speed in self._by_app.items():
            for replica_id in sorted(running_replicas.of(app)):
                candidates.append(Candidate(replica_id, speed.pool, speed.token_s, speed.base_s))
                apps[replica_id] = app
        self._candidates, self._app_of = tuple(candidates), apps
