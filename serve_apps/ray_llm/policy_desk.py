"""The policy's router for one deployment of ray.serve.llm, as ``PolicyReplicaRouter`` asks it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from actors.runtime import Installation
from control_plane.domain import ReplicaId
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.hosting import RouterHost
from control_plane.serving.policy import RoutedRequest
from control_plane.serving.routing import Candidate
from serve_apps.api_errors import ApiError
from serve_apps.ray_llm.llm_messages import read_request, token_counter
from serve_apps.ray_llm.managed_config import SECTION, read_managed


class PolicyDesk:
    def __init__(self, section: Mapping[str, Any] | None, tp: int | None = None) -> None:
        """``tp`` None: the smallest of the profile; among replicas of one deployment it makes no difference. Raises
        ConfigRefusedError."""
        managed = read_managed({} if section is None else {SECTION: section})
        deployment = Installation(managed.settings, "", "")
        profile, self._pool, self._slo = deployment.profile, managed.pool, managed.settings.slo.slo()
        times = profile.times(tp or min(profile.tps))
        self._token_s = times.token_ps[profile.max_freq_mhz] / PS_PER_S
        self._base_s = times.base_ps[profile.max_freq_mhz] / PS_PER_S
        self._host = RouterHost(deployment.policy())
        self._count_tokens = token_counter(None)
        self._ids: Sequence[str] = ()
        self._candidates: tuple[Candidate, ...] = ()
        self._sent: dict[str, ReplicaId] = {}

    def choose(self, key: str, arguments: Sequence[Any], ids: Sequence[str]) -> str | None:
        """The replica for a call with these arguments (a request's body, and its headers); None where the policy
        cannot say. A request that is asked for again has not been taken where it was sent."""
        self.completed(key)
        if ids != self._ids:
            self._ids = ids
            self._candidates = tuple(
                Candidate(ReplicaId(each), self._pool, self._token_s, self._base_s) for each in ids
            )
            self._host.forget(map(ReplicaId, ids))
        headers = getattr(arguments[1], "headers", None) if len(arguments) > 1 else None
        try:
            request = read_request(arguments[0], headers or {}, self._slo, self._count_tokens)
        except (ApiError, AttributeError):
            return None
        routed = RoutedRequest(key, request.input_tokens, request.max_tokens, request.own_limits)
        route = self._host.route(time.monotonic(), routed, self._candidates)
        if route is None:
            return None
        self._sent[key] = route.replica_id
        return route.replica_id

    def completed(self, key: str) -> None:
        """The request ended, however."""
        sent = self._sent.pop(key, None)
        if sent is not None:
            self._host.dropped(key, sent)
