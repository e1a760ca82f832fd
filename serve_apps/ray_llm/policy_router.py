"""A request router of Ray Serve that asks our policy which replica a request goes to, inside Ray's own ingress: for
``request_router_config`` of a ``MeteredLLMServer`` that ray.serve.llm's builder deploys.

It hears when requests end, not when their first token comes: a prompt counts as work ahead until its answer is whole.
"""

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class PolicyReplicaRouter(RequestRouter):
    """``request_router_kwargs: {wattray: …}`` is what ``experimental_configs.wattray`` is.

    Serve pickles this class by value, so what it needs it imports where it is used.
    """

    def initialize_state(self, *, wattray: Any = None, **others: Any) -> None:
        """Raises ConfigRefusedError."""
        from serve_apps.ray_llm.policy_desk import PolicyDesk

        if others:
            raise ValueError(f"request_router_kwargs: {sorted(others)} are unknown; wattray is known")
        self._desk = PolicyDesk(wattray)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        everyone = list(candidate_replicas)
        if pending_request is None or not pending_request.args:
            return [everyone]
        by_id = {replica.replica_id.unique_id: replica for replica in everyone}
        key = pending_request.metadata.internal_request_id
        chosen = self._desk.choose(key, pending_request.args, tuple(sorted(by_id)))
        return [everyone] if chosen is None else [[by_id[chosen]], everyone]

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        del replica_id
        self._desk.completed(internal_request_id)
