"""The replicas Ray Serve routes to from this process, by application: written by the request router, read by ours.

Serve may call the request router in a thread of its own, so readers compare ``version`` and take what they find.
"""

from control_plane.domain import ReplicaId

_RUNNING: dict[str, frozenset[ReplicaId]] = {}
_changes = 0


def update(app: str, replica_ids: frozenset[ReplicaId]) -> None:
    global _changes
    if _RUNNING.get(app) != replica_ids:
        _RUNNING[app] = replica_ids
        _changes += 1


def of(app: str) -> frozenset[ReplicaId]:
    return _RUNNING.get(app, frozenset())


def version() -> int:
    """Another number whenever a replica came or went."""
    return _changes
