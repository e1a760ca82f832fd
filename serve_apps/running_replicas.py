"""The replicas Ray Serve routes to from this process, by application: written by the request router, read by ours."""

from control_plane.domain import ReplicaId

_RUNNING: dict[str, frozenset[ReplicaId]] = {}


def update(app: str, replica_ids: frozenset[ReplicaId]) -> None:
    _RUNNING[app] = replica_ids


def of(app: str) -> frozenset[ReplicaId]:
    return _RUNNING.get(app, frozenset())
