"""Ray Serve's request router for model replicas: the replica that our policy chose, and Serve's own care for the rest
(retries, rejections, replicas that died)."""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class ChosenReplicaRouter(RequestRouter):
    """Sends a call to the replica named by its ``replica_id`` argument; any other where that one is gone.

    Serve pickles this class by value, so its module's globals are copies: what it shares with the rest of the
    process it imports where it is used.
    """

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        from serve_apps import running_replicas

        super().update_replicas(replicas)
        ids = frozenset(replica.replica_id.unique_id for replica in replicas)
        running_replicas.update(self._deployment_id.app_name, ids)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        wanted = None if pending_request is None else pending_request.kwargs.get("replica_id")
        chosen = [replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]
        return [chosen, list(candidate_replicas)] if chosen else [list(candidate_replicas)]
